"""What 4S 06 claims: text told a second, with its probability and its facts; deduplication beside datasketch."""

import functools
import time

from llmscratch.kit import Race, race_apart
from llmscratch.scientist.stories import World
from tests.bench import against, row


@functools.cache
def seconds_a_megabyte() -> list[float]:
    """The fastest three of 15 repeats of 500 stories each, about 0.4 MB: other work on the machine only slows."""
    world, found = World.load(), []
    list(world.stories(100))
    for seed in range(15):
        start = time.perf_counter()
        size = sum(len(story.text) for story in world.stories(500, seed))
        found.append((time.perf_counter() - start) / size * 1e6)
    return sorted(found)[:3]


@row("4S06: telling a megabyte of stories, one core; theirs: the goal", at_most=1)
def telling() -> Race:
    return against(seconds_a_megabyte(), [1.0] * 3)


TEXTS = """
import re
from llmscratch.kit import stories
texts = [story.text for story in stories("validation")]
"""
OURS = """
from llmscratch.scientist.curation import candidate_pairs, minhash
def step():
    return candidate_pairs(minhash(texts), bands=16)
"""
THEIRS = """
import zlib
from datasketch import MinHash, MinHashLSH
def shingles(text, k=5):
    words = re.findall(r"\\w+", text.lower())
    return {" ".join(words[i : i + k]).encode() for i in range(len(words) - k + 1)}
def step():
    index = MinHashLSH(num_perm=128, params=(16, 8))
    signatures = MinHash.bulk(map(shingles, texts), num_perm=128, hashfunc=zlib.crc32)
    for i, signature in enumerate(signatures):
        index.insert(i, signature)
    return [index.query(signature) for signature in signatures]
"""


@row("4S06: likely near-duplicates among 2,000 stories, from text; theirs: datasketch", at_most=0.6)
def deduplicating() -> Race:
    return race_apart("2,000 stories, 128 numbers a text, 16 bands", TEXTS + OURS, TEXTS + THEIRS, calls=2, repeats=5)
