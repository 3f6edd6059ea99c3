"""The corpus of the Storyteller. `python -m llmscratch.scientist.corpus [--check] [FOLDER]` makes, or only checks, the
files of `data/`.
"""

# Made from 02_for_scientist/06_pretraining_data.ipynb by `make export`: change the notebook, not this file.

import argparse
import hashlib
import json
import lzma
import os
import sys
from pathlib import Path

from llmscratch.kit.paths import data_file
from llmscratch.scientist.stories import World
from llmscratch.scientist.tasks import almanac, make_instructions

__all__ = ["INSTRUCTIONS", "STORIES", "json_line", "main", "make_data", "records", "story_line"]


STORIES = {"train": (20_000, 1), "validation": (2_000, 2)}  # how many, and the seed
INSTRUCTIONS = {"train": (6_000, 1), "validation": (500, 2)}


def records(world=None):
    """Yield (name, lines) of every file of records in `data/`; a line is one record as JSON. It takes half a minute."""
    world = world or World.load()
    for split, (n, seed) in STORIES.items():
        told = list(world.stories(n, seed))
        yield f"stories_{split}", (story_line(story) for story in told)
        made = make_instructions(told, *INSTRUCTIONS[split], held_out=split == "validation")
        yield f"instructions_{split}", (json_line(one._asdict()) for one in made)
    book = almanac(0, world)
    yield "almanac", (json_line(one._asdict()) for one in [*book.entries, *book.questions])


def json_line(record):
    """A record as one line of ASCII."""
    return json.dumps(record, separators=(",", ":")) + "\n"


def story_line(story):
    """A story as one line; bits to three digits behind the point, the same on every platform."""
    return json_line({"text": story.text, "bits": round(story.bits, 3), "facts": story.facts})


def make_data(folder=None, *, check=False, say=print):
    """Make the files of records in a folder, default `data/`; returns the names of those that had to be written.

    What counts are the uncompressed bytes: a file that holds the right ones is left alone. Writing is atomic; check:
    write nothing. Says one line a file: its name, the sha256 of its uncompressed bytes, and whether it was right.
    """
    folder, changed = Path(folder) if folder else data_file("world.toml").parent, []
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: make it first, or leave it out for data/")
    for name, lines in records():
        path, raw = folder / f"{name}.jsonl.xz", "".join(lines).encode()
        right = path.exists() and _uncompressed(path) == raw
        if not right:
            changed.append(path.name)
        if not right and not check:
            temporary = path.with_name(path.name + ".tmp")
            try:
                temporary.write_bytes(lzma.compress(raw, preset=9))
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        verdict = "as it should be" if right else "differs" if check else "written"
        say(f"{path.name}  {hashlib.sha256(raw).hexdigest()}  {verdict}")
    return changed


def _uncompressed(path):
    """What an xz file holds; None when it is damaged."""
    try:
        return lzma.decompress(path.read_bytes())
    except (lzma.LZMAError, EOFError):
        return None


def main(arguments=None):
    """The command; returns the exit status: 0, 1 when --check finds a file that differs, 2 when there is no folder."""
    parser = argparse.ArgumentParser(
        prog="python -m llmscratch.scientist.corpus", description=make_data.__doc__
    )
    parser.add_argument("folder", nargs="?", help="where the files are; default: the course's data/")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 when a file differs")
    given = parser.parse_args(arguments)
    try:
        changed = make_data(given.folder, check=given.check)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if given.check and changed else 0


if __name__ == "__main__" and __spec__:  # `python -m`, and not a notebook, which is called __main__ as well
    sys.exit(main())
