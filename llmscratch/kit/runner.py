"""Runs notebooks, each in its own kernel through papermill's engine, and keeps whole executed copies of them."""

import contextlib
import json
import logging
import os
import re
import shutil
import signal
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
import psutil
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbclient.util import run_sync
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine
from papermill.iorw import load_notebook_node

from llmscratch.kit.lessons import Notebook

NEEDED_DISK = 200_000_000  # bytes: room for the copies and for what the lessons keep in their temporary folders
SAMPLE_SECONDS = 0.2
ANSI = re.compile(r"\x1b\[[0-9;]*m")


class CannotRun(Exception):
    """A run cannot start; the message says why and what to do."""


@dataclass
class Outcome:
    """What became of one notebook: "ok", "failed" or "stopped"; `error` says where and why, in one line."""

    notebook: Notebook
    result: str = "stopped"
    error: str = ""
    seconds: float = 0.0
    peak: int = 0  # bytes, of the kernel and its children together
    finale: str = ""  # what the cells tagged `finale` printed


class Listener:
    """Told how a run goes; this one does nothing with it."""

    def begin(self, notebook: Notebook, cells: int) -> None:
        """A notebook with so many code cells starts."""

    def cell(self, done: int, heading: str) -> None:
        """So many of its code cells are done; the next one stands under `heading`."""

    def end(self, outcome: Outcome) -> None:
        """The notebook is through, or has failed. Not called for a notebook that was stopped."""


def size(count: int) -> str:
    """A number of bytes for people: "345 MB", "1.2 GB"."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def free_disk(path: Path) -> int:
    """Free bytes where `path` is, or where it would be made."""
    return shutil.disk_usage(next(place for place in (path, *path.parents) if place.exists())).free


def kernel_spec(name: str):
    """The installed Jupyter kernel of that name; CannotRun says how to install it."""
    manager = KernelSpecManager()
    try:
        return manager.get_kernel_spec(name)
    except NoSuchKernel:
        named = "" if name == "python3" else f" --name {name}"
        there = ", ".join(sorted(manager.find_kernel_specs())) or "none"
        raise CannotRun(
            f"the Jupyter kernel {name!r} is not installed here (installed: {there}). "
            f"Install it: python -m ipykernel install --sys-prefix{named}"
        ) from None


def prepare(chosen: list[Notebook], out: Path) -> None:
    """Make the folder for the copies; raise CannotRun when the kernel, the disk or the folder would not do."""
    for notebook in chosen:
        try:
            kernel_spec(_kernel_name(json.loads(notebook.path.read_text(encoding="utf-8"))))
        except CannotRun as error:
            raise CannotRun(f"{notebook.id} {notebook.name}: {error}") from None
        if _copy(notebook, out) == notebook.path.resolve():
            raise CannotRun(
                f"the executed copies would overwrite the lessons in {out}. Choose another folder with --out."
            )
    for place in (out, Path(tempfile.gettempdir())):
        free = free_disk(place)
        if free < NEEDED_DISK:
            raise CannotRun(
                f"too little disk: a run needs {size(NEEDED_DISK)} free, and there are {size(free)} at {place}. "
                "Free some, or choose another disk (--out for the copies, TMPDIR for temporary files)."
            )
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise CannotRun(
            f"the executed copies cannot be written to {out} ({error.strerror}). Choose another folder with --out."
        ) from error


def run(chosen: list[Notebook], out: Path, *, timeout: int | None, listener: Listener) -> tuple[list[Outcome], int]:
    """Run the notebooks one after another; (what became of them, the signal that stopped the run or 0).

    out: the folder for the executed copies, made by `prepare`; each is moved into place when it is whole.
    timeout: seconds that one cell may take, None for any.
    Ctrl-C (or SIGTERM, SIGHUP) ends the kernel at once and keeps the copies of the notebooks that were through.
    """
    outcomes: list[Outcome] = []
    with _signals() as received:
        try:
            for notebook in chosen:
                outcomes.append(Outcome(notebook))
                _run_one(outcomes[-1], _copy(notebook, out), timeout, listener)
                listener.end(outcomes[-1])
        except KeyboardInterrupt:
            # What the kernel's client had still to wait for was broken off with it and is of no interest.
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    return outcomes, received[0] if received else 0


def _copy(notebook: Notebook, out: Path) -> Path:
    return out.resolve() / notebook.series / notebook.path.name


def _kernel_name(nb: dict) -> str:
    return nb.get("metadata", {}).get("kernelspec", {}).get("name") or "python3"


@contextlib.contextmanager
def _signals():
    """Turn the first signal to stop into KeyboardInterrupt; ignore the rest, so that cleaning up is not broken off.

    After a signal they stay ignored: a second Ctrl-C may come as late as the interpreter's own end.
    """
    received: list[int] = []

    def stop(number, frame):
        received.append(number)
        if len(received) == 1:
            raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number and signal.getsignal(number) is not signal.SIG_IGN:  # ignored under nohup: stay so
                before[number] = signal.signal(number, stop)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if received else handler)


class _Client(PapermillNotebookClient):
    """Waits for no kernel to say goodbye when the execution was broken off."""

    def papermill_execute_cells(self):
        try:
            super().papermill_execute_cells()
        except BaseException:
            self.shutdown_kernel = "immediate"
            raise


class _Engine(NBClientEngine):
    """papermill's engine, which tells `watch` of the kernel and of each code cell.

    Called directly rather than through `papermill.execute_notebook`, which would add cells of its own to the copy of a
    notebook that failed, and count a cell tagged `raises-exception` as a failure.
    """

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, *, watch, folder, timeout, **_):
        log = logging.getLogger("llmscratch.runner")
        log.addHandler(logging.NullHandler())
        log.propagate = False  # the client reports a dead kernel there, too; Outcome says it
        client = _Client(
            nb_man,
            kernel_name=kernel_name,
            timeout=timeout,
            startup_timeout=120,
            iopub_timeout=60,
            log=log,
            on_notebook_start=lambda notebook: watch.kernel_started(client.km.provisioner.pid),
            on_cell_execute=watch.cell_begins,
            on_cell_executed=watch.cell_ends,
        )
        try:
            # What a kernel says outside its cells would land in the middle of the progress bar.
            with open(os.devnull, "w") as nowhere:
                client.execute(cwd=folder, stdout=nowhere, stderr=nowhere)
        finally:
            if client.km is not None and client.km.has_kernel:  # stopped while it was starting
                run_sync(client.km.shutdown_kernel)(now=True)


class _Watch:
    """Follows one notebook through its kernel: the cell it is at, and the most memory it has taken."""

    def __init__(self, nb, listener: Listener):
        self.nb, self.listener = nb, listener
        self.at: int | None = None
        self.done = 0
        self.peak = 0
        self._over = threading.Event()
        self._sampler: threading.Thread | None = None

    def kernel_started(self, pid: int) -> None:
        self._sampler = threading.Thread(target=self._sample, args=(psutil.Process(pid),), daemon=True)
        self._sampler.start()

    def cell_begins(self, cell, cell_index: int) -> None:
        self.at = cell_index
        self.listener.cell(self.done, _heading(self.nb, cell_index))

    def cell_ends(self, cell, cell_index: int, execute_reply) -> None:
        self.done += 1
        self.listener.cell(self.done, _heading(self.nb, cell_index))

    def close(self) -> None:
        self._over.set()
        if self._sampler:
            self._sampler.join()

    def _sample(self, kernel: psutil.Process) -> None:
        while not self._over.is_set():
            with contextlib.suppress(psutil.Error):  # a process that ends while it is looked at
                family = [kernel, *kernel.children(recursive=True)]
                self.peak = max(self.peak, sum(process.memory_info().rss for process in family))
            self._over.wait(SAMPLE_SECONDS)


def _run_one(outcome: Outcome, copy: Path, timeout: int | None, listener: Listener) -> None:
    """Execute a notebook, write its copy, fill in the outcome."""
    start = time.perf_counter()
    try:
        nb = load_notebook_node(str(outcome.notebook.path))
        nbformat.validate(nb)
    except Exception as error:  # nbformat raises many unrelated types; each means that this is no notebook
        outcome.result, outcome.error = "failed", f"is not a notebook that can be read: {_last_line(error)}"
        return
    listener.begin(outcome.notebook, sum(cell.cell_type == "code" and bool(cell.source.strip()) for cell in nb.cells))
    watch = _Watch(nb, listener)
    try:
        with tempfile.TemporaryDirectory(prefix="llmscratch-", ignore_cleanup_errors=True) as folder:
            outcome.error = _execute(nb, watch, folder, timeout)
        _write(nb, copy)
        outcome.result = "failed" if outcome.error else "ok"
        outcome.finale = _finale(nb)
    except OSError as error:
        outcome.result, outcome.error = "failed", f"its executed copy could not be written: {error}"
    finally:
        watch.close()
        outcome.seconds, outcome.peak = time.perf_counter() - start, watch.peak


def _execute(nb, watch: _Watch, folder: str, timeout: int | None) -> str:
    """Execute the notebook in place; what went wrong and where, or ""."""
    options = {"watch": watch, "folder": folder, "timeout": timeout}
    try:
        _Engine.execute_notebook(nb, _kernel_name(nb), progress_bar=False, autosave_cell_every=0, **options)
    except DeadKernelError:
        problem = (
            f"the kernel died. Most often memory has run out (the kernel held {size(watch.peak)}, "
            f"{size(psutil.virtual_memory().available)} are free now): close other programs and run this lesson alone."
        )
    except CellTimeoutError:
        problem = f"the cell took longer than {timeout} s; --timeout allows more."
    except Exception as error:  # whatever stops one notebook, the next ones still run
        problem = _last_line(error)
    else:
        broken = [at for at, cell in enumerate(nb.cells) if cell.metadata.papermill.get("exception") is True]
        if not broken:
            return ""
        outputs = [output for output in nb.cells[broken[0]].outputs if output.output_type == "error"]
        raised = f"{outputs[-1].ename}: {outputs[-1].evalue}" if outputs else "the cell failed without saying why"
        return f"{_place(nb, broken[0])}: {_one_line(raised)}"
    if watch.at is None:
        return f"the kernel did not start: {problem}"
    said = nbformat.v4.new_output("error", ename="NotFinished", evalue=problem, traceback=[problem])
    nb.cells[watch.at].outputs.append(said)
    return f"{_place(nb, watch.at)}: {problem}"


def _finale(nb) -> str:
    """What the cells tagged `finale` printed: the words that a run ends with."""
    cells = [cell for cell in nb.cells if cell.cell_type == "code" and "finale" in cell.metadata.get("tags", [])]
    said = [output.text for cell in cells for output in cell.outputs if output.get("name") == "stdout"]
    return ANSI.sub("", "".join(said)).strip()


def _write(nb, copy: Path) -> None:
    """Write the copy under a temporary name and move it into place."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    part = copy.with_name(f".{copy.name}.{os.getpid()}.part")
    try:
        part.write_text(nbformat.writes(nb), encoding="utf-8")
        os.replace(part, copy)
    finally:
        part.unlink(missing_ok=True)


def _place(nb, at: int) -> str:
    count = nb.cells[at].execution_count or sum(cell.cell_type == "code" for cell in nb.cells[: at + 1])
    heading = _heading(nb, at)
    return f"cell [{count}] under “{heading}”" if heading else f"cell [{count}]"


def _heading(nb, at: int) -> str:
    """The last Markdown heading above a cell, or ""."""
    for cell in reversed(nb.cells[:at]):
        if cell.cell_type == "markdown":
            lines = re.findall(r"^#{1,6} +(.+?)\s*$", cell.source, flags=re.MULTILINE)
            if lines:
                return lines[-1]
    return ""


def _one_line(text: str) -> str:
    """The first line of an error's text, and its last when it has several: claim and cause."""
    lines = [line.strip() for line in ANSI.sub("", text).splitlines() if line.strip()]
    return lines[0] if len(lines) < 2 else f"{lines[0]} … {lines[-1]}"


def _last_line(error: Exception) -> str:
    return _one_line(f"{type(error).__name__}: {error}")
