"""What stands in a notebook and in the course: the reading that the gate's rules and the tests share."""

import ast
import functools
import importlib.metadata
import importlib.util
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nbformat
from IPython.core.inputtransformer2 import TransformerManager
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from llmscratch.kit.lessons import PREFIX
from llmscratch.kit.paths import SERIES

IGNORE = "nbval-ignore-output"  # the cell's output is not compared
EXACT = "exact-output"  # the cell's floats come from exact arithmetic and may show more than three digits
RAISES = "raises-exception"  # the cell is meant to end in an error

PYTHON_CELL_MAGICS = {"%%time", "%%timeit", "%%capture", "%%prun"}
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
EXERCISE = re.compile(r"Exercise (\d+) (★{1,3}) (\S.*)")


def read(path: Path) -> nbformat.NotebookNode:
    """The parsed notebook, checked against the notebook format's schema."""
    nb = nbformat.read(path, as_version=4)
    nbformat.validate(nb)
    return nb


# What a notebook holds


def lesson_id(path: Path) -> str:
    """`02_for_scientist/03_attention.ipynb` is lesson 4S03."""
    return PREFIX[path.parent.name] + path.name[:2]


def exercises_module(path: Path) -> str:
    """The module of a lesson's exercises: `cb07` for CB07, `s03` for 4S03, `e01` for 4E01."""
    return lesson_id(path).lower().removeprefix("4")


def code_cells(nb) -> list[tuple[int, nbformat.NotebookNode]]:
    """The code cells that hold anything, each with its place in the notebook."""
    return [(i, cell) for i, cell in enumerate(nb.cells) if cell.cell_type == "code" and cell.source.strip()]


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


def at(index: int, cell) -> str:
    """A cell's place and first line, for messages."""
    first = next(iter(cell.source.strip().splitlines()), "")
    return f"cell {index} ({first[:50]!r})"


def python_source(cell) -> str:
    """The Python of a code cell, IPython's magics made into calls; nothing for a cell magic of another language."""
    source = cell.source
    if source.lstrip().startswith("%%"):
        magic, _, rest = source.lstrip().partition("\n")
        source = rest if magic.split()[0] in PYTHON_CELL_MAGICS else ""
    return TransformerManager().transform_cell(source)


def parse(cell) -> ast.Module:
    """The syntax tree of a code cell. Raises SyntaxError."""
    return compile(python_source(cell), "cell", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def tree(cell) -> ast.Module:
    """As `parse`; empty for a cell that is not Python, which `is_python` reports."""
    try:
        return parse(cell)
    except SyntaxError:
        return ast.Module(body=[], type_ignores=[])


def printed(output) -> str:
    """The text that nbval compares in an output; nothing for a picture."""
    if output.output_type == "stream":
        text = output.text
    elif output.output_type == "error":
        text = f"{output.ename}: {output.evalue}"
    elif "image/png" in output.data:
        text = ""
    else:
        text = "\n".join(value for mime, value in output.data.items() if mime.startswith("text/"))
    return ANSI.sub("", text)


def compared(cell) -> str:
    """The text of a cell that nbval holds to the letter; nothing for a cell whose output is ignored."""
    return "" if IGNORE in tags(cell) else "\n".join(printed(output) for output in cell.outputs)


def states(cell) -> str:
    """As `compared`, without the verdicts of exercises, which say nothing about the lesson."""
    return "\n".join(line for line in compared(cell).splitlines() if line.strip() and not line.startswith("Exercise "))


def headings(nb) -> list[tuple[int, int, str]]:
    """(cell, level, text) of every heading, those inside code fences left out."""
    found = []
    for i, cell in enumerate(nb.cells):
        if cell.cell_type == "markdown":
            prose = re.sub(r"```.*?```", "", cell.source, flags=re.DOTALL)
            found += [(i, len(m[1]), m[2].strip()) for m in re.finditer(r"^(#{1,6}) +(.+)$", prose, re.MULTILINE)]
    return found


class Section(NamedTuple):
    """One exercise as it stands in the notebook: its heading and the code cells below it."""

    number: int
    stars: int
    title: str
    cells: list


def exercise_sections(nb) -> list[Section]:
    """The exercises whose headings read `### Exercise N ★ title`, in their order."""
    marks = [(i, level, text) for i, level, text in headings(nb) if level <= 3]
    found = []
    for place, (start, level, text) in enumerate(marks):
        match = EXERCISE.fullmatch(text)
        if level == 3 and match:
            end = marks[place + 1][0] if place + 1 < len(marks) else len(nb.cells)
            cells = [cell for i, cell in code_cells(nb) if start < i < end]
            found.append(Section(int(match[1]), len(match[2]), match[3], cells))
    return found


def checked_name(cell, number: int) -> str | None:
    """The name in the cell's last line `check(number, name)`; None when it does not end so."""
    body = tree(cell).body
    match body[-1] if body else None:
        case ast.Expr(ast.Call(ast.Name("check"), [ast.Constant(value), ast.Name(name)], [])) if value == number:
            return name
    return None


def stub(cells, name: str) -> ast.stmt | None:
    """The statement that leaves `name` to the reader: `name = ...`, or a function whose body is only `...`."""
    for statement in (s for cell in cells for s in tree(cell).body):
        match statement:
            case ast.Assign([ast.Name(target)], ast.Constant(value)) if target == name and value is ...:
                return statement
            case ast.FunctionDef() if statement.name == name:
                body = statement.body[1:] if ast.get_docstring(statement) is not None else statement.body
                match body:
                    case [ast.Expr(ast.Constant(value))] if value is ...:
                        return statement
    return None


def exported_cells(nb) -> dict[str, list[tuple[int, nbformat.NotebookNode]]]:
    """Module → the code cells that are written into it; modules in the order of their first cells.

    `#| export` alone means the notebook's module, "" when it names none; `#| export basis.other` means a second one.
    """
    found = {}
    for i, cell in code_cells(nb):
        if match := re.search(r"^\s*#\|[ \t]*export\w*[ \t]*(\S*)", cell.source, re.MULTILINE):
            found.setdefault(match[1] or default_exp(nb), []).append((i, cell))
    return found


def default_exp(nb) -> str:
    """The module that the notebook exports, such as `basis.autograd`; "" when it exports none."""
    for _, cell in code_cells(nb):
        match = re.search(r"^#\|\s*default_exp\s+(\S+)", cell.source, re.MULTILINE)
        if match:
            return match[1]
    return ""


# What the course holds


@functools.cache
def _exports_at(path: Path, _changed: int) -> list[str]:
    nb = nbformat.read(path, as_version=4)
    return [module for module in exported_cells(nb) or [default_exp(nb)] if module]


def exports(course: Path) -> dict[str, Path]:
    """Generated module (`llmscratch.basis.autograd`) → the notebook that exports it, in reading order.

    The modules of one notebook stand in the order of their first cells.
    """
    found = {}
    for series in SERIES:
        for path in sorted((course / series).glob("[0-9][0-9]_*.ipynb")):
            found |= {f"llmscratch.{module}": path for module in _exports_at(path, path.stat().st_mtime_ns)}
    return found


def order(path: Path) -> tuple[str, str]:
    """Sorts notebooks in reading order."""
    return path.parent.name, path.name[:2]


def declared(course: Path, extras: list[str]) -> set[str]:
    """The distributions that pyproject.toml declares: the dependencies, and those of the named extras."""
    project = tomllib.loads((course / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project.get("optional-dependencies", {})
    names, queue = set(), list(project.get("dependencies", []))
    queue += [text for extra in extras for text in optional.get(extra, [])]
    while queue:
        requirement = Requirement(queue.pop())
        if requirement.name == project["name"]:
            queue += [text for extra in requirement.extras for text in optional.get(extra, [])]
        else:
            names.add(canonicalize_name(requirement.name))
    return names


@functools.cache
def distributions() -> dict[str, list[str]]:
    """Top-level import name → the installed distributions that provide it."""
    return {top: sorted({canonicalize_name(d) for d in names})
            for top, names in importlib.metadata.packages_distributions().items()}  # fmt: skip


def imported(module: ast.Module, package: str = "") -> Iterator[str]:
    """The dotted names that a syntax tree imports: `a.b.c` for `from a.b import c`, `a.b.*` for a star.

    package: the package that relative imports start from. `import_module` and `__import__` of a literal count too.
    """
    for node in ast.walk(module):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom():
                base = node.module or ""
                if node.level and package:
                    base = importlib.util.resolve_name("." * node.level + base, package)
                elif node.level:
                    base = "." * node.level + base
                yield from (f"{base}.{alias.name}" for alias in node.names)
            case ast.Call(ast.Name("__import__" | "import_module") | ast.Attribute(attr="import_module"),
                          [ast.Constant(str(name)), *_]):  # fmt: skip
                yield name


def within(name: str, modules) -> bool:
    """True when the dotted name is one of the modules or stands inside one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)
