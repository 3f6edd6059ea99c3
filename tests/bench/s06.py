"""What 4S 06 claims: text told a second, with its probability and its facts."""

import functools
import time

from llmscratch.kit import Race
from llmscratch.scientist.stories import World
from tests.bench import against, row


@functools.cache
def seconds_a_megabyte() -> list[float]:
    """Three repeats of 3,000 stories each, about 2.3 MB."""
    world, found = World.load(), []
    list(world.stories(100))
    for seed in range(3):
        start = time.perf_counter()
        size = sum(len(story.text) for story in world.stories(3000, seed))
        found.append((time.perf_counter() - start) / size * 1e6)
    return found


@row("4S06: telling a megabyte of stories, one core; theirs: the goal", at_most=1)
def telling() -> Race:
    return against(seconds_a_megabyte(), [1.0] * 3)
