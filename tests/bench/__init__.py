"""The course's claims about speed and size of error, measured: `make bench` runs every row and prints one table.

A module of this package holds the rows of one lesson:

    @row("CB09: a training step beside micrograd's", at_most=1 / 3)
    def step():
        return race_apart("a training step", OURS, THEIRS)

A row returns a `Race`: ours, theirs, ratio = ours / theirs, and the quartiles of the ratio. The bound is on the ratio.
For something other than seconds, name the unit and fill in a `Race` by hand.
"""

import contextlib
import datetime
import importlib
import os
import pkgutil
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from threadpoolctl import threadpool_limits

from llmscratch.kit.proofs import Race
from llmscratch.kit.upkeep import markdown_table

HEAD = ["Claim", "Ours", "Theirs", "Ours / theirs", "Half of the repeats within", "Bound", "Met"]


class Row(NamedTuple):
    """A claim: `measure()` gives a Race, whose ratio must be at most, or at least, the bound."""

    claim: str
    bound: float
    upper: bool
    unit: str
    measure: Callable[[], Race]


class Result(NamedTuple):
    """A row that was measured. `race` is None, and `error` says why, when measuring it failed."""

    row: Row
    race: Race | None
    error: str = ""

    @property
    def met(self) -> bool:
        if self.race is None:
            return False
        ratio = float(self.race.ratio)  # a row may have measured with NumPy, whose truth values JSON does not take
        return ratio <= self.row.bound if self.row.upper else ratio >= self.row.bound


ROWS: list[Row] = []


def row(claim: str, *, at_most: float | None = None, at_least: float | None = None, unit: str = "s"):
    """Register the decorated function as a row of the table; exactly one bound is given."""
    if (at_most is None) == (at_least is None):
        raise ValueError(f"{claim}: give either at_most or at_least, the bound on ours / theirs")

    def register(measure: Callable[[], Race]) -> Callable[[], Race]:
        ROWS.append(Row(claim, at_least if at_most is None else at_most, at_most is not None, unit, measure))
        return measure

    return register


def against(ours: list[float], theirs: list[float]) -> Race:
    """A Race from repeats of ours and theirs (or a limit), pair by pair."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    mine, other = statistics.median(ours), statistics.median(theirs)
    return Race(mine, other, mine / other, low, high)


def discover() -> list[Row]:
    """Import every module of this package; all rows, in the order of the modules' names."""
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
        if module.name != "__main__":
            importlib.import_module(f"{__name__}.{module.name}")
    return ROWS


def measure(rows: list[Row]) -> list[Result]:
    """Measure the rows in turn, on one thread; what they print goes to stderr. A row that raises stops no other.

    With more threads, two libraries in one process disturb each other's pools, and the ratios swing by a factor of ten.
    """
    results = []
    for this in rows:
        try:
            with contextlib.redirect_stdout(sys.stderr), threadpool_limits(1):
                results.append(Result(this, this.measure()))
        except Exception as error:  # whatever a benchmark raises is shown in its row
            results.append(Result(this, None, f"{type(error).__name__}: {error}"))
    return results


def machine() -> dict[str, str | int]:
    """The class of machine and the versions that figures depend on."""
    versions = {name: version(name) for name in ("numpy", "torch", "scikit-learn", "micrograd")}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": _cpu(), "cores": cores, "system": platform.system(), "python": platform.python_version()} | versions


def _cpu() -> str:
    if sys.platform == "darwin":
        asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() or platform.machine()
    info = Path("/proc/cpuinfo")
    for line in info.read_text(encoding="utf-8").splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def report(results: list[Result]) -> dict:
    """What goes into the JSON file."""
    rows = []
    for row, race, error in results:
        bound = {"at_most" if row.upper else "at_least": row.bound}
        figures = race._asdict() if race else {"error": error}
        rows.append({"claim": row.claim, "unit": row.unit} | figures | bound | {"met": Result(row, race).met})
    return {"date": datetime.date.today().isoformat(), "machine": machine(), "rows": rows}


def cells(result: Result) -> list[str]:
    """A result as the texts of a table's row."""
    row, race = result.row, result.race
    bound = f"{'≤' if row.upper else '≥'} {row.bound:.3g}"
    if race is None:
        return [row.claim, "–", "–", "–", "–", bound, f"no: {result.error}"]
    figures = [quantity(race.ours, row.unit), quantity(race.theirs, row.unit), f"{race.ratio:.3g}"]
    return [row.claim, *figures, f"{race.low:.3g} to {race.high:.3g}", bound, "yes" if result.met else "no"]


def quantity(value: float, unit: str) -> str:
    """A number with its unit; seconds below 1 as ms or µs."""
    if unit == "s":
        for size, name in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
            if value >= size:
                return f"{value / size:.3g} {name}"
    return f"{value:.3g} {unit}".rstrip()


def markdown(results: list[Result], said: dict) -> str:
    """The README's table, with the date and the class of machine."""
    at = said["machine"]
    versions = f"Python {at['python']}, NumPy {at['numpy']}, torch {at['torch'].split('+')[0]}"
    where = f"{at['cpu']}, {at['cores']} cores, one thread a program, {at['system']}; {versions}"
    intro = f"Measured on {said['date']} by `make bench` ({where})."
    return f"{intro}\n\n{markdown_table(HEAD, [cells(result) for result in results])}"
