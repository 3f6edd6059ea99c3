"""The command `llmscratch`: list, run, lab, progress, doctor, story, ask."""

import argparse
import importlib
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

import llmscratch
from llmscratch.kit import lessons
from llmscratch.kit.machine import scale

EPILOG = """\
exit status: 0 done; 1 a lesson failed, or something is missing or broken; 2 the command could not start (wrong words,
no kernel, no place to write); 130 stopped by Ctrl-C."""
# What the reader has built, as commands: name → (what it does, the lesson's module, its function of the words after the
# name). Modules by name, since the kit imports no lesson's code: it is loaded when the command is asked for.
BUILT = {
    "story": ("let the Storyteller tell a story", "llmscratch.scientist.storyteller", "command"),
    "ask": ("answer a question from the almanac, with the source", "llmscratch.engineer.rag", "command"),
}
TIMEOUT = 600  # seconds a cell, at the small scale; at the full scale a cell may take as long as it needs


class Stop(Exception):
    """Ends the command with a message on stderr and an exit status."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


def main(argv: list[str] | None = None) -> int:
    """Carry out one command line; the exit status. (Wrong options leave through argparse's SystemExit, status 2.)"""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character shows "?" instead
    words = sys.argv[1:] if argv is None else argv
    try:
        if words and words[0] in BUILT:
            return _built(*words)
        arguments = _parser().parse_args(words)
        return arguments.command(arguments)
    except Stop as stop:
        print(f"llmscratch {arguments.name}: {stop}", file=sys.stderr)
        return stop.status
    except KeyboardInterrupt:  # before or after the notebooks; while they run, the runner answers it
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llmscratch",
        description="LLMs from scratch, proven: list, run and work through the lessons.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"llmscratch {llmscratch.__version__}")
    commands = parser.add_subparsers(dest="name", required=True, metavar="command")

    def add(name: str, command, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.add_argument(
            "--root", type=Path, metavar="DIR", help="the checkout with the notebooks (default: found by itself)"
        )
        sub.set_defaults(command=command)
        return sub

    add("list", _list, "list the lessons")
    run = add("run", _run, "run notebooks and keep executed copies of them")
    run.add_argument(
        "what", nargs="*", default=["tour"],
        help='"tour" (default: the shortest path through the course), "all", a series (CB, 4S, 4E), a lesson '
        "(CB09, autograd) or a notebook's path",
    )  # fmt: skip
    run.add_argument("--out", type=Path, metavar="DIR", help="folder for the executed copies (default: executed/)")
    run.add_argument(
        "--timeout", type=_seconds, metavar="SECONDS",
        help=f"how long one cell may take (default: {TIMEOUT}; any time when LLMSCRATCH_SCALE is full)",
    )  # fmt: skip
    lab = add("lab", _lab, "open JupyterLab at the lessons")
    lab.add_argument("options", nargs="*", help="options for JupyterLab, after --: llmscratch lab -- --no-browser")
    add("progress", _progress, "show which exercises you have solved")
    add("doctor", _doctor, "check this machine: what is missing, and the command that mends it")
    for name, (text, _, _) in BUILT.items():
        commands.add_parser(name, help=text)
    return parser


def _seconds(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of seconds above 0")
    return int(text)


def _console() -> Console:
    return Console(markup=False, highlight=False, emoji=False)


def _root(arguments) -> Path:
    if arguments.root is None:
        try:
            return lessons.course_root()
        except FileNotFoundError as error:
            raise Stop(str(error), 2) from error
    if not (arguments.root / "01_common_basis").is_dir():
        raise Stop(f"{arguments.root} is not a checkout of the course: it has no folder 01_common_basis", 2)
    return arguments.root.resolve()


def _notebooks(root: Path) -> list[lessons.Notebook]:
    try:
        return lessons.notebooks(root)
    except ValueError as error:
        raise Stop(str(error), 2) from error


def _some_notebooks(root: Path) -> list[lessons.Notebook]:
    found = _notebooks(root)
    if not found:
        raise Stop(f"there are no notebooks in {root}", 2)
    return found


def _list(arguments) -> int:
    table = Table("Lesson", "Title", "You build", box=None, pad_edge=False, header_style="bold")
    table.add_column("Read", justify="right")
    table.add_column("Run", justify="right")
    table.add_column("Tour")
    for notebook in _some_notebooks(_root(arguments)):
        about = notebook.about
        table.add_row(
            notebook.id, notebook.title, about.get("builds", ""), f"{about.get('minutes', '?')} min",
            f"{about.get('seconds', '?')} s", "yes" if about.get("tour") else "",
        )  # fmt: skip
    _console().print(table)
    return 0


def _run(arguments) -> int:
    root = _root(arguments)
    try:
        chosen = lessons.select(arguments.what, _some_notebooks(root))
        timeout = arguments.timeout or (TIMEOUT if scale() == "small" else None)
    except ValueError as error:
        raise Stop(str(error), 2) from error

    from llmscratch.kit import runner, runner_view  # slow to import

    out = arguments.out.resolve() if arguments.out else root / "executed"
    try:
        runner.prepare(chosen, out)
    except runner.CannotRun as error:
        raise Stop(str(error), 2) from error
    console = _console()
    with runner_view.view(console, len(chosen)) as listener:
        outcomes, stopped = runner.run(chosen, out, timeout=timeout, listener=listener)
    runner_view.summary(console, outcomes, out)
    if stopped:
        return 128 + stopped
    return int(any(outcome.result != "ok" for outcome in outcomes))


def _built(name: str, *words: str) -> int:
    _, module, function = BUILT[name]
    getattr(importlib.import_module(module), function)(words)
    return 0


def _lab(arguments) -> int:
    import importlib.util

    root = _root(arguments)
    if importlib.util.find_spec("jupyterlab") is None:
        raise Stop("JupyterLab is not installed here. Install it: python -m pip install jupyterlab", 2)
    command = [sys.executable, "-m", "jupyterlab", *arguments.options]
    if os.name == "nt":  # where exec gives the terminal back before the program ends
        import subprocess

        return subprocess.call(command, cwd=root)
    os.chdir(root)
    sys.stdout.flush()
    os.execv(sys.executable, command)


def _progress(arguments) -> int:
    from llmscratch.exercises import progress, show

    try:
        kept = progress.load()
    except (OSError, ValueError) as error:
        raise Stop(f"your progress cannot be read: {error}", 1) from error
    root = _root(arguments) if arguments.root else lessons.checkout()
    titles = {notebook.id: notebook.title for notebook in _notebooks(root)} if root else {}
    show.draw(_console(), show.all_lessons(), kept, titles)
    return 0


def _doctor(arguments) -> int:
    from llmscratch.kit import doctor

    root = _root(arguments) if arguments.root else lessons.checkout()
    return doctor.report(_console(), root)
