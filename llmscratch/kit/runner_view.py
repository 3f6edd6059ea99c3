"""What a reader sees of a run: live bars on a terminal, plain lines elsewhere, and the closing table."""

from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from llmscratch.kit.lessons import Notebook
from llmscratch.kit.runner import Listener, Outcome, size


@contextmanager
def view(console: Console, count: int):
    """A listener that shows a run of `count` notebooks while it goes."""
    if console.is_dumb_terminal or not console.file.isatty():
        yield _Lines(console)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Bars(progress, count)


def summary(console: Console, outcomes: list[Outcome], out: Path) -> None:
    """The closing table, the errors, where the copies are, and last what the lessons say at the end of a run."""
    table = Table("Lesson")
    table.add_column("Seconds", justify="right")
    table.add_column("Peak memory", justify="right")
    table.add_column("Result")
    for outcome in outcomes:
        style = "green" if outcome.result == "ok" else "bold red"
        memory = size(outcome.peak) if outcome.peak else "–"
        table.add_row(_name(outcome.notebook), f"{outcome.seconds:.1f}", memory, outcome.result, style=style)
    console.print(table)
    for outcome in outcomes:
        if outcome.result == "failed":
            console.print(f"{_name(outcome.notebook)}: {outcome.error}", soft_wrap=True)
        elif outcome.result == "stopped":
            console.print(f"Stopped in {_name(outcome.notebook)}, which has no copy of this run.", soft_wrap=True)
    console.print(f"Executed copies: {out}", soft_wrap=True)
    for outcome in outcomes:
        if outcome.finale:
            console.print(f"\n{outcome.finale}")


def _name(notebook: Notebook) -> str:
    return f"{notebook.id} {notebook.name[3:]}"


class _Lines(Listener):
    """One plain line for each notebook that ends."""

    def __init__(self, console: Console):
        self.console = console

    def end(self, outcome: Outcome) -> None:
        found = f": {outcome.error}" if outcome.error else ""
        line = f"{outcome.result:6} {_name(outcome.notebook)} ({outcome.seconds:.1f} s, {size(outcome.peak)}){found}"
        self.console.print(line, soft_wrap=True)
        self.console.file.flush()


class _Bars(Listener):
    """One bar for the notebooks, one for the code cells of the current one."""

    def __init__(self, progress: Progress, count: int):
        self.progress = progress
        self.notebooks = progress.add_task("Notebooks", total=count)
        self.cells = progress.add_task("starting", total=None)

    def begin(self, notebook: Notebook, cells: int) -> None:
        self.current = _name(notebook)
        self.progress.reset(self.cells, total=cells, description=self.current)

    def cell(self, done: int, heading: str) -> None:
        where = f"{self.current} · {heading[:40]}" if heading else self.current
        self.progress.update(self.cells, completed=done, description=where)

    def end(self, outcome: Outcome) -> None:
        self.progress.advance(self.notebooks)
