"""The gate: the rules that every notebook of the course keeps, each a function that returns the faults it finds.

A rule takes the parsed notebook and its path, `<course>/<series>/NN_name.ipynb`; each fault is a sentence that says
where it is, what is wrong and what is right. `faults` applies every rule. A notebook's code is read, never run: running
it is the work of run_notebooks.py, and these rules answer what nbval does not see.
"""

import ast
import builtins
import io
import re
import sys
import tokenize
import tomllib
from pathlib import Path
from urllib.parse import unquote

from anatomy import (
    ANSI,
    EXACT,
    EXERCISE,
    IGNORE,
    RAISES,
    at,
    checked_name,
    code_cells,
    compared,
    declared,
    default_exp,
    distributions,
    exercise_sections,
    exercises_module,
    exported_cells,
    exports,
    headings,
    imported,
    lesson_id,
    order,
    parse,
    printed,
    python_source,
    read,
    states,
    stub,
    tags,
    tree,
    within,
)
from packaging.utils import canonicalize_name

from llmscratch.kit.lessons import PREFIX
from llmscratch.kit.paths import SERIES

PROOFS = {"same", "holds"}
COMMENT_MARKERS = {
    "NBVAL_SKIP", "NBVAL_IGNORE_OUTPUT", "NBVAL_CHECK_OUTPUT", "NBVAL_RAISES_EXCEPTION",
    "PYTEST_VALIDATE_IGNORE_OUTPUT",
}  # fmt: skip
MACHINE_PATH = re.compile(
    r"(?<![\w.])/(?:home|root|tmp|work|Users|usr|var|opt|mnt|private|content|Volumes)/"
    r"|(?<!\w)~/\w|\b[A-Z]:\\Users|site-packages|dist-packages|\.pyenv|\.venv|ipykernel_\d"
)
PICTURE_MARKUP = re.compile(r"<(?:img|svg|canvas|picture|video)\b|data:image/|!\[", re.IGNORECASE)
FLOAT = re.compile(r"(?<![A-Za-z0-9_.])(?:\d+\.\d*|\.\d+|\d+(?=[eE][-+]?\d))(?:[eE][-+]?\d+)?(?!\.?\d)")
WHOLE = re.compile(r"\d+\.0?")
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)|^\[[^\]]+\]:\s*(\S+)|(?:href|src)\s*=\s*[\"']([^\"']+)", re.MULTILINE)
NOT_LINKS = re.compile(r"```.*?```|~~~.*?~~~|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]+\$", re.DOTALL)


def faults(path: Path) -> list[str]:
    """Every fault of one notebook, by every rule."""
    nb = read(path)
    return [fault for rule in RULES for fault in rule(nb, path)]


# The rules: what nbval does not see


def executed(nb, path) -> list[str]:
    """Every code cell was executed, top to bottom in one go: nbval counts a cell without a number as passed."""
    for expected, (i, cell) in enumerate(code_cells(nb), start=1):
        if cell.execution_count != expected:
            return [
                f"{at(i, cell)} has execution count {cell.execution_count}, expected {expected}: restart the kernel "
                "and run the notebook from top to bottom"
            ]
    return []


def is_python(nb, path) -> list[str]:
    """Every code cell can be read as Python, so that the other rules see it."""
    found = []
    for i, cell in code_cells(nb):
        try:
            parse(cell)
        except SyntaxError as error:
            if RAISES not in tags(cell):
                found.append(f"{at(i, cell)} is not Python: {error.msg}; tag it `{RAISES}` if that is the point")
    return found


def no_stored_errors(nb, path) -> list[str]:
    """No output is an error, unless the cell says so by its tag."""
    return [
        f"{at(i, cell)} stores the error {output.ename}: {output.evalue}; mend it, or tag the cell `{RAISES}`"
        for i, cell in code_cells(nb) if RAISES not in tags(cell)
        for output in cell.outputs if output.output_type == "error"
    ]  # fmt: skip


def no_machine_paths(nb, path) -> list[str]:
    """No output shows where on somebody's machine the notebook was run."""
    found = []
    for i, cell in code_cells(nb):
        for output in cell.outputs:
            shown = ANSI.sub("", "\n".join([printed(output), *map(str, output.get("data", {}).values()),
                                            *output.get("traceback", [])]))  # fmt: skip
            match = MACHINE_PATH.search(shown)
            if match:
                around = shown[max(0, match.start() - 20) : match.end() + 20].replace("\n", " ")
                found.append(
                    f"{at(i, cell)} shows a path of the machine it ran on: …{around}…; print the file's name alone"
                )
    return found


def steered_by_tags(nb, path) -> list[str]:
    """nbval is steered by two tags alone: no cell is skipped, and no comment hides what is not compared."""
    found = []
    for i, cell in code_cells(nb):
        for tag in tags(cell):
            if tag.lower().startswith(("nbval", "pytest-validate")) and tag != IGNORE:
                found.append(f"{at(i, cell)} is tagged `{tag}`: the only tags for nbval are `{IGNORE}` and `{RAISES}`")
        for line in cell.source.splitlines():
            if line.strip().startswith("#") and line.strip().lstrip("#").strip() in COMMENT_MARKERS:
                found.append(f"{at(i, cell)} steers nbval by the comment {line.strip()!r}: use the tag `{IGNORE}`")
    return found


def mostly_compared(nb, path) -> list[str]:
    """At most a fifth of the cells that print text are tagged to be ignored; each tagged cell counts as printing."""
    ignored = [cell for _, cell in code_cells(nb) if IGNORE in tags(cell)]
    strict = [cell for _, cell in code_cells(nb) if compared(cell).strip()]
    share = len(ignored) / max(1, len(ignored) + len(strict))
    if share <= 0.2:
        return []
    return [
        f"{len(ignored)} of the {len(ignored) + len(strict)} cells that print are tagged `{IGNORE}` ({share:.0%}); at "
        "most 20% may be: print what is stable, such as a bound, and compare it"
    ]


def ignored_is_held(nb, path) -> list[str]:
    """What is not compared is held to something.

    After a cell tagged to be ignored, and before the next heading of level 1 or 2, stands a code cell that is compared,
    that mentions a variable or function of the tagged cell (imported names and built-ins do not count; a cell without
    such names is let off this part), and that asserts something or prints a line other than an exercise's verdict.
    """
    borders = [i for i, level, _ in headings(nb) if level <= 2] + [len(nb.cells)]
    nodes = (node for _, cell in code_cells(nb) for node in ast.walk(tree(cell)))
    aliases = (alias for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names)
    common = {"get_ipython", *dir(builtins), *((alias.asname or alias.name).split(".")[0] for alias in aliases)}

    def names(cell) -> set[str]:
        return {node.id for node in ast.walk(tree(cell)) if isinstance(node, ast.Name)} - common

    found = []
    for i, cell in code_cells(nb):
        if IGNORE not in tags(cell):
            continue
        border = next(b for b in borders if b > i)
        held = any(
            (names(cell) & names(later) or not names(cell)) and (_asserts(later) or states(later))
            for j, later in code_cells(nb) if i < j < border and IGNORE not in tags(later)
        )  # fmt: skip
        if not held:
            found.append(
                f"{at(i, cell)} is not compared, and before the next `##` heading no compared cell asserts or prints "
                "anything about its variables: add `holds(...)` or a stable line that does"
            )
    return found


def _asserts(cell) -> bool:
    return any(
        isinstance(node, ast.Assert)
        or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in PROOFS)
        for node in ast.walk(tree(cell))
    )


def few_digits(nb, path) -> list[str]:
    """No compared output shows a float with more than three significant digits.

    A float is a number with a decimal point or an exponent; its significant digits are those of the mantissa from the
    first that is not 0. Integers, whole numbers as Python and NumPy print them (3.0, 120.) and dotted versions (2.13.0)
    are not counted. A cell whose floats come from exact arithmetic, such as 0.03125, says so by the tag `exact-output`;
    a tag that no output of the cell needs is a fault.
    """
    found = []
    for i, cell in code_cells(nb):
        text = re.sub(r"<[^>\n]*>", " ", compared(cell))
        long = [number for number in FLOAT.findall(text) if significant_digits(number) > 3]
        if long and EXACT not in tags(cell):
            found.append(
                f"{at(i, cell)} prints {long[0]}: a compared float has at most 3 significant digits, since the others "
                f"differ between machines; round it, print a bound, or tag the cell `{EXACT}` if the value is exact"
            )
        if EXACT in tags(cell) and not long:
            found.append(f"{at(i, cell)} is tagged `{EXACT}` but prints no long float: remove the tag")
    return found


def significant_digits(number: str) -> int:
    """The digits of a printed float that count (see few_digits); 0 for a whole number such as 120.0."""
    if WHOLE.fullmatch(number):
        return 0
    mantissa = re.split("[eE]", number)[0]
    return len(mantissa.replace(".", "").lstrip("0"))


# The rules: pictures


def png_with_alt_text(nb, path) -> list[str]:
    """Pictures are PNG, which nbval does not compare, and each has a text for readers who cannot see it."""
    found = []
    for i, cell in code_cells(nb):
        for output in cell.outputs:
            data = output.get("data", {})
            for mime in data:
                if (mime.startswith("image/") and mime != "image/png") or mime == "application/pdf":
                    found.append(f"{at(i, cell)} shows a picture as {mime}: pictures are PNG, shown through show(alt)")
            markup = "\n".join(data.get(mime, "") for mime in ("text/html", "text/markdown"))
            if PICTURE_MARKUP.search(markup):
                found.append(f"{at(i, cell)} shows a picture inside HTML or Markdown: draw it, and use show(alt)")
            alt = output.get("metadata", {}).get("image/png", {}).get("alt", "")
            if "image/png" in data and not (isinstance(alt, str) and alt.strip()):
                found.append(f"{at(i, cell)} shows a picture without alternative text: use show(alt)")
    return found


def pictures_have_numbers(nb, path) -> list[str]:
    """A picture's key numbers, or a proof, are printed and compared in its own cell or in one of the next two."""
    found = []
    for i, cell in code_cells(nb):
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            near = [other for other in nb.cells[i : i + 3] if other.cell_type == "code"]
            if not any(re.search(r"\d|^(?:same|holds)  ", states(other), re.MULTILINE) for other in near):
                found.append(
                    f"{at(i, cell)} shows a picture, and neither it nor the next two cells print a compared number or "
                    "a proof of what is to be seen"
                )
    return found


def no_silencing_semicolon(nb, path) -> list[str]:
    """No line ends in `;`: it hides a plot's return value in Jupyter, but nbval compares it all the same."""
    found = []
    for i, cell in code_cells(nb):
        readline = io.StringIO(python_source(cell)).readline
        try:
            tokens = [token for token in tokenize.generate_tokens(readline) if token.type != tokenize.COMMENT]
        except (tokenize.TokenError, SyntaxError):  # is_python reports it
            continue
        if any(a.string == ";" and b.type in (tokenize.NEWLINE, tokenize.NL)
               for a, b in zip(tokens, tokens[1:], strict=False)):  # fmt: skip
            found.append(f"{at(i, cell)} ends a line in `;`: end a plot with show(alt) instead")
    return found


# The rules: the shape of a lesson


def named(nb, path) -> list[str]:
    """The file is called NN_name.ipynb and stands in a series' folder."""
    if path.parent.name in SERIES and re.fullmatch(r"\d\d_[a-z0-9_]+\.ipynb", path.name):
        return []
    return [f"{path.parent.name}/{path.name}: a notebook is called NN_name.ipynb and stands in {', '.join(SERIES)}"]


def title(nb, path) -> list[str]:
    """The first cell has id `title` and starts with `# Title`, then `> summary`; no other cell starts with `# `."""
    first = nb.cells[0]
    found = []
    lines = [line for line in first.source.splitlines() if line.strip()]
    if first.cell_type != "markdown" or first.id != "title" or not lines or not lines[0].startswith("# "):
        found.append("the first cell must be Markdown, with id `title`, and start with `# ` and the title")
    if len(lines) < 2 or not lines[1].startswith("> "):
        found.append("below the title the first cell must have the line `> one-line summary`")
    if len(lines) < 3 or lines[2].startswith(">"):
        found.append("below the summary the first cell must make the lesson's promise")
    found += [
        f"{at(i, cell)} starts with `# `: only the title does, since nbdev writes such cells into the module"
        for i, cell in enumerate(nb.cells) if i and cell.cell_type == "markdown" and cell.source.startswith("# ")
    ]  # fmt: skip
    return found


def card_and_install(nb, path) -> list[str]:
    """The second cell is the card, with the Colab badge of this notebook; the third installs the course on Colab."""
    ids = [(cell.id, cell.cell_type) for cell in nb.cells[1:3]]
    if ids != [("card", "markdown"), ("install", "code")]:
        return [
            f"the second and third cells must be Markdown `card` and code `install`, they are {ids}: run make export"
        ]
    found = []
    card, install = nb.cells[1].source, nb.cells[2].source
    target = f"/{path.parent.name}/{path.name}"
    if not re.search(rf"https://colab\.research\.google\.com/github/[^)\s\"']*{re.escape(target)}", card):
        found.append(f"the card has no Colab badge that opens …{target}: run make export")
    if 'find_spec("llmscratch")' not in install or "%pip install" not in install:
        found.append("the install cell does not install the course where it is missing: run make export")
    return found


def sections(nb, path) -> list[str]:
    """Recap, Exercises and Read more stand at the end, in this order, once each; the reader predicts at least twice."""
    found = []
    wanted = ["Recap", "Exercises", "Read more"]
    second = [text for _, level, text in headings(nb) if level == 2]
    if second[-3:] != wanted or any(second.count(text) != 1 for text in wanted):
        found.append(f"the last headings of level 2 must be {wanted}, once each; they are {second[-3:]}")
    predictions = sum("**Predict" in cell.source for cell in nb.cells if cell.cell_type == "markdown")
    if predictions < 2:
        found.append(f"{predictions} cells ask the reader to predict (bold: **Predict …**); at least 2 must")
    return found


def exercises(nb, path) -> list[str]:
    """At least three exercises, `### Exercise N ★ title`, each with a stub and a check that says "not started"."""
    found = []
    at_exercises = next((i for i, level, text in headings(nb) if level == 2 and text == "Exercises"), len(nb.cells))
    for i, level, text in headings(nb):
        if text.lower().startswith("exercise ") and not (level == 3 and EXERCISE.fullmatch(text) and i >= at_exercises):
            found.append(f"the heading {text!r} must read `### Exercise N ★ title` and stand below `## Exercises`")
    numbered = exercise_sections(nb)
    numbers = [section.number for section in numbered]
    if numbers != list(range(1, len(numbers) + 1)):
        found.append(f"the exercises are numbered {numbers}; they must count from 1")
    if len(numbers) < 3:
        found.append(f"{len(numbers)} exercises; there must be at least 3")
    for number, _, _, cells in numbered:
        checks = [(cell, name) for cell in cells if (name := checked_name(cell, number))]
        if len(checks) != 1:
            found.append(f"exercise {number} must have one cell that ends in the line `check({number}, name)`")
            continue
        cell, name = checks[0]
        if stub(cells, name) is None:
            found.append(f"exercise {number} has no stub: `{name} = ...`, or a function {name} whose body is `...`")
        if f"Exercise {number}: not started" not in compared(cell):
            found.append(f"exercise {number}: the stored output of its check must say 'Exercise {number}: not started'")
    return found


METADATA = {
    "code": str, "builds": str, "exports": str, "needs": list, "minutes": int, "seconds": int | float,
    "watch": list, "extras": list, "tour": bool,
}  # fmt: skip


def metadata(nb, path) -> list[str]:
    """The key `llmscratch` is complete, its values are of the right types, and nothing tells of somebody's machine."""
    found = []
    kernel = nb.metadata.get("kernelspec", {})
    if (kernel.get("name"), kernel.get("language")) != ("python3", "python"):
        found.append("kernelspec must have name python3 and language python")
    if "version" in nb.metadata.get("language_info", {}):
        found.append("language_info must not have the version of the Python that the notebook ran on")
    strange = set(nb.metadata) - {"kernelspec", "language_info", "llmscratch"}
    strange |= {key for cell in nb.cells for key in cell.metadata} - {"tags", "jupyter", "cellView"}
    if strange:
        found.append(f"metadata of a tool or machine: {', '.join(sorted(strange))}; remove it")
    return found + _about(nb, path)


def _about(nb, path) -> list[str]:
    about = nb.metadata.get("llmscratch", {})
    found = []
    if set(about) - {"proofs"} != set(METADATA):
        right = f"exactly {sorted(METADATA)}, and may have 'proofs'"
        found.append(f"the metadata key llmscratch must have {right}; it has {sorted(about)}")
    for key, kind in METADATA.items():
        value = about.get(key)
        if key in about and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
            found.append(f"llmscratch.{key} is {value!r}; it must be {getattr(kind, '__name__', kind)}")
    if found:
        return found
    if not about["builds"].strip():
        found.append("llmscratch.builds is empty; it must say in one line what the reader builds")
    if about["exports"] != default_exp(nb):
        found.append(f"llmscratch.exports is {about['exports']!r}, but `#| default_exp` says {default_exp(nb)!r}")
    if about["minutes"] <= 0 or not 0 < about["seconds"] <= 90:
        found.append("llmscratch.minutes must be above 0, and llmscratch.seconds above 0 and at most 90")
    for need in about["needs"]:
        series = {prefix: folder for folder, prefix in PREFIX.items()}.get(str(need)[:2])
        if not series or not re.fullmatch(r"\d\d", need[2:]) or (series, need[2:]) >= order(path):
            found.append(
                f"llmscratch.needs names {need!r}; it must name lessons before {lesson_id(path)}, such as 'CB07'"
            )
    for entry in about["watch"]:
        if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)
                and entry[1].startswith("https://")):  # fmt: skip
            found.append(f"llmscratch.watch has {entry!r}; an entry is [label, https address]")
    for entry in about.get("proofs", []):
        if not (isinstance(entry, list) and len(entry) == 3 and all(isinstance(part, str) for part in entry)):
            found.append(f"llmscratch.proofs has {entry!r}; an entry is [what is equal, whose, claim of the proof]")
    project = tomllib.loads((path.parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra in about["extras"]:
        if extra not in project.get("optional-dependencies", {}):
            found.append(f"llmscratch.extras names {extra!r}, which pyproject.toml does not define")
    return found


def links(nb, path) -> list[str]:
    """Every relative link leads to a file that exists; a lesson still to come is named, not linked."""
    found = []
    for i, cell in enumerate(nb.cells):
        if cell.cell_type != "markdown":
            continue
        prose = NOT_LINKS.sub("", cell.source)
        for target in ("".join(groups) for groups in LINK.findall(prose)):
            if re.match(r"[a-z][a-z0-9+.-]*:", target, re.IGNORECASE) or target.startswith("#"):
                continue
            file = unquote(re.split("[#?]", target)[0])
            if file.startswith("/") or not (path.parent / file).exists():
                found.append(f"{at(i, cell)} links to {target}, which does not exist beside the notebook")
    return found


# The rules: code


def imports(nb, path) -> list[str]:
    """A notebook imports the standard library, `llmscratch.kit`, its own exercises, what earlier notebooks and itself
    export (its exercises work on the library's copy), and third-party packages that pyproject.toml declares (under
    `dependencies`, or an extra that its metadata names).
    """
    course = path.parent.parent
    made = exports(course)
    extras = nb.metadata.get("llmscratch", {}).get("extras", [])
    allowed = {"llmscratch.kit", f"llmscratch.exercises.{exercises_module(path)}"}
    allowed |= {module for module, at_path in made.items() if order(at_path) <= order(path)}
    packages = declared(course, extras)
    found = []
    for i, cell in code_cells(nb):
        for name in imported(tree(cell)):
            top = name.split(".")[0]
            if name.endswith(".*"):
                found.append(f"{at(i, cell)} has a star import of {name[:-2]}: name what it takes")
            elif name.startswith("."):
                found.append(f"{at(i, cell)} imports {name}: a notebook is in no package, so name the module in full")
            elif top == "llmscratch" and not within(name, allowed):
                late = next((lesson_id(p) for module, p in made.items() if within(name, [module])), None)
                why = (
                    f"{late} makes it, and {late} is not before {lesson_id(path)}"
                    if late
                    else "no earlier notebook exports it"
                )
                found.append(f"{at(i, cell)} imports {name}: {why}")
            elif top != "llmscratch" and top not in sys.stdlib_module_names:
                providers = distributions().get(top, [canonicalize_name(top)])
                if not packages & set(providers):
                    found.append(
                        f"{at(i, cell)} imports {top}, but pyproject.toml declares {' or '.join(providers)} neither as "
                        f"a dependency nor in the extras that the notebook names ({', '.join(extras) or 'none'})"
                    )
    return found


def exported(nb, path) -> list[str]:
    """Exported code reads as if written by hand: imports in its first cell, docstrings, errors instead of asserts, and
    at most 300 lines in each generated module.
    """
    made, default = exported_cells(nb), default_exp(nb)
    found = []
    if (default in made) != bool(default) or not default and made:
        found.append("`#| export` and `#| default_exp` go together: the notebook has one without the other")
    series = SERIES.get(path.parent.name)
    for module, cells in {**dict.fromkeys([default] if default else [], []), **made}.items():
        directive = "default_exp" if module == default else "export"
        if module and not re.fullmatch(rf"{series}\.[a-z_][a-z0-9_]*", module):
            found.append(f"`#| {directive} {module}` must name a module of this series, such as {series}.name")
        if directive == "export" and not ast.get_docstring(tree(cells[0][1])):
            found.append(f"{at(*cells[0])} is the first of {module} and must begin with its docstring")
        found += _exported_code(cells)
        file = path.parent.parent / "llmscratch" / (module.replace(".", "/") + ".py")
        lines = len(file.read_text(encoding="utf-8").splitlines()) if module and file.is_file() else 0
        if lines > 300:
            found.append(
                f"llmscratch/{module.replace('.', '/')}.py has {lines} lines; at most 300, so split or tighten it"
            )
    return found


def _exported_code(cells) -> list[str]:
    """What is wrong with the code of the cells of one module."""
    found = []
    for place, (i, cell) in enumerate(cells):
        code = tree(cell)
        if any(isinstance(node, ast.Assert) for node in ast.walk(code)):
            found.append(f"{at(i, cell)} is exported and has an assert: raise a ValueError that says what is right")
        if place and any(isinstance(node, ast.Import | ast.ImportFrom) for node in code.body):
            found.append(f"{at(i, cell)} is exported and imports: imports stand in the first exported cell")
        found += [
            f"{at(i, cell)} exports {node.name} without a docstring: say what it computes"
            for node in code.body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            and not node.name.startswith("_") and not ast.get_docstring(node)
        ]  # fmt: skip
    return found


RULES = (
    executed, is_python, no_stored_errors, no_machine_paths, steered_by_tags, mostly_compared, ignored_is_held,
    few_digits, png_with_alt_text, pictures_have_numbers, no_silencing_semicolon,
    named, title, card_and_install, sections, exercises, metadata, links,
    imports, exported,
)  # fmt: skip
