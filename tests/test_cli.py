"""The command line as a reader meets it: what it prints and with which status it ends."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from small_course import files, lesson, printed

import llmscratch
from llmscratch.engineer import rag
from llmscratch.kit import cli, lessons, runner_view
from llmscratch.kit.runner import Outcome
from llmscratch.scientist import storyteller

PROGRAM = Path(sys.executable).with_name("llmscratch")


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("LLMSCRATCH_SCALE", raising=False)


@pytest.fixture
def root(tmp_path):
    lesson(tmp_path / "01_common_basis" / "07_first.ipynb", "print(6 * 7)", builds="a product", minutes=45)
    lesson(tmp_path / "01_common_basis" / "08_second.ipynb", "## Dividing", "1 / 0", tour=False)
    return tmp_path


def call(capsys, *words):
    status = cli.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return status, out, err


def test_what_the_reader_built_is_a_command(capsys, monkeypatch):
    heard = []
    monkeypatch.setattr(storyteller, "command", heard.append)
    monkeypatch.setattr(rag, "command", heard.append)
    assert call(capsys, "story", "--seed", 3, "One day")[0] == 0
    assert call(capsys, "ask", "Who built", "the Raven Mill?")[0] == 0
    assert heard == [("--seed", "3", "One day"), ("Who built", "the Raven Mill?")]
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert "let the Storyteller tell a story" in out and "answer a question from the almanac, with the source" in out


def test_list_shows_every_lesson(root, capsys):
    status, out, _ = call(capsys, "list", "--root", root)
    assert status == 0
    assert [" ".join(line.split()) for line in out.splitlines()] == [
        "Lesson Title You build Read Run Tour",
        "CB07 Title of 07_first a product 45 min 7 s yes",
        "CB08 Title of 08_second something small 30 min 7 s",
    ]


def test_list_does_not_load_what_only_a_run_needs(root):
    code = "import sys; from llmscratch.kit.cli import main; main(sys.argv[1:]); print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code, "list", "--root", root], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "llmscratch.kit.cli" in loaded
    assert not loaded & {"torch", "papermill", "jupyter_client", "nbformat", "transformers", "datasets", "sklearn"}


def test_run_takes_the_tour_and_says_where_the_copies_are(root, capsys):
    before = files(root)
    status, out, err = call(capsys, "run", "--root", root)
    copies = ["executed", "executed/01_common_basis", "executed/01_common_basis/07_first.ipynb"]
    assert (status, err) == (0, "")
    assert files(root) == sorted(before + copies)
    assert printed(root / copies[-1]) == "42\n"
    lines = out.splitlines()
    assert lines[0].startswith("ok     CB07 first (") and "second" not in out
    assert lines[-1] == f"Executed copies: {root / 'executed'}"
    assert "\x1b" not in out


def test_run_goes_on_after_a_failure_and_ends_with_status_1(root, tmp_path, capsys):
    lesson(root / "02_for_scientist" / "01_third.ipynb", "1")
    status, out, _ = call(capsys, "run", "second", "4S", "--root", root, "--out", tmp_path / "copies")
    assert status == 1
    assert "CB08 second: cell [1] under “Dividing”: ZeroDivisionError: division by zero" in out.splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert [(row[0], row[3]) for row in rows] == [("CB08 second", "failed"), ("4S01 third", "ok")]
    assert all(float(row[1]) > 0 and row[2].endswith(" MB") for row in rows)
    assert (tmp_path / "copies" / "01_common_basis" / "08_second.ipynb").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["frist"], "no lesson is called 'frist'. Did you mean CB07 first"),
        (["tour", "--out", "{root}/file/below"], "cannot be written to"),
        (["tour", "--out", "{root}"], "would overwrite the lessons"),
        (["ghostly"], "the Jupyter kernel 'ghost' is not installed here"),
    ],
)
def test_a_run_that_cannot_start_ends_with_status_2_and_leaves_nothing(root, capsys, words, message):
    lesson(root / "01_common_basis" / "09_ghostly.ipynb", "1", kernel="ghost", tour=False)
    (root / "file").write_text("")
    before = files(root)
    status, out, err = call(capsys, "run", *[word.format(root=root) for word in words], "--root", root)
    assert (status, out) == (2, "")
    assert err.startswith("llmscratch run: ") and message in err
    assert files(root) == before


def test_too_little_disk_ends_with_status_2(root, capsys, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=150_000_000))
    status, _, err = call(capsys, "run", "--root", root)
    assert status == 2 and "needs 200 MB free, and there are 150 MB" in err


def test_a_wrong_scale_ends_with_status_2(root, capsys, monkeypatch):
    monkeypatch.setenv("LLMSCRATCH_SCALE", "huge")
    status, _, err = call(capsys, "run", "--root", root)
    assert status == 2 and "LLMSCRATCH_SCALE is 'huge'; it must be 'small' or 'full'" in err


@pytest.mark.parametrize("command", ["list", "run"])
def test_a_folder_without_lessons_and_a_broken_lesson_are_said(command, tmp_path, capsys):
    assert call(capsys, command, "--root", tmp_path)[::2] == (
        2, f"llmscratch {command}: {tmp_path} is not a checkout of the course: it has no folder 01_common_basis\n",
    )  # fmt: skip
    (tmp_path / "01_common_basis").mkdir()
    assert call(capsys, command, "--root", tmp_path)[::2] == (
        2, f"llmscratch {command}: there are no notebooks in {tmp_path}\n",
    )  # fmt: skip
    (tmp_path / "01_common_basis" / "01_broken.ipynb").write_text("{")
    status, _, err = call(capsys, command, "--root", tmp_path)
    assert status == 2 and "01_broken.ipynb is not a notebook that can be read" in err


def test_an_installed_copy_without_notebooks_says_what_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(lessons, "checkout", lambda: None)
    monkeypatch.chdir(tmp_path)
    status, _, err = call(capsys, "list")
    assert status == 2 and "Clone the repository" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "required: command"),
        (["fly"], "invalid choice: 'fly'"),
        (["run", "--timeout", "0"], "'0' is not a whole number of seconds above 0"),
        (["run", "--timeout", "soon"], "'soon' is not a whole number"),
    ],
)
def test_wrong_usage_ends_with_status_2(capsys, words, message):
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_help_and_version(capsys):
    for words, said in (
        (["--help"], ["list", "run", "lab", "progress", "doctor", "130 stopped by Ctrl-C"]),
        (["run", "--help"], ["--out", "--timeout", "CB09"]),
        (["--version"], [f"llmscratch {llmscratch.__version__}"]),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        out = capsys.readouterr().out
        assert ended.value.code == 0 and all(text in out for text in said)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_live_bars_for_notebooks_and_cells(root):
    first, second = lessons.notebooks(root)
    console = Console(file=Terminal(), force_terminal=True, color_system=None, width=100, _environ={"TERM": "xterm"})
    with runner_view.view(console, 2) as listener:
        listener.begin(first, 4)
        listener.end(Outcome(first, "ok"))
        listener.begin(second, 8)
        listener.cell(3, "Dividing")
        listener.progress.refresh()
    shown = console.file.getvalue().splitlines()
    assert any("Notebooks " in line and " 1/2 " in line for line in shown)
    assert any("CB08 second · Dividing " in line and " 3/8 " in line for line in shown)


def test_no_terminal_gets_one_plain_line_a_notebook(root):
    first, second = lessons.notebooks(root)
    console = Console(file=io.StringIO(), width=20)
    with runner_view.view(console, 2) as listener:
        for outcome in (
            Outcome(first, "ok", "", 1.25, 2_500_000_000),
            Outcome(second, "failed", "cell [1]: odd", 2.0, 5e6),
        ):
            listener.begin(outcome.notebook, 3)
            listener.cell(1, "Dividing")
            listener.end(outcome)
    assert console.file.getvalue().splitlines() == [
        "ok     CB07 first (1.2 s, 2.5 GB)",
        "failed CB08 second (2.0 s, 5 MB): cell [1]: odd",
    ]


def test_lab_starts_jupyterlab_at_the_lessons_and_ends_as_it_ends(root, tmp_path):
    fake = tmp_path / "packages" / "jupyterlab"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text("")
    (fake / "__main__.py").write_text("import os, sys; print(os.getcwd(), *sys.argv[1:]); sys.exit(5)")
    done = subprocess.run(
        [PROGRAM, "lab", "--root", root, "--", "--no-browser"], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(fake.parent)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (5, f"{root} --no-browser\n")


def test_lab_says_when_jupyterlab_is_missing(root, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "jupyterlab", None)
    status, _, err = call(capsys, "lab", "--root", root)
    assert status == 2 and "python -m pip install jupyterlab" in err


def test_progress_is_drawn_with_titles(root, tmp_path, capsys, monkeypatch):
    from llmscratch.exercises import Lesson, show

    taught = Lesson("CB07")
    for number in (1, 2):
        taught.add(number, 2, "t", check=None, hints=["h"], solution=None, wrong={})
    monkeypatch.setattr(show, "all_lessons", lambda: [taught])
    monkeypatch.setenv("LLMSCRATCH_HOME", str(tmp_path))
    (tmp_path / "progress.json").write_text(json.dumps({"CB07": {"2": "right"}}))
    status, out, _ = call(capsys, "progress", "--root", root)
    assert status == 0
    assert "CB07 Title of 07_first │ 1 ·  2 ✓ " in out and "2 of 4 ★" in out


def test_progress_that_cannot_be_read_ends_with_status_1_and_stays(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LLMSCRATCH_HOME", str(tmp_path))
    file = tmp_path / "progress.json"
    file.write_text("{broken")
    status, out, err = call(capsys, "progress")
    assert (status, out) == (1, "")
    assert "your progress cannot be read" in err and str(file) in err and "move it away" in err
    assert file.read_text() == "{broken"


def test_a_stream_without_unicode_is_no_reason_to_stop(root):
    done = subprocess.run(
        [PROGRAM, "list", "--root", root], capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert done.returncode == 0, done.stderr
    lesson(root / "01_common_basis" / "07_first.ipynb", builds="gradients ∂L/∂w")
    done = subprocess.run(
        [PROGRAM, "list", "--root", root], capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert done.returncode == 0 and b"?L/?w" in done.stdout


@pytest.mark.parametrize("status", [0, 1])
def test_doctor_ends_with_the_reports_status(root, capsys, monkeypatch, status):
    from llmscratch.kit import doctor

    state = "missing" if status else "ok"
    monkeypatch.setattr(doctor, "CHECKS", [lambda at: [doctor.Finding("root", state, str(at), "mend")]])
    returned, out, _ = call(capsys, "doctor", "--root", root)
    assert returned == status and state in out


def test_ctrl_c_ends_any_command_with_status_130(capsys, monkeypatch):
    from llmscratch.kit import doctor

    def interrupted(root):
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "CHECKS", [interrupted])
    assert call(capsys, "doctor") == (130, "", "")
