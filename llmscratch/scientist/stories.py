"""A generator of short stories that knows the probability of each, and the pipeline from raw text to training rows."""

# Made from 02_for_scientist/06_pretraining_data.ipynb by `make export`: change the notebook, not this file.

import itertools
import math
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from random import Random

from llmscratch.kit.paths import data_file
from llmscratch.kit.templates import Fact, Form, OneOf, Parts, Words, read_world
from llmscratch.scientist.programs import Choice, Sequence, Telling, Text, Total, Value, Variable

__all__ = ["Story", "World", "build", "chooses", "drawn_words", "program", "with_facts"]


def build(tree, cast, done):
    """The program for a tree of `llmscratch.kit.templates`.

    cast: the `Variable` of each name; done: programs by id of their trees, so that a rule is built once.
    """
    if id(tree) not in done:
        match tree:
            case Words(words):
                node = Text(words)
            case Fact(key, words):
                node = Text(words, key)
            case Form(name, form):
                node = Value(cast[name], form)
            case Parts(parts):
                node = Sequence([build(part, cast, done) for part in parts])
            case OneOf(options, weights):
                node = Choice([build(option, cast, done) for option in options], weights)
        done[id(tree)] = node
    return done[id(tree)]


def chooses(tree):
    """Whether a tree holds a choice."""
    return isinstance(tree, OneOf) or isinstance(tree, Parts) and any(map(chooses, tree.parts))


def program(plots):
    """The program that tells a story of one of the plots, and, for each plot, the programs that word its facts."""
    tellers, facts = [], {}
    for name, plot in plots.items():
        cast, done = {member: Variable(plot.cast[member].pool) for member in plot.cast}, {}
        for one, other in [(member, other) for member in plot.cast for other in plot.cast[member].apart]:
            cast[one].apart.append(cast[other])
            cast[other].apart.append(cast[one])
        for member, variable in cast.items():
            if any(a not in b.apart for a, b in itertools.combinations(variable.apart, 2)):
                raise ValueError(f"plot {name}: those that {member} must differ from must differ from each other too")
            if len(variable.pool) <= len(variable.apart):
                raise ValueError(f"plot {name}, cast {member}: {len(variable.pool)} entries are too few to differ")
        if key := next((key for key, tree in plot.facts.items() if chooses(tree)), None):
            raise ValueError(f"plot {name}, fact {key}: a fact holds no choice [a|b], it would be a guess")
        tellers.append(Sequence([Text(name, key="plot"), build(plot.story, cast, done)]))
        facts[name] = {key: build(tree, cast, done) for key, tree in plot.facts.items()}
    return Choice(tellers, [plot.weight for plot in plots.values()]), facts


@dataclass(frozen=True)
class Story:
    """A story, the natural logarithm of the probability of its choices, and what is true in it."""

    text: str
    log_prob: float
    facts: dict

    @property
    def bits(self):
        """Information in the story, −log₂ p."""
        return -self.log_prob / math.log(2)


def drawn_words(text, cast):
    """The members of a cast that are a single small word and stand in the text, in the order in which they do.

    Each could have been another one, so it can be asked for: "curious", "purple", "spider".
    """
    names = {next(iter(entry.values())) for entry in cast.values() if isinstance(entry, dict)}
    return [word for word in dict.fromkeys(re.findall(r"(?<![\w'-])[a-z]{3,}(?![\w'-])", text)) if word in names]


def with_facts(text, log_prob, cast, facts):
    """The `Story` of a text: the facts noted on the way, those of its plot whose values were drawn, and its words.

    cast: values of the variables drawn, and the facts noted; facts: {plot: {name: program that words the fact}}.
    """
    known = {key: words for key, words in cast.items() if isinstance(key, str)}
    for key, node in facts[known["plot"]].items():
        said, after, _ = next(node.match(None, "", cast, 0.0))  # a fact holds no choice: its one wording
        if len(after) == len(cast):  # nothing had to be drawn for it
            known.setdefault(key, said)
    return Story(text, log_prob, known | {"words": drawn_words(text, cast)})


class World:
    """All stories of a world file; `data` is its parsed TOML. TemplateError or ValueError says what is wrong in it."""

    def __init__(self, data):
        try:
            self.lists, plots = read_world(data)
            self.root, self.facts = program(plots)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ValueError(f"something is missing in the world file, or of the wrong type: {error!r}") from error

    @classmethod
    def load(cls, path: str | PathLike | None = None) -> "World":
        """The world of a TOML file; default: this course's, `data/world.toml`. ValueError when it is no TOML."""
        path = path or data_file("world.toml")
        with open(path, "rb") as file:
            try:
                return cls(tomllib.load(file))
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise ValueError(f"{path} is not a world file, or is damaged: {error}") from error

    def tell(self, rng: Random) -> Story:
        """One story; all its randomness is `rng.random()` of a `random.Random`."""
        telling = Telling(rng.random)
        self.root.run(telling)
        return with_facts("".join(telling.out), telling.log_prob, telling.cast, self.facts)

    def stories(self, n: int, seed: int = 0) -> Iterator[Story]:
        """Yield the first `n` stories of a seed."""
        if n < 0:
            raise ValueError(f"a number of stories is 0 or more, got {n}")
        rng = Random(seed)
        for _ in range(n):
            yield self.tell(rng)

    def paths(self, text: str | None = None) -> Iterator[Story]:
        """Yield a `Story` for every path of choices that tells `text`; for every path there is, when None."""
        for at, cast, log in self.root.match(text, "" if text is None else 0, {}, 0.0):
            if text is None or at == len(text):
                yield with_facts(at if text is None else text, log, cast, self.facts)

    def log_prob(self, text: str) -> float:
        """Natural logarithm of the probability of a text, summed over its paths; −inf when the world cannot tell it."""
        logs = [story.log_prob for story in self.paths(text)]
        return max(logs) + math.log(sum(math.exp(x - max(logs)) for x in logs)) if logs else -math.inf

    def measure(self) -> Total:
        """Entropy and mean length of a story, and the number of paths: exact, by recursion over the program."""
        total = Total()
        states = self.root.measure({frozenset(): (1.0, 1)}, total, frozenset())
        total.paths = sum(n for _, n in states.values())
        return total
