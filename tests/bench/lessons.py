"""The lessons' own code for the benchmarks: what a notebook does not export is read from its cells."""

import ast
from pathlib import Path

from tests.anatomy import code_cells, read, tree

COURSE = Path(__file__).resolve().parents[2]


def source(notebook: str, *names: str) -> str:
    """The text of the functions and classes `names` as defined in a notebook such as "01_common_basis/08_mlp_in_numpy".

    LookupError when the notebook does not define one of them.
    """
    found = {}
    for _, cell in code_cells(read(COURSE / f"{notebook}.ipynb")):
        for node in tree(cell).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in names:
                found[node.name] = ast.unparse(node)
    missing = [name for name in names if name not in found]
    if missing:
        raise LookupError(f"{notebook} defines no {', '.join(missing)}")
    return "\n\n".join(found[name] for name in names)
