"""Every notebook of the course keeps every rule of the gate."""

from pathlib import Path

import gate
import pytest
from anatomy import read

from llmscratch.kit.paths import SERIES

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(path for series in SERIES for path in (ROOT / series).glob("*.ipynb"))


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return read(request.param), request.param


@pytest.mark.parametrize("rule", gate.RULES, ids=lambda rule: rule.__name__)
def test_rule(notebook, rule):
    found = rule(*notebook)
    assert not found, "\n".join(["", *found, f"The rule: {rule.__doc__}"])
