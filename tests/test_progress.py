"""The reader's progress: kept whole, never lost, and drawn so that it can be read without colour."""

import io
import json
import sys

import pytest
from rich.console import Console

from llmscratch.exercises import Lesson, Wrong, progress, show


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMSCRATCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def doubled(answer):
    if answer(2) != 4:
        raise Wrong("expected 4 for 2")


def small_lesson(code, *stars):
    lesson = Lesson(code)
    for number, count in enumerate(stars, start=1):
        lesson.add(number, count, "Double", check=doubled, hints=["add"], solution=doubled, wrong={})
    return lesson


def test_nothing_is_kept_at_first_and_looking_writes_nothing(home):
    assert progress.load() == {}
    assert not home.exists()


def test_checks_are_kept_and_what_was_right_stays_right(home, capsys):
    lesson = small_lesson("CB07", 1, 1, 1)
    lesson.check(1, lambda x: 2 * x)
    lesson.check(1, lambda x: x)
    lesson.check(2, lambda x: x)
    lesson.check(3, ...)
    assert progress.load() == {"CB07": {"1": "right", "2": "wrong"}}
    lesson.check(2, lambda x: 2 * x)
    assert progress.load() == {"CB07": {"1": "right", "2": "right"}}
    assert [path.name for path in home.iterdir()] == ["progress.json"]


@pytest.mark.parametrize("content", [b"{broken", b"\xff\xfe", b"[1]", b'{"CB07": 3}'])
def test_a_file_that_is_no_progress_is_left_as_it_is(home, content, capsys):
    home.mkdir()
    file = home / "progress.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"progress\.json is not a progress file.*move it away to start afresh"):
        progress.load()
    progress.record("CB07", 1, "right")
    assert "your progress was not kept" in capsys.readouterr().err
    assert file.read_bytes() == content and len(list(home.iterdir())) == 1


def test_a_folder_that_cannot_be_written_to_is_said_and_not_fatal(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLMSCRATCH_HOME", str(tmp_path / "file" / "home"))
    progress.record("CB07", 1, "right")
    assert "your progress was not kept" in capsys.readouterr().err


def test_a_write_that_fails_keeps_what_was_there(home):
    progress.record("CB07", 1, "right")
    before = (home / "progress.json").read_bytes()
    with pytest.raises(TypeError):
        progress._write({"CB07": {"1": object()}})
    assert (home / "progress.json").read_bytes() == before and len(list(home.iterdir())) == 1


def drawn(lessons, kept, titles, encoding="utf-8"):
    buffer = io.BytesIO()
    file = io.TextIOWrapper(buffer, encoding=encoding)
    show.draw(Console(file=file, width=100, color_system=None), lessons, kept, titles)
    file.flush()
    return [" ".join(line.split()) for line in buffer.getvalue().decode(encoding).splitlines()]


KEPT = {"CB07": {"1": "right", "2": "wrong", "9": "right"}, "4S01": {"1": "right"}, "XX01": {"1": "right"}}


def test_the_table_marks_every_exercise_and_adds_up_the_stars():
    lines = drawn([small_lesson("CB07", 1, 2, 3), small_lesson("4S01", 3)], KEPT, {"CB07": "Networks"})
    assert "│ CB07 Networks │ 1 ✓ 2 ✗ 3 · │ 1 of 3 │ 1 of 6 ★ │" in lines
    assert "│ 4S01 │ 1 ✓ │ 1 of 1 │ 3 of 3 ★ │" in lines
    assert "│ Together │ │ 2 of 4 │ 4 of 9 ★ │" in lines
    assert lines[-1] == "✓ right ✗ wrong · not started"


def test_a_terminal_without_such_signs_gets_plain_ones():
    lines = drawn([small_lesson("CB07", 1, 2, 3)], KEPT, {}, encoding="ascii")
    assert "| CB07 | 1 + 2 x 3 . | 1 of 3 | 1 of 6 * |" in lines
    assert lines[-1] == "+ right x wrong . not started"


def test_lessons_are_found_by_their_modules_names_in_reading_order(tmp_path, monkeypatch):
    package = tmp_path / "some_exercises"
    package.mkdir()
    source = "from llmscratch.exercises import Lesson\nlesson = Lesson({!r})\n"
    for name, code in (("e05", "4E05"), ("s03", "4S03"), ("cb09", "CB09"), ("cb07", "CB07")):
        (package / f"{name}.py").write_text(source.format(code))
    for name in ("__init__", "helper", "cb7"):
        (package / f"{name}.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    import some_exercises

    found = show.all_lessons(some_exercises)
    assert [lesson.code for lesson in found] == ["CB07", "CB09", "4S03", "4E05"]
    for name in [name for name in sys.modules if name.startswith("some_exercises")]:
        del sys.modules[name]


def test_the_courses_own_exercises_are_found_under_the_codes_of_their_modules():
    for lesson in show.all_lessons():
        module = sys.modules[f"llmscratch.exercises.{lesson.code.lower().removeprefix('4')}"]
        assert module.lesson is lesson
        assert json.dumps(sorted(lesson.exercises)) == json.dumps(list(range(1, len(lesson.exercises) + 1)))
