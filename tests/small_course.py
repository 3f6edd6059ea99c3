"""Builds small courses for the tests: a few notebooks in a folder of their own."""

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook


def lesson(path: Path, *cells: str, kernel: str = "python3", tags: tuple[str, ...] = (), **about) -> Path:
    """Write a notebook: text that begins with "#" becomes a Markdown cell, the rest code cells that carry `tags`."""
    nb = new_notebook(cells=[new_markdown_cell(f"# Title of {path.stem}\n\n> One line.")])
    for text in cells:
        code = not text.startswith("#")
        nb.cells.append(new_code_cell(text, metadata={"tags": list(tags)}) if code else new_markdown_cell(text))
    nb.metadata = {
        "kernelspec": {"name": kernel, "display_name": kernel, "language": "python"},
        "llmscratch": {"builds": "something small", "minutes": 30, "seconds": 7, "tour": True, **about},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, path)
    return path


def printed(path: Path) -> str:
    """All that the code cells of an executed copy printed."""
    cells = nbformat.read(path, as_version=4).cells
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))


def files(root: Path) -> list[str]:
    """Every file and folder below `root`."""
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))
