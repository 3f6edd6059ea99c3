"""The machinery behind `check`, `hint` and `solution`; the exercises themselves stand in one module a notebook."""

import dis
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from llmscratch.exercises import progress


class Wrong(Exception):
    """An answer is wrong; the message says what was expected, and on which input."""


def shown(value) -> str:
    """A short text of a value for messages: arrays rounded to 4 digits, long ones by shape."""
    if isinstance(value, np.ndarray):
        if value.size > 12:
            return f"an array of shape {value.shape}"
        return np.array2string(value, precision=4, separator=", ").replace("\n", "")
    if isinstance(value, float | np.floating):
        return f"{value:.6g}"
    return repr(value)


def expect(got, want, given: str, *, atol: float = 1e-9, rtol: float = 1e-6) -> None:
    """Raise Wrong unless `got` equals `want` (numbers and arrays: in shape and to the tolerance).

    given: the input in words, such as "x = [1, 2]"; the message reads "expected 3 for x = [1, 2], got 4".
    """
    if want is not None and (got is None or got is ...):
        raise Wrong(f"expected {shown(want)} for {given}, got nothing (is a `return` missing?)")
    if isinstance(want, str | bool | type(None)):
        got = bool(got) if isinstance(got, np.bool_) else got
        if type(got) is not type(want) or got != want:
            raise Wrong(f"expected {shown(want)} for {given}, got {shown(got)}")
        return
    try:
        mine, theirs = np.asarray(got, dtype=float), np.asarray(want, dtype=float)
    except (TypeError, ValueError):
        raise Wrong(f"expected {shown(want)} for {given}, got {shown(got)} ({type(got).__name__})") from None
    if mine.shape != theirs.shape:
        raise Wrong(f"expected shape {theirs.shape} for {given}, got shape {mine.shape}")
    if not np.allclose(mine, theirs, atol=atol, rtol=rtol, equal_nan=True):
        raise Wrong(f"expected {shown(want)} for {given}, got {shown(got)}")


@dataclass(frozen=True)
class Exercise:
    """One exercise: `check(answer)` raises Wrong; `wrong` maps a wrong answer to what its message must name."""

    number: int
    stars: int
    title: str
    check: Callable[[object], None]
    hints: list[str]
    solution: object
    wrong: dict[object, str] = field(default_factory=dict)


def not_started(answer) -> bool:
    """True for `...`, None, and a function or class-free stub whose body is only `...` (and perhaps a docstring)."""
    if answer is None or answer is ...:
        return True
    code = getattr(answer, "__code__", None)
    if code is None:
        return False
    trivial = {"RESUME", "LOAD_CONST", "LOAD_COMMON_CONSTANT", "RETURN_VALUE", "RETURN_CONST", "NOP", "POP_TOP"}
    returned = [i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_CONST", "RETURN_CONST")]
    return {i.opname for i in dis.get_instructions(code)} <= trivial and set(returned) <= {None, ...}


class Lesson:
    """The exercises of one notebook. `code` is its number in the course, such as "CB07"."""

    def __init__(self, code: str):
        self.code = code
        self.exercises: dict[int, Exercise] = {}
        self._hints_given: dict[int, int] = {}

    def add(self, number: int, stars: int, title: str, *, check, hints, solution, wrong) -> None:
        """Register an exercise (arguments as in `Exercise`)."""
        self.exercises[number] = Exercise(number, stars, title, check, hints, solution, wrong)

    def _get(self, number: int) -> Exercise:
        if number not in self.exercises:
            raise ValueError(f"{self.code} has exercises {sorted(self.exercises)}, not {number!r}")
        return self.exercises[number]

    def verdict(self, number: int, answer) -> tuple[str, str]:
        """("not started" | "right" | "wrong", message), without printing or keeping it."""
        exercise = self._get(number)
        if not_started(answer):
            return "not started", f"replace the `...`, then run this cell again; hint({number}) helps"
        try:
            exercise.check(answer)
        except Wrong as wrong:
            return "wrong", str(wrong)
        except NotImplementedError:
            return "not started", f"your code raises NotImplementedError; hint({number}) helps"
        except Exception as error:  # whatever the reader's code raises is shown to the reader
            return "wrong", f"your code stopped with {type(error).__name__}: {error}"
        return "right", exercise.title

    def check(self, number: int, answer) -> None:
        """Check an answer, print the verdict in one line, and keep it in the reader's progress."""
        state, message = self.verdict(number, answer)
        print(f"Exercise {number}: {state}{': ' if state == 'wrong' else ' · '}{message}")
        if state != "not started":
            progress.record(self.code, number, state)

    def hint(self, number: int) -> None:
        """Print the next hint; after the last, the first again."""
        hints = self._get(number).hints
        given = self._hints_given.get(number, 0)
        self._hints_given[number] = given + 1
        place = given % len(hints)
        print(f"Hint {place + 1} of {len(hints)}: {hints[place]}")

    def solution(self, number: int) -> None:
        """Print one right way to write it."""
        print(textwrap.dedent(inspect.getsource(self._get(number).solution)).rstrip())
