"""Draws the reader's progress: for each lesson its exercises, the stars earned, and the totals."""

import importlib
import pkgutil
import re

from rich.console import Console
from rich.table import Table

import llmscratch.exercises
from llmscratch.exercises.lesson import Exercise, Lesson

SERIES = ("cb", "s", "e")  # in reading order; a module is called cb07 for CB07, s03 for 4S03, e05 for 4E05


def all_lessons(package=llmscratch.exercises) -> list[Lesson]:
    """The `lesson` of each module of exercises, in reading order."""
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    found = [match for match in (re.fullmatch(r"(cb|s|e)(\d\d)", name) for name in names) if match]
    found.sort(key=lambda match: (SERIES.index(match[1]), match[2]))
    return [importlib.import_module(f"{package.__name__}.{match[0]}").lesson for match in found]


def draw(console: Console, lessons: list[Lesson], kept: dict[str, dict[str, str]], titles: dict[str, str]) -> None:
    """Print the table. kept: what `progress.load` returns; titles: of lessons, by code, as far as they are known."""
    plain = console.options.ascii_only
    marks = {"right": "+", "wrong": "x", "": "."} if plain else {"right": "✓", "wrong": "✗", "": "·"}
    star = "*" if plain else "★"

    def state(lesson: Lesson, exercise: Exercise) -> str:
        return kept.get(lesson.code, {}).get(str(exercise.number), "")

    table = Table("Lesson", "Exercises", show_footer=True)
    table.columns[0].footer = "Together"
    table.add_column("Right", justify="right")
    table.add_column("Stars", justify="right")
    solved, exercises, earned, stars = 0, 0, 0, 0
    for lesson in lessons:
        every = [lesson.exercises[number] for number in sorted(lesson.exercises)]
        right = [exercise for exercise in every if state(lesson, exercise) == "right"]
        mine, whole = sum(exercise.stars for exercise in right), sum(exercise.stars for exercise in every)
        row = "  ".join(f"{exercise.number} {marks.get(state(lesson, exercise), marks[''])}" for exercise in every)
        name = f"{lesson.code} {titles.get(lesson.code, '')}".rstrip()
        table.add_row(name, row, f"{len(right)} of {len(every)}", f"{mine} of {whole} {star}")
        solved, exercises, earned, stars = solved + len(right), exercises + len(every), earned + mine, stars + whole
    table.columns[2].footer = f"{solved} of {exercises}"
    table.columns[3].footer = f"{earned} of {stars} {star}"
    console.print(table)
    console.print(f"{marks['right']} right   {marks['wrong']} wrong   {marks['']} not started")
