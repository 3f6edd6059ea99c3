"""A small course in a temporary folder, and a lesson that keeps every rule, for tests to spoil."""

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
KERNEL = {"name": "python3", "language": "python", "display_name": "Python 3"}
PYPROJECT = """
[project]
name = "llmscratch"
dependencies = ["numpy>=2"]

[project.optional-dependencies]
compare = ["micrograd"]
test = ["llmscratch[compare]", "pytest"]
"""


def course(folder: Path) -> Path:
    """A course with no notebooks yet."""
    for series in ("01_common_basis", "02_for_scientist", "03_for_engineer"):
        (folder / series).mkdir()
    (folder / "pyproject.toml").write_text(PYPROJECT)
    return folder


def text(what: str) -> list:
    return [new_output("stream", name="stdout", text=what)]


def picture(alt: str) -> list:
    data = {"image/png": PNG, "text/plain": "<Figure size 700x360 with 1 Axes>"}
    return [new_output("display_data", data=data, metadata={"image/png": {"alt": alt}} if alt else {})]


def result(value: str) -> list:
    return [new_output("execute_result", data={"text/plain": value}, execution_count=1)]


def code(source: str, outputs: list = (), tags: list = ()):
    """A code cell; `write` numbers it."""
    return new_code_cell(source, outputs=list(outputs), metadata={"tags": list(tags)} if tags else {})


def write(path: Path, cells: list, metadata: dict | None = None):
    """Write a notebook whose code cells were executed from top to bottom, and return it."""
    for number, cell in enumerate((c for c in cells if c.cell_type == "code"), start=1):
        cell.execution_count = number
    nb = new_notebook(cells=cells, metadata={"kernelspec": KERNEL} | (metadata or {}))
    nbformat.write(nb, path)
    return nb


def exercise(number: int, stars: str, name: str) -> list:
    stub = f'def {name}(x):\n    """Twice x."""\n    ...\n\n\ncheck({number}, {name})'
    return [
        new_markdown_cell(f"### Exercise {number} {stars} Double with {name}"),
        code(stub, text(f"Exercise {number}: not started · replace the `...`\n")),
    ]


def lesson(folder: Path, name: str = "08_sample", exports: str = "basis.sample"):
    """Write a lesson that keeps every rule into the first series of a course; returns the notebook and its path."""
    path = folder / "01_common_basis" / f"{name}.ipynb"
    address = f"https://colab.research.google.com/github/owner/name/blob/main/01_common_basis/{path.name}"
    about = {
        "code": "CB02-2", "builds": "a sample", "exports": exports, "needs": ["CB07"], "minutes": 5, "seconds": 1,
        "watch": [["part A", "https://example.org/a"]], "extras": ["compare"], "tour": True,
    }  # fmt: skip
    title = new_markdown_cell("# A sample: every rule kept\n\n> A lesson in miniature.\n\nIt keeps every rule.")
    card = new_markdown_cell(f"| Colab |\n| --- |\n| [![Open](https://example.org/badge.svg)]({address}) |")
    install = code('import importlib.util\nif importlib.util.find_spec("llmscratch") is None:\n    %pip install "x"')
    title.id, card.id, install.id = "title", "card", "install"
    module = exports.split(".")[-1]
    cells = [
        title, card, install,
        code(f"#| default_exp {exports}"),
        new_markdown_cell(f"See [this notebook]({path.name}#recap) and `[not](a link)`.\n\n**Predict** the sum."),
        code("#| export\nimport math"),
        code('#| export\ndef area(r):\n    """The area of a circle of radius r."""\n    return math.pi * r * r'),
        code(f"import numpy as np\nimport micrograd\nfrom llmscratch.kit import holds, race, show\n"
             f"from llmscratch.exercises.cb{name[:2]} import check"),
        new_markdown_cell("## A circle\n\n**Predict** the area."),
        code("print(f'{area(1.0):.2f}')", text("3.14 in NumPy 2.13.0, 1000.0, 120., 1e-06, (4000, 784)\n")),
        code("print(1 / 32)", text("0.03125\n"), ["exact-output"]),
        code("show('A circle')", picture("A circle")),
        new_markdown_cell("Its numbers:"),
        code("holds('the circle is round', True)", text("holds  the circle is round\n")),
        code("timing = race('area', area, area)", text("timed  area: ratio 1.0312\n"), ["nbval-ignore-output"]),
        new_markdown_cell("### What it says"),
        code("holds('not slower', timing.ratio < 9)", text("holds  not slower\n")),
        code("1 / 0", [new_output("error", ename="ZeroDivisionError", evalue="division by zero", traceback=["Cell"])],
             ["raises-exception"]),
        new_markdown_cell(f"## Recap\n\nExported: `{module}`."),
        new_markdown_cell("## Exercises"),
        *exercise(1, "★", "one"), *exercise(2, "★★", "two"), *exercise(3, "★★★", "three"),
        new_markdown_cell("## Read more\n\n- [A page](https://example.org)"),
    ]  # fmt: skip
    return write(path, cells, {"llmscratch": about}), path
