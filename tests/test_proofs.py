"""The proofs say "same", "holds" and "timed" when it is so, and fail when they must."""

import time

import numpy as np
import pytest
import torch

from llmscratch.kit.proofs import Race, holds, race, race_apart, same


@pytest.mark.parametrize(
    ("ours", "theirs", "tolerance", "line"),
    [
        (3, 3, {}, "same   claim (one number, int64, identical)"),
        (True, True, {}, "same   claim (one number, bool, identical)"),
        ([1.0, np.nan], [1.0, np.nan], {}, "same   claim (shape (2,), float64, identical)"),
        (1.0, 1.0 + 1e-9, {"atol": 1e-8}, "same   claim (one number, float64, within atol 1e-08)"),
        (1e9, 1e9 + 1, {"rtol": 1e-8}, "same   claim (one number, float64, within rtol 1e-08)"),
        (0.0, 1.5, {"rtol": 0.5, "atol": 1.0}, "same   claim (one number, float64, within rtol 0.5 and atol 1)"),
        (np.zeros((2, 3), np.float32), torch.zeros(2, 3), {}, "same   claim (shape (2, 3), float32, identical)"),
        (torch.ones(1, requires_grad=True), np.ones(1, "f4"), {}, "same   claim (shape (1,), float32, identical)"),
        (np.array(["a"]), np.array(["a"]), {}, "same   claim (shape (1,), <U1, identical)"),
        (np.zeros((0, 2)), np.zeros((0, 2)), {}, "same   claim (shape (0, 2), float64, identical)"),
    ],
)
def test_same_says_so(capsys, ours, theirs, tolerance, line):
    same("claim", ours, theirs, **tolerance)
    assert capsys.readouterr().out == line + "\n"


@pytest.mark.parametrize(
    ("ours", "theirs", "tolerance", "message"),
    [
        ([1, 2], [1, 2, 3], {}, r"claim: shapes differ, ours \(2,\), theirs \(3,\)"),
        ([[1.0]], [1.0], {"atol": 1}, r"shapes differ, ours \(1, 1\), theirs \(1,\)"),
        (1, 1.0, {"atol": 1}, "dtypes differ, ours int64, theirs float64"),
        (np.float32([1]), np.float64([1]), {"atol": 1}, "dtypes differ, ours float32, theirs float64"),
        (1.0, 1.0 + 1e-15, {}, "claim: 1 of 1 values differ, the value: ours"),
        ([[1, 2], [3, 4]], [[1, 2], [5, 6]], {}, r"2 of 4 values differ, first at \[1, 0\]: ours .*3.*, theirs .*5"),
        ([1.0, 2.0], [1.0, 2.1], {"atol": 0.05}, r"first at \[1\].*allowed: rtol 0, atol 0.05"),
        ([1.0, np.nan], [1.0, 2.0], {"rtol": 1, "atol": 1}, r"1 of 2 values differ, first at \[1\]: ours .*nan"),
        ([1.0, np.inf], [1.0, -np.inf], {"rtol": 1, "atol": 1}, r"first at \[1\]"),
        (0.0, 1e-3, {"rtol": 1e-2}, "the value"),
        (np.array(["a"]), np.array(["b"]), {"atol": 1}, r"first at \[0\]"),
        (torch.tensor([True]), torch.tensor([False]), {}, "1 of 1"),
    ],
)
def test_same_fails_and_shows_the_first_difference(capsys, ours, theirs, tolerance, message):
    with pytest.raises(AssertionError, match=message):
        same("claim", ours, theirs, **tolerance)
    assert capsys.readouterr().out == ""


def test_the_relative_tolerance_is_of_theirs():
    same("claim", 100.0, 111.0, rtol=0.1)
    with pytest.raises(AssertionError):
        same("claim", 111.0, 100.0, rtol=0.1)


@pytest.mark.parametrize("condition", [True, np.True_, torch.tensor(True), 1])
def test_holds_says_so(capsys, condition):
    holds("the claim", condition)
    assert capsys.readouterr().out == "holds  the claim\n"


@pytest.mark.parametrize("condition", [False, np.False_, torch.tensor(False), 0, np.nan > 1])
def test_holds_fails(capsys, condition):
    with pytest.raises(AssertionError, match="does not hold: the claim"):
        holds("the claim", condition)
    assert capsys.readouterr().out == ""


def test_holds_takes_no_array_for_an_answer():
    with pytest.raises(ValueError, match="ambiguous"):
        holds("the claim", np.array([True, False]))


class Clock:
    """Time that passes only when told to, and the order in which it was told."""

    def __init__(self, monkeypatch):
        self.now, self.calls = 0.0, []
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def takes(self, name, *seconds):
        """A function whose calls take these seconds, the last ones for ever."""
        left = list(seconds)

        def call():
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


def test_race_takes_turns_after_a_warm_up_and_compares_medians(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    result = race("claim", clock.takes("ours", 9, 1, 2, 30), clock.takes("theirs", 9, 4, 4, 4), repeats=3)
    assert clock.calls == ["ours", "theirs", "ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert (result.ours, result.theirs, result.ratio) == (2, 4, 0.5)
    assert result.low <= 0.5 <= result.high
    assert capsys.readouterr().out == "timed  claim: ours 2 s, theirs 4 s, ratio 0.50 (0.38 to 4.00, 3 repeats)\n"


@pytest.mark.parametrize(("seconds", "said"), [(2.5, "2.5 s"), (0.0123, "12.3 ms"), (4.56e-6, "4.56 µs")])
def test_race_names_the_unit(monkeypatch, capsys, seconds, said):
    clock = Clock(monkeypatch)
    race("claim", clock.takes("ours", seconds), clock.takes("theirs", 1), repeats=2)
    assert f"ours {said}, theirs 1 s" in capsys.readouterr().out


def test_race_tells_a_slow_function_from_a_fast_one():
    result = race("claim", lambda: time.sleep(0.02), lambda: None, repeats=3)
    assert isinstance(result, Race)
    assert result.ratio > 10


def test_race_passes_on_what_a_function_raises():
    with pytest.raises(ZeroDivisionError):
        race("claim", lambda: 1 / 0, lambda: None)


def test_race_apart_times_each_program_in_its_own_process(capsys):
    slow = "import time\ndef step():\n    time.sleep(0.01)"
    result = race_apart("claim", slow, "def step(): pass", calls=2, repeats=2)
    assert result.ours >= 0.01 > result.theirs
    assert capsys.readouterr().out.startswith("timed  claim: ours ")


def test_race_apart_calls_each_program_as_often_as_it_is_told(tmp_path):
    files = [tmp_path / "ours", tmp_path / "theirs"]
    race_apart("claim", *(f"def step(): open({str(f)!r}, 'a').write('x')" for f in files), calls=(1, 5), repeats=2)
    assert [len(file.read_text()) for file in files] == [2 * (1 + 1), 2 * (1 + 5)]  # one call warms up


def test_race_apart_shows_why_a_program_failed():
    with pytest.raises(RuntimeError, match="(?s)claim: the timed program failed:.*division by zero"):
        race_apart("claim", "def step(): 1 / 0", "def step(): pass", calls=1, repeats=2)


@pytest.mark.parametrize("timed", [race, race_apart])
def test_one_repeat_has_no_spread(timed):
    with pytest.raises(ValueError, match="repeats is 1; at least 2"):
        timed("claim", None, None, repeats=1)
