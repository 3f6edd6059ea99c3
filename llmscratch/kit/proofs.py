"""The course's two proofs: ours equals theirs, and ours beside theirs, timed."""

import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


def _array(value) -> np.ndarray:
    if hasattr(value, "detach"):  # a tensor, of torch or of basis.tensor
        value = value.detach()
        value = value.cpu().numpy() if hasattr(value, "cpu") else value.numpy()
    return np.asarray(value)


def same(claim: str, ours, theirs, *, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Prove that two results are equal: same shape, same dtype, |ours − theirs| ≤ atol + rtol·|theirs| everywhere.

    ours, theirs: numbers, arrays, tensors or lists of numbers. Prints one line; raises AssertionError, which shows the
    first difference, when they are not equal. With both tolerances 0 the values must be identical.
    """
    ours, theirs = _array(ours), _array(theirs)
    if ours.shape != theirs.shape:
        raise AssertionError(f"{claim}: shapes differ, ours {ours.shape}, theirs {theirs.shape}")
    if ours.dtype != theirs.dtype:
        raise AssertionError(f"{claim}: dtypes differ, ours {ours.dtype}, theirs {theirs.dtype}")
    if ours.dtype.kind in "fc":
        equal = np.isclose(ours, theirs, rtol=rtol, atol=atol, equal_nan=True)
    else:
        equal = ours == theirs
    if not equal.all():
        where = tuple(int(i) for i in np.argwhere(~equal)[0])
        at = f"first at {list(where)}" if where else "the value"
        raise AssertionError(
            f"{claim}: {int((~equal).sum())} of {equal.size} values differ, {at}: ours {ours[where]!r}, "
            f"theirs {theirs[where]!r} (allowed: rtol {rtol:g}, atol {atol:g})"
        )
    allowed = " and ".join(f"{name} {value:g}" for name, value in (("rtol", rtol), ("atol", atol)) if value)
    size = f"shape {ours.shape}" if ours.shape else "one number"
    print(f"same   {claim} ({size}, {ours.dtype}, {f'within {allowed}' if allowed else 'identical'})")


def holds(claim: str, condition) -> None:
    """Prove a bound: print the claim when the condition is true, raise AssertionError when it is not."""
    if not bool(condition):
        raise AssertionError(f"does not hold: {claim}")
    print(f"holds  {claim}")


class Race(NamedTuple):
    """Medians in seconds a call; ratio = ours / theirs (under 1: ours is faster); low, high: the ratio's quartiles."""

    ours: float
    theirs: float
    ratio: float
    low: float
    high: float


def _seconds(value: float) -> str:
    for unit, size in (("s", 1), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-6:.3g} µs"


def _result(claim: str, ours: list[float], theirs: list[float]) -> Race:
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    mine, other = statistics.median(ours), statistics.median(theirs)
    race = Race(mine, other, mine / other, low, high)
    print(
        f"timed  {claim}: ours {_seconds(mine)}, theirs {_seconds(other)}, ratio {race.ratio:.2f} "
        f"({low:.2f} to {high:.2f}, {len(ratios)} repeats)"
    )
    return race


def race(claim: str, ours: Callable[[], object], theirs: Callable[[], object], *, repeats: int = 20) -> Race:
    """Time two functions in this process, taken in turn so that both meet the same machine; print the ratio of medians.

    Each is called once before, to warm caches. The printed line differs from run to run: tag its cell
    `nbval-ignore-output` and state what must hold of the returned Race in the next one.
    """
    if repeats < 2:
        raise ValueError(f"repeats is {repeats}; at least 2 are needed for a spread")
    ours(), theirs()
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats):
        order = ((0, ours), (1, theirs)) if turn % 2 == 0 else ((1, theirs), (0, ours))
        for which, call in order:
            start = time.perf_counter()
            call()
            times[which].append(time.perf_counter() - start)
    return _result(claim, *times)


def race_apart(claim: str, ours: str, theirs: str, *, calls: int | tuple[int, int] = 10, repeats: int = 3) -> Race:
    """Time two programs, each in fresh processes, taken in turn; for code that slows whatever shares its process.

    ours, theirs: Python source that defines a function `step()`. Each process calls it once to warm up, then times
    `calls` calls; two numbers are those of ours and of theirs, so that a much faster one is timed for long enough, too.
    RuntimeError with the program's own message when it fails.
    """
    if repeats < 2:
        raise ValueError(f"repeats is {repeats}; at least 2 are needed for a spread")
    each = calls if isinstance(calls, tuple) else (calls, calls)

    def measure(program: str, n: int) -> float:
        harness = textwrap.dedent(f"""
            import time
            step()
            start = time.perf_counter()
            for _ in range({n}):
                step()
            print((time.perf_counter() - start) / {n})
        """)
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program) + harness], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{claim}: the timed program failed:\n{done.stderr.strip()}")
        return float(done.stdout.split()[-1])

    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            times[which].append(measure((ours, theirs)[which], each[which]))
    return _result(claim, *times)
