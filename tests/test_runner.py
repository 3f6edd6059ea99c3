"""Real runs of small notebooks in real kernels: what is kept, what is reported, and what is left behind (nothing)."""

import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import psutil
import pytest
from rich.console import Console
from small_course import files, lesson, printed

from llmscratch.kit import lessons, runner, runner_view

KEEP_PID = "import os, pathlib; pathlib.Path({!r}).write_text(str(os.getpid()))"
CHILD = """\
import subprocess, sys
held = "import time; block = bytearray(200_000_000); time.sleep(0.8)"
subprocess.run([sys.executable, "-c", held], check=True)"""


class Notes(runner.Listener):
    """Writes down what it is told."""

    def __init__(self):
        self.told = []

    def begin(self, notebook, cells):
        self.told.append(("begin", notebook.id, cells))

    def cell(self, done, heading):
        self.told.append(("cell", done, heading))

    def end(self, outcome):
        self.told.append(("end", outcome.notebook.id, outcome.result))


class Ran:
    """A run of four lessons of which two go wrong, each in a way of its own."""

    def __init__(self, folder):
        self.root, self.out, basis = folder / "course", folder / "out", folder / "course" / "01_common_basis"
        lesson(
            basis / "01_fine.ipynb",
            "import os; print(os.getcwd(), os.getpid(), os.environ['LLMSCRATCH_SCALE'])",
            "## A child",
            CHILD,
            "",
            "open('left behind.txt', 'w').close()",
        )
        lesson(
            basis / "02_fails.ipynb",
            "1",
            "## The division\n\ntext",
            "raise ValueError('the claim\\nmore\\nthe cause')",
            "2",
        )
        lesson(basis / "03_dies.ipynb", "## Too much", "import os; os._exit(1)", "1")
        lesson(
            folder / "course" / "02_for_scientist" / "01_shown.ipynb",
            "1 / 0",
            "print('on')",
            tags=("raises-exception", "finale"),
        )
        self.before = files(self.root)
        self.notes = Notes()
        chosen = lessons.notebooks(self.root)
        runner.prepare(chosen, self.out)
        self.outcomes, self.stopped = runner.run(chosen, self.out, timeout=None, listener=self.notes)
        self.copies = [self.out / notebook.series / notebook.path.name for notebook in chosen]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMSCRATCH_SCALE", "full")
        return Ran(tmp_path_factory.mktemp("ran"))


def test_a_failure_does_not_keep_the_next_lessons_from_running(ran):
    assert [outcome.result for outcome in ran.outcomes] == ["ok", "failed", "failed", "ok"]
    assert ran.stopped == 0
    assert all(outcome.seconds > 0 for outcome in ran.outcomes)


def test_the_kernel_gets_the_scale_and_a_folder_of_its_own_that_is_gone_afterwards(ran):
    folder, pid, scale = printed(ran.copies[0]).split()
    assert scale == "full"
    assert not Path(folder).exists() and Path(folder).parent == Path(tempfile.gettempdir())
    assert gone(int(pid))


def test_a_run_leaves_the_course_as_it_was_and_the_copies_alone_in_the_other_folder(ran):
    assert files(ran.root) == ran.before
    assert files(ran.out) == sorted(
        {copy.relative_to(ran.out).as_posix() for copy in ran.copies} | {"01_common_basis", "02_for_scientist"}
    )


def test_the_peak_counts_the_kernels_children(ran):
    assert 220e6 < ran.outcomes[0].peak < 600e6
    assert 20e6 < ran.outcomes[3].peak < 200e6


def test_an_error_is_reported_with_cell_heading_first_and_last_line(ran):
    assert ran.outcomes[1].error == "cell [2] under “The division”: ValueError: the claim … the cause"


def test_the_copy_of_a_failed_lesson_is_whole_and_has_the_error_and_no_cells_that_are_not_the_lessons(ran):
    lesson_cells = nbformat.read(ran.root / "01_common_basis" / "02_fails.ipynb", as_version=4).cells
    copy = nbformat.read(ran.copies[1], as_version=4)
    assert [cell.source for cell in copy.cells] == [cell.source for cell in lesson_cells]
    assert [output.ename for output in copy.cells[3].outputs] == ["ValueError"]
    assert copy.cells[4].execution_count is None


def test_a_dead_kernel_is_a_failure_that_speaks_of_memory(ran):
    error = ran.outcomes[2].error
    assert error.startswith(
        "cell [1] under “Too much”: the kernel died. Most often memory has run out (the kernel held "
    )
    assert "the kernel died" in nbformat.read(ran.copies[2], as_version=4).cells[2].outputs[-1].evalue


def test_a_cell_that_is_meant_to_raise_is_no_failure(ran):
    assert printed(ran.copies[3]) == "on\n"


def test_a_run_ends_with_the_words_of_the_cells_tagged_finale(ran):
    assert [outcome.finale for outcome in ran.outcomes] == ["", "", "", "on"]
    said = Console(file=io.StringIO(), width=200)
    runner_view.summary(said, ran.outcomes, ran.out)
    assert said.file.getvalue().splitlines()[-3:] == [f"Executed copies: {ran.out}", "", "on"]


def test_the_listener_follows_the_code_cells(ran):
    first = ran.notes.told[: ran.notes.told.index(("end", "CB01", "ok")) + 1]
    assert first[0] == ("begin", "CB01", 3)
    title, child = "Title of 01_fine", "A child"
    assert first[1:-1] == [("cell", 0, title), ("cell", 1, title)] + [("cell", n, child) for n in (1, 2, 2, 3)]


def test_a_cell_over_its_time_is_a_failure_that_names_the_option(tmp_path):
    lesson(tmp_path / "01_common_basis" / "04_hangs.ipynb", "import time; time.sleep(60)")
    [outcome], _ = runner.run(lessons.notebooks(tmp_path), tmp_path / "out", timeout=1, listener=runner.Listener())
    assert (outcome.result, outcome.error) == (
        "failed",
        "cell [1] under “Title of 04_hangs”: the cell took longer than 1 s; --timeout allows more.",
    )
    assert outcome.seconds < 30
    copy = nbformat.read(tmp_path / "out" / "01_common_basis" / "04_hangs.ipynb", as_version=4)
    assert "took longer than 1 s" in copy.cells[1].outputs[0].evalue


def test_a_lesson_that_is_no_notebook_and_a_copy_that_cannot_be_written_are_failures(tmp_path):
    basis, out = tmp_path / "01_common_basis", tmp_path / "out"
    lesson(basis / "01_fine.ipynb", "1")
    (basis / "02_odd.ipynb").write_text(
        '{"cells": [{"source": "# Odd"}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'
    )
    chosen = lessons.notebooks(tmp_path)
    runner.prepare(chosen, out)
    (out / "01_common_basis" / "01_fine.ipynb").mkdir(parents=True)  # stands where the copy should go
    outcomes, _ = runner.run(chosen, out, timeout=None, listener=runner.Listener())
    assert [outcome.result for outcome in outcomes] == ["failed", "failed"]
    assert "executed copy could not be written" in outcomes[0].error
    assert "is not a notebook that can be read" in outcomes[1].error
    assert files(out) == ["01_common_basis", "01_common_basis/01_fine.ipynb"]


def test_a_kernel_that_does_not_start_is_a_failure(tmp_path, monkeypatch):
    spec = tmp_path / "share" / "kernels" / "broken"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text('{"argv": ["/nowhere/python"], "display_name": "broken", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share"))
    lesson(tmp_path / "01_common_basis" / "01_one.ipynb", "1", kernel="broken")
    chosen = lessons.notebooks(tmp_path)
    runner.prepare(chosen, tmp_path / "out")
    outcomes, _ = runner.run(chosen, tmp_path / "out", timeout=None, listener=runner.Listener())
    assert outcomes[0].result == "failed"
    assert outcomes[0].error.startswith("the kernel did not start: FileNotFoundError: ")


def one_lesson(root, **options):
    lesson(root / "01_common_basis" / "01_one.ipynb", "1", **options)
    return lessons.notebooks(root)


def test_a_missing_kernel_is_named_with_the_command_that_installs_it(tmp_path):
    with pytest.raises(runner.CannotRun) as caught:
        runner.prepare(one_lesson(tmp_path, kernel="ghost"), tmp_path / "out")
    assert "CB01 01_one: the Jupyter kernel 'ghost' is not installed here (installed: " in str(caught.value)
    assert str(caught.value).endswith("python -m ipykernel install --sys-prefix --name ghost")
    assert not (tmp_path / "out").exists()


def test_too_little_disk_is_said_in_numbers(tmp_path, monkeypatch):
    chosen = one_lesson(tmp_path)
    monkeypatch.setattr(runner.shutil, "disk_usage", lambda path: SimpleNamespace(free=12_000_000))
    with pytest.raises(runner.CannotRun, match="too little disk: a run needs 200 MB free, and there are 12 MB at "):
        runner.prepare(chosen, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_or_written_to_is_said(tmp_path):
    chosen = one_lesson(tmp_path)
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(runner.CannotRun, match=r"cannot be written to .*file.*Choose another folder with --out"):
            runner.prepare(chosen, out)


def test_copies_never_overwrite_the_lessons(tmp_path):
    with pytest.raises(runner.CannotRun, match="would overwrite the lessons"):
        runner.prepare(one_lesson(tmp_path), tmp_path)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def stopped_run(root, number, times):
    """Run a course whose second lesson sleeps, send it a signal so often; (exit status, stdout, stderr, kernel)."""
    mark = root / "kernel.pid"
    lesson(root / "01_common_basis" / "01_fine.ipynb", "print('whole')")
    lesson(
        root / "01_common_basis" / "02_slow.ipynb",
        "## Waiting",
        KEEP_PID.format(str(mark)) + "\nimport time; time.sleep(60)",
    )
    lesson(root / "01_common_basis" / "03_never.ipynb", "1")
    program = Path(sys.executable).with_name("llmscratch")
    (root / "tmp").mkdir()
    command = [program, "run", "all", "--root", root, "--out", root / "out"]
    run = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(root / "tmp")},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # the tests' own may be ignored
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (mark.exists() and mark.read_text()):
        assert run.poll() is None and time.monotonic() < deadline, run.communicate()
        time.sleep(0.05)
    for _ in range(times):
        run.send_signal(number)
        time.sleep(0.1)
    out, err = run.communicate(timeout=30)
    return run.returncode, out, err, int(mark.read_text())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to send")
@pytest.mark.parametrize(("number", "times", "status"), [(signal.SIGINT, 2, 130), (signal.SIGTERM, 1, 143)])
def test_ctrl_c_and_kill_end_the_kernel_and_keep_whole_copies_only(tmp_path, number, times, status):
    returned, out, err, kernel = stopped_run(tmp_path, number, times)
    assert (returned, err) == (status, "")
    assert gone(kernel)
    assert files(tmp_path / "out") == ["01_common_basis", "01_common_basis/01_fine.ipynb"]
    assert printed(tmp_path / "out" / "01_common_basis" / "01_fine.ipynb") == "whole\n"
    assert files(tmp_path / "tmp") == []
    assert "│ CB01 fine │" in out and "│ CB02 slow │" in out and "never" not in out
    assert "Stopped in CB02 slow" in out and f"Executed copies: {tmp_path / 'out'}" in out


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to send")
def test_even_a_kill_that_cannot_be_caught_leaves_no_kernel_and_no_half_copy(tmp_path):
    returned, _, _, kernel = stopped_run(tmp_path, signal.SIGKILL, 1)
    assert returned == -signal.SIGKILL
    assert files(tmp_path / "out") == ["01_common_basis", "01_common_basis/01_fine.ipynb"]
    deadline = time.monotonic() + 10  # a kernel looks for its parent once a second
    while not gone(kernel) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert gone(kernel)
