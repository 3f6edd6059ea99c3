#!/usr/bin/env python3
"""Run notebooks under nbval, strict, two at a time, without a network.

Usage: python tests/run_notebooks.py [NOTEBOOK or FOLDER]...      (default: every notebook of the course)

The run fails when a cell fails or its output differs from the stored one, when a notebook was not executed from top to
bottom, when anything tries to reach the network (even if it hides the error), and when the run changes the checkout.
The exit status is pytest's, or 1 for the last three.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path

from anatomy import read
from gate import executed

from llmscratch.kit.paths import SERIES

ROOT = Path(__file__).resolve().parent.parent
OFFLINE = Path(__file__).resolve().parent / "offline"
CELL_TIMEOUT = 300  # seconds; a notebook takes at most 90 on a laptop, and a CI machine may be slow
SLOW = 90
NOTHING_COLLECTED = 5  # pytest's exit status
THREADS = ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB_MAXIMUM")
TALK_TO_ONESELF = "import socket; s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname())"


def chosen(arguments: list[str]) -> list[Path]:
    """The notebooks that the arguments name, or all. FileNotFoundError for a named one that is not there."""
    found = []
    every_series = [ROOT / series for series in SERIES if (ROOT / series).is_dir()]  # git keeps no empty folder
    for place in [Path(a) for a in arguments] or every_series:
        if place.is_file() and place.suffix == ".ipynb":
            found.append(place.resolve())
        elif place.is_dir():
            found += sorted(place.resolve().glob("[0-9][0-9]_*.ipynb"))
        else:
            raise FileNotFoundError(f"{place} is neither a notebook nor a folder of notebooks")
    return list(dict.fromkeys(found))


def environment(scratch: Path) -> dict[str, str]:
    """What the run sees: one thread a notebook, the small scale, nobody's settings, and no network."""
    env = os.environ | {f"{library}_NUM_THREADS": "1" for library in THREADS}
    env.pop("MPLBACKEND", None)  # else figures would not be drawn inline
    env |= {
        "LLMSCRATCH_SCALE": "small", "LLMSCRATCH_HOME": str(scratch / "reader"), "IPYTHONDIR": str(scratch / "ipython"),
        "PYTHONDONTWRITEBYTECODE": "1", "LLMSCRATCH_NETWORK_LOG": str(scratch / "network.log"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(OFFLINE), os.environ.get("PYTHONPATH")])),
    }  # fmt: skip
    return env


def namespace() -> list[str]:
    """The command prefix that runs in an empty network namespace; empty where the system does not allow one.

    Root needs no user namespace, and must not have one: in it, it would lose its rights over other users' files.
    """
    if not shutil.which("unshare"):
        return []
    as_root = hasattr(os, "geteuid") and os.geteuid() == 0
    unshare = ["unshare", "--net"] if as_root else ["unshare", "--map-root-user", "--net"]
    prefix = [*unshare, sys.executable, str(OFFLINE / "loopback.py")]
    probe = subprocess.run([*prefix, sys.executable, "-c", TALK_TO_ONESELF], capture_output=True, check=False)
    return prefix if probe.returncode == 0 else []


def fingerprint(folder: Path) -> set[tuple] | None:
    """What git sees as changed around a folder, with sizes and times; None when it is not in a git checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        top = Path(git("rev-parse", "--show-toplevel").strip())
        status = git("status", "--porcelain", "-z", "--no-renames", "--untracked-files=all")
    except (OSError, subprocess.CalledProcessError):
        return None
    changed = set()
    for entry in filter(None, status.split("\0")):
        file = top / entry[3:]
        stat = file.stat() if file.exists() else None
        changed.add((entry, stat and (stat.st_size, stat.st_mtime_ns)))
    return changed


def seconds(report: Path) -> dict[str, float]:
    """Notebook → seconds, the start of its kernel included, from pytest's JUnit report."""
    spent: dict[str, float] = defaultdict(float)
    for case in ElementTree.parse(report).iter("testcase"):
        spent[case.get("file")] += float(case.get("time"))
    return dict(sorted(spent.items()))


def run(notebooks: list[Path]) -> int:
    """Run the notebooks, print what was found, and return the exit status."""
    unexecuted = [f"{path.name}: {fault}" for path in notebooks for fault in executed(read(path), path)]
    if unexecuted:
        print("\n".join(["nbval would skip cells that were not executed:", *unexecuted]))
        return 1
    folders = {path.parent for path in notebooks}
    before = {folder: fingerprint(folder) for folder in folders}
    prefix = namespace()
    cut_by = (
        "an empty network namespace, and a guard in every Python process"
        if prefix
        else "a guard in every Python process"
    )
    print(f"running {len(notebooks)} notebooks; the network is cut off by {cut_by}", flush=True)
    with tempfile.TemporaryDirectory(prefix="llmscratch-") as folder:
        scratch = Path(folder)
        report, log = scratch / "report.xml", scratch / "network.log"
        # Without hypothesis' plugin, which no notebook uses and which costs each process a second.
        pytest = [
            sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", f"--nbval-cell-timeout={CELL_TIMEOUT}",
            "-q", "-p", "no:cacheprovider", f"--color={'yes' if sys.stdout.isatty() else 'no'}",
            "-p", "no:hypothesispytest", "-n", "0" if len(notebooks) == 1 else "2", "--dist", "loadfile",
            f"--junitxml={report}", "-o", "junit_family=xunit1", *map(str, notebooks),
        ]  # fmt: skip
        status = subprocess.run([*prefix, *pytest], env=environment(scratch), cwd=ROOT, check=False).returncode
        spent = seconds(report) if report.is_file() else {}
        calls = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    for name, took in spent.items():
        print(f"{took:7.1f} s  {name}{f'   over {SLOW} s: too slow on a laptop' if took > SLOW else ''}")
    found = [f"the network was asked for: {call}" for call in calls]
    for folder in sorted(folders):
        after = fingerprint(folder)
        if before[folder] is None or after is None:
            print(f"{folder} is in no git checkout: not checked whether the run changed files")
        else:
            found += [f"the run changed the checkout: {entry}" for entry, _ in sorted(after ^ before[folder], key=str)]
    print("\n".join(dict.fromkeys(found)), end="\n" if found else "")
    if status == NOTHING_COLLECTED:
        print("the notebooks have no code cells")
        status = 0
    return status or int(bool(found))


def main(arguments: list[str]) -> int:
    try:
        notebooks = chosen(arguments)
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 2
    if not notebooks:
        print("no notebooks yet: nothing to run")
        return 0
    return run(notebooks)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
