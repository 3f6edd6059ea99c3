"""Exercises that check themselves: one module a notebook (`cb07` for CB 07), built on `Lesson`.

In a notebook:

    from llmscratch.exercises.cb07 import check, hint, solution
    check(1, my_function)     # not started | right | wrong: what was expected, on which input
    hint(1)                   # the next hint
    solution(1)               # one way to write it
"""

from llmscratch.exercises.lesson import Exercise, Lesson, Wrong, expect, shown

__all__ = ["Exercise", "Lesson", "Wrong", "expect", "shown"]
