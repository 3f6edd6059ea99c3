"""Draws what the course builds: its lessons as a stack, each level made of what stands under it, as SVG."""

import textwrap
from html import escape
from typing import NamedTuple

from llmscratch.kit.lessons import Notebook
from llmscratch.kit.paths import SERIES
from llmscratch.kit.pictures import BLUE, GREEN, GREY, INK, ORANGE

COLORS = dict(zip(SERIES, (BLUE, ORANGE, GREEN), strict=True))
WIDTH, LEFT, RIGHT, HEIGHT, GAP = 1080, 190, 200, 74, 12  # of the picture, its two margins, a level, what is between


class Level(NamedTuple):
    """what: what it gives; against: what the lessons on it are held against; lessons: their ids, from left to right."""

    what: str
    against: str
    lessons: tuple[str, ...]


# From the bottom up. A lesson that stands in no level is drawn on one of its own, on top.
LEVELS = [
    Level("A network that learns", "finite differences, scikit-learn, micrograd", ("CB07", "CB08", "CB09", "CB10")),
    Level("The same in PyTorch", "our own engine, torch.optim", ("CB11", "CB12")),
    Level("Text into numbers", "nltk, xz, tiktoken, tokenizers", ("4S01", "4S02")),
    Level("A language model", "PyTorch's attention, transformers' GPT-2", ("4S03", "4S05")),
    Level("The Storyteller", "the exact entropy of its stories", ("4S06", "4S07")),
    Level("Models that obey", "exact checks, peft", ("4S14", "4S15")),
    Level("A real model", "transformers, gguf", ("4S20", "4E01")),
    Level("Answers with sources", "faiss, hnswlib, exact answers", ("4E04", "4E05")),
]


def stack(lessons: list[Notebook]) -> str:
    """The picture, as the text of an SVG file. Levels without a lesson are left out."""
    known = {name for level in LEVELS for name in level.lessons}
    others = tuple(lesson.id for lesson in lessons if lesson.id not in known)
    by_id = {lesson.id: lesson for lesson in lessons}
    levels = [level for level in [*LEVELS, Level("", "", others)] if by_id.keys() & set(level.lessons)]
    height = GAP + len(levels) * (HEIGHT + GAP)
    parts = [f'<rect width="{WIDTH}" height="{height}" rx="10" fill="white"/>']
    for place, level in enumerate(reversed(levels)):
        top = GAP + place * (HEIGHT + GAP)
        there = [by_id[name] for name in level.lessons if name in by_id]
        parts.append(_text(LEFT - 16, top + HEIGHT / 2, textwrap.wrap(level.what, 18), "end", 15, weight="bold"))
        said = textwrap.wrap(f"against {level.against}" if level.against else "", 26)
        parts.append(_text(WIDTH - RIGHT + 16, top + HEIGHT / 2, said, "start", 13, fill=GREY))
        width = (WIDTH - LEFT - RIGHT + GAP) / len(there) - GAP
        for number, lesson in enumerate(there):
            parts.append(_box(lesson, LEFT + number * (width + GAP), top, width))
    about = "The lessons of the course as a stack, from a network in NumPy up to answers with sources"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{about}"'
    return "\n".join([f'{head} font-family="Helvetica, Arial, sans-serif">', *parts, "</svg>"]) + "\n"


def _box(lesson: Notebook, left: float, top: float, width: float) -> str:
    """A lesson: its number and title, and below them the module that it leaves behind."""
    color = COLORS[lesson.series]
    title = textwrap.wrap(f"{lesson.id} {lesson.title.partition(':')[0]}", int(width / 8.2))
    frame = (
        f'<rect x="{left:g}" y="{top}" width="{width:g}" height="{HEIGHT}" rx="6" fill="{color}" fill-opacity="0.12"'
    )
    middle = left + width / 2
    exported = lesson.about.get("exports", "")
    parts = [
        f'{frame} stroke="{color}"/>',
        _text(middle, top + (HEIGHT - 18 * bool(exported)) / 2, title[:2], "middle", 14),
        _text(middle, top + HEIGHT - 14, [exported] if exported else [], "middle", 12, fill=color, weight="bold"),
    ]
    return "\n".join(part for part in parts if part)


def _text(x: float, y: float, lines: list[str], anchor: str, size: int, fill: str = INK, weight: str = "normal") -> str:
    """Lines of text around the height y."""
    first = y - (len(lines) - 1) * size * 0.6 + size * 0.35
    style = f'text-anchor="{anchor}" font-size="{size}" fill="{fill}" font-weight="{weight}"'
    return "\n".join(
        f'<text x="{x:g}" y="{first + number * size * 1.2:g}" {style}>{escape(line)}</text>'
        for number, line in enumerate(lines)
    )
