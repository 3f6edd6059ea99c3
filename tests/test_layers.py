"""The layers of the library: the kit stands below the lessons' code, which stands in reading order."""

import ast
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import samples
from anatomy import exercises_module, exports, imported, order, within
from nbformat.v4 import new_code_cell

from llmscratch.kit.paths import SERIES

ROOT = Path(__file__).resolve().parent.parent
GENERATED = [f"llmscratch.{package}" for package in SERIES.values()]
NOT_FOR_GENERATED = ["llmscratch.exercises", "llmscratch.kit.pictures"]


def imports_of(course: Path, package: str) -> Iterator[tuple[str, str]]:
    """(module, what it imports) for every module below `llmscratch/<package>`; the kit's re-exports are traced back."""
    origin = dict(_reexports(course))
    for path in sorted((course / "llmscratch" / package).rglob("*.py")):
        name = ".".join(path.relative_to(course).with_suffix("").parts)
        for target in imported(ast.parse(path.read_text(encoding="utf-8")), name.rpartition(".")[0]):
            yield name, origin.get(target, target)


def _reexports(course: Path) -> Iterator[tuple[str, str]]:
    init = course / "llmscratch" / "kit" / "__init__.py"
    for target in imported(ast.parse(init.read_text(encoding="utf-8")), "llmscratch.kit"):
        yield f"llmscratch.kit.{target.rpartition('.')[2]}", target


def kit_faults(course: Path) -> list[str]:
    """The kit imports no generated module: what a lesson needs from a later one reaches it as a file."""
    return [f"{name} imports {target}: the kit imports no generated module"
            for name, target in imports_of(course, "kit") if within(target, GENERATED)]  # fmt: skip


def generated_faults(course: Path) -> list[str]:
    """A generated module comes from a notebook and imports what earlier ones export, or what stands earlier in the same
    one; no pictures, no exercises.
    """
    made = exports(course)
    places = {module: place for place, module in enumerate(made)}
    found = []
    for package in SERIES.values():
        for path in sorted((course / "llmscratch" / package).glob("[a-z]*.py")):
            if f"llmscratch.{package}.{path.stem}" not in made:
                found.append(f"llmscratch.{package}.{path.stem} is exported by no notebook")
        for name, target in imports_of(course, package):
            earlier = [module for module in made if name in made and places[module] < places[name]]
            if within(target, GENERATED) and not within(target, earlier):
                found.append(f"{name} imports {target}, which no earlier notebook exports")
            if within(target, NOT_FOR_GENERATED) or target in ("llmscratch.kit", "llmscratch.kit.*"):
                found.append(f"{name} imports {target}: a lesson's code takes no pictures or exercises from the course")
    return found


def exercises_faults(course: Path) -> list[str]:
    """Exercises build on what their own lesson and earlier ones export."""
    made = exports(course)
    lessons = {
        f"llmscratch.exercises.{exercises_module(path)}": path
        for series in SERIES for path in (course / series).glob("[0-9][0-9]_*.ipynb")
    }  # fmt: skip
    found = []
    for name, target in imports_of(course, "exercises"):
        known = [module for module, path in made.items() if name in lessons and order(path) <= order(lessons[name])]
        if within(target, GENERATED) and not within(target, known):
            found.append(f"{name} imports {target}, which neither its lesson nor an earlier one exports")
    return found


def test_the_kit_imports_no_generated_module():
    assert kit_faults(ROOT) == []


def test_generated_modules_import_only_earlier_ones():
    assert generated_faults(ROOT) == []


def test_exercises_import_nothing_later():
    assert exercises_faults(ROOT) == []


@pytest.fixture
def course(tmp_path):
    """A course of two lessons, with the modules that they export and their exercises."""
    course = samples.course(tmp_path)
    samples.lesson(course, "07_first", "basis.first")
    samples.lesson(course, "08_second", "basis.second")
    reexports = "from llmscratch.kit.pictures import show\nfrom llmscratch.kit.machine import scale"
    put(course, "kit/__init__.py", reexports)
    put(course, "basis/first.py", "import math")
    put(course, "basis/second.py", "from llmscratch.basis.first import area\nfrom llmscratch.kit import scale")
    put(course, "exercises/cb07.py", "from llmscratch.basis.first import area")
    return course


def put(course: Path, module: str, source: str) -> None:
    path = course / "llmscratch" / module
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)


def all_faults(course: Path) -> list[str]:
    return kit_faults(course) + generated_faults(course) + exercises_faults(course)


def test_a_course_in_order_has_no_faults(course):
    assert all_faults(course) == []


def test_a_second_module_of_a_notebook_takes_from_the_first_and_not_the_other_way_round(course):
    path = course / "01_common_basis" / "07_first.ipynb"
    nb = nbformat.read(path, as_version=4)
    nb.cells.insert(7, new_code_cell('#| export basis.more\n"""More."""'))
    nbformat.write(nb, path)
    put(course, "basis/more.py", "from llmscratch.basis.first import area")
    put(course, "basis/second.py", "from llmscratch.basis.more import volume")
    assert all_faults(course) == []
    put(course, "basis/first.py", "from llmscratch.basis.more import volume")
    assert ["no earlier notebook exports" in fault for fault in all_faults(course)] == [True]


@pytest.mark.parametrize(
    ("module", "source", "message"),
    [
        ("kit/data.py", "def load():\n    import llmscratch.basis.first", "kit.data imports llmscratch.basis.first"),
        ("kit/data.py", "from ..basis.first import area", "kit.data imports llmscratch.basis.first.area"),
        ("basis/first.py", "from llmscratch.basis.second import area", "no earlier notebook exports"),
        ("basis/first.py", "from .second import area", "no earlier notebook exports"),
        ("basis/first.py", "from llmscratch.kit import show", "imports llmscratch.kit.pictures.show"),
        ("basis/first.py", "import llmscratch.kit", "takes no pictures"),
        ("basis/first.py", "from llmscratch.exercises.cb07 import check", "takes no pictures or exercises"),
        ("basis/stray.py", "", "llmscratch.basis.stray is exported by no notebook"),
        ("exercises/cb07.py", "from llmscratch.basis import second", "neither its lesson nor an earlier one"),
    ],
)
def test_a_course_out_of_order_is_found_out(course, module, source, message):
    put(course, module, source)
    found = all_faults(course)
    assert len(found) == 1, found
    assert message in found[0]
