"""The world of the Storyteller: its stories, instructions about them and its almanac, read from `data/`."""

import json
import lzma
from typing import NamedTuple

from llmscratch.kit.packages import DataUnavailable
from llmscratch.kit.paths import data_file


class Story(NamedTuple):
    """A story; bits: −log₂ of its probability under the generator; facts: what is true in it, such as "who".

    Every story has the facts "plot", "who", "kind", "trait", "ends", "lesson", and "words", a list of words that were
    drawn and stand in the text; "place", "town", "friend" and others are there when they play a part. See
    data/stories_train.md.
    """

    text: str
    bits: float
    facts: dict


class Instruction(NamedTuple):
    """What a reader asks for, a story that fulfils it, and checks: what any right answer must satisfy, such as
    {"who": "Mia", "kind": "girl", "words": ["ladder"], "fewer": 150}. See data/instructions_train.md.
    """

    prompt: str
    story: str
    checks: dict


class Entry(NamedTuple):
    """An article of the almanac; facts: relation to answer."""

    name: str
    group: str
    text: str
    facts: dict[str, str]


class Question(NamedTuple):
    """answer: None when the almanac cannot say; kind: "single", "two-hop", "unknown fact" or "unknown name";
    sources: names of the entries that one must read, in order."""

    text: str
    answer: str | None
    kind: str
    sources: tuple[str, ...]


class Almanac(NamedTuple):
    """Entries about the people, places and things of the stories' world, and questions about them."""

    entries: list[Entry]
    questions: list[Question]


def stories(split: str = "train", *, plots: tuple[str, ...] | None = None) -> list[Story]:
    """The stories of a split, "train" (20,000) or "validation" (2,000), in the order in which they were told.

    plots: only stories with one of these plots, such as ("key", "lost"). ValueError for a split or plot that is not
    there; DataUnavailable when the file is damaged.
    """
    found = [Story(**record) for record in _records(f"stories_{_split(split)}")]
    if plots is None:
        return found
    known = {story.facts["plot"] for story in found}
    if unknown := sorted(set(plots) - known):
        raise ValueError(f"no story has the plot {unknown[0]!r}; the plots are: {', '.join(sorted(known))}")
    return [story for story in found if story.facts["plot"] in plots]


def instructions(split: str = "train") -> list[Instruction]:
    """Instructions with stories that fulfil them, "train" or "validation". Errors as for `stories`."""
    return [Instruction(**record) for record in _records(f"instructions_{_split(split)}")]


def almanac() -> Almanac:
    """The almanac: its entries and all its questions. DataUnavailable when the file is damaged."""
    found = Almanac([], [])
    for record in _records("almanac"):
        if "kind" in record:
            found.questions.append(Question(**record | {"sources": tuple(record["sources"])}))
        else:
            found.entries.append(Entry(**record))
    return found


def tinystories(split: str = "train"):
    """TinyStories (Eldan and Li 2023) from the Hugging Face Hub, as a stream: an iterable of {"text": …}.

    split: "train" (2.1 million stories) or "validation". DataUnavailable when the Hub cannot be reached.
    """
    from datasets import load_dataset

    try:
        return load_dataset("roneneldan/TinyStories", split=_split(split), streaming=True)
    except Exception as error:  # the Hub's client raises many unrelated types; each means "not to be had now"
        raise DataUnavailable(
            f"asked for TinyStories (roneneldan/TinyStories) from the Hugging Face Hub, but it could not be reached "
            f"({type(error).__name__}: {error}). Use stories(): 20,000 stories of this course, offline."
        ) from error


def _split(name: str) -> str:
    if name not in ("train", "validation"):
        raise ValueError(f"a split is 'train' or 'validation', got {name!r}")
    return name


def _records(name: str) -> list[dict]:
    """The records of data/<name>.jsonl.xz, one a line."""
    path = data_file(f"{name}.jsonl.xz")
    try:
        with lzma.open(path, "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file]
    except (lzma.LZMAError, EOFError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataUnavailable(
            f"{path} is damaged ({type(error).__name__}: {error}). Restore it: git checkout -- data, "
            "or install the course again."
        ) from error
