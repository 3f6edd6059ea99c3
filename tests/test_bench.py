"""`make bench`: one table of claims, its JSON, the README's copy, and an exit status that tells of a missed bound."""

import json
import time

import pytest

from llmscratch.kit.proofs import Race, race
from tests import bench
from tests.bench.__main__ import main
from tests.bench.lessons import source


def quick_beside_slow() -> Race:
    return race("nothing beside a nap", lambda: None, lambda: time.sleep(0.001), repeats=3)


def rows(at_most=0.5, measure=quick_beside_slow):
    return [bench.Row("CB99: nothing | a nap", at_most, True, "s", measure)]


def test_the_table_and_the_json_say_what_was_measured(tmp_path, capsys):
    target = tmp_path / "new" / "bench.json"
    assert main(["--json", str(target)], rows()) == 0
    said = json.loads(target.read_text())
    (measured,) = said["rows"]
    assert measured["claim"] == "CB99: nothing | a nap" and measured["at_most"] == 0.5 and measured["met"] is True
    assert measured["theirs"] >= 0.001 and measured["ratio"] == measured["ours"] / measured["theirs"]
    assert {"cpu", "cores", "python", "numpy", "torch"} <= set(said["machine"]) and said["machine"]["cpu"]
    printed = capsys.readouterr()
    assert "≤ 0.5" in printed.out and "yes" in printed.out
    assert "timed" in printed.err and "timed" not in printed.out


def test_a_missed_bound_is_exit_status_1(tmp_path, capsys):
    assert main(["--json", str(tmp_path / "bench.json")], rows(at_most=0.0)) == 1
    assert json.loads((tmp_path / "bench.json").read_text())["rows"][0]["met"] is False


def test_a_row_that_fails_is_told_and_the_others_are_measured(tmp_path, capsys):
    def broken():
        raise RuntimeError("no such library")

    assert main(["--json", str(tmp_path / "bench.json")], rows(measure=broken) + rows()) == 1
    first, second = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert first["error"] == "RuntimeError: no such library" and first["met"] is False and second["met"] is True


def test_the_readme_gets_the_table_with_date_and_machine(tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- bench -->\nold\n<!-- /bench -->\nafter\n")
    assert main(["--json", str(tmp_path / "bench.json"), "--readme", str(readme)], rows()) == 0
    text = readme.read_text()
    said = json.loads((tmp_path / "bench.json").read_text())
    assert text.startswith(f"before\n<!-- bench -->\nMeasured on {said['date']}") and text.endswith("-->\nafter\n")
    assert said["machine"]["cpu"] in text and "old" not in text and r"| CB99: nothing \| a nap |" in text


def test_a_lower_bound_and_another_unit():
    found = bench.Result(bench.Row("accuracy", 0.99, False, "%", lambda: None), Race(93.0, 92.5, 1.0054, 1.0, 1.01))
    assert found.met
    assert bench.cells(found)[1:] == ["93 %", "92.5 %", "1.01", "1 to 1.01", "≥ 0.99", "yes"]


@pytest.mark.parametrize("bounds", [{}, {"at_most": 1, "at_least": 1}])
def test_a_row_has_one_bound(bounds):
    with pytest.raises(ValueError, match="either at_most or at_least"):
        bench.row("a claim", **bounds)


def test_no_rows_is_no_success(tmp_path, capsys):
    assert main(["--json", str(tmp_path / "bench.json")], []) == 1
    assert "no benchmarks" in capsys.readouterr().err


def test_a_decorated_function_is_found(monkeypatch):
    monkeypatch.setattr(bench, "ROWS", [])
    bench.row("a claim", at_least=2)(quick_beside_slow)
    (found,) = bench.ROWS
    assert found == bench.Row("a claim", 2, False, "s", quick_beside_slow)


def test_a_lesson_s_own_code_is_read_from_its_cells():
    text = source("01_common_basis/09_autograd", "make_step")
    assert text.startswith("def make_step(Value, X, y):")
    with pytest.raises(LookupError, match="09_autograd defines no nowhere"):
        source("01_common_basis/09_autograd", "make_step", "nowhere")
