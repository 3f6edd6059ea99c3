"""The course as the commands see it: which notebooks there are, and which of them a word names."""

import json

import pytest
from small_course import lesson

from llmscratch.kit import lessons


@pytest.fixture
def root(tmp_path):
    lesson(tmp_path / "03_for_engineer" / "01_serve.ipynb", tour=False)
    lesson(tmp_path / "01_common_basis" / "09_autograd.ipynb")
    lesson(tmp_path / "01_common_basis" / "07_neural_networks.ipynb", tour=False)
    lesson(tmp_path / "02_for_scientist" / "01_autograd_again.ipynb", minutes=5)
    lesson(tmp_path / "01_common_basis" / "draft.ipynb")
    return tmp_path


def ids(found):
    return [notebook.id for notebook in found]


def test_notebooks_are_read_in_reading_order_with_their_metadata(root):
    found = lessons.notebooks(root)
    assert ids(found) == ["CB07", "CB09", "4S01", "4E01"]
    autograd = found[1]
    assert (autograd.name, autograd.series, autograd.number) == ("09_autograd", "01_common_basis", "09")
    assert autograd.title == "Title of 09_autograd"
    assert found[2].about["minutes"] == 5 and found[2].about["tour"] is True


@pytest.mark.parametrize("content", [b"{broken", b"\xff\xfe", b"{}", b"[]", json.dumps({"cells": []}).encode()])
def test_a_notebook_that_cannot_be_read_is_named(root, content):
    broken = root / "01_common_basis" / "08_broken.ipynb"
    broken.write_bytes(content)
    with pytest.raises(ValueError, match=r"08_broken\.ipynb is not a notebook that can be read"):
        lessons.notebooks(root)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["all"], ["CB07", "CB09", "4S01", "4E01"]),
        (["tour"], ["CB09", "4S01"]),
        (["cb"], ["CB07", "CB09"]),
        (["01_common_basis/"], ["CB07", "CB09"]),
        (["4S"], ["4S01"]),
        (["cb09"], ["CB09"]),
        (["autograd"], ["CB09"]),
        (["01_serve"], ["4E01"]),
        (["serve", "CB09", "autograd"], ["CB09", "4E01"]),
    ],
)
def test_words_name_lessons_in_reading_order_each_once(root, words, expected):
    assert ids(lessons.select(words, lessons.notebooks(root))) == expected


def test_a_path_names_a_lesson(root, monkeypatch):
    monkeypatch.chdir(root / "01_common_basis")
    assert ids(lessons.select(["09_autograd.ipynb"], lessons.notebooks(root))) == ["CB09"]


def test_an_unknown_word_gets_the_nearest_names(root):
    with pytest.raises(ValueError, match=r"no lesson is called 'autogard'\. Did you mean CB09 autograd"):
        lessons.select(["CB07", "autogard"], lessons.notebooks(root))
    with pytest.raises(ValueError, match="`llmscratch list` shows them all"):
        lessons.select(["zzzzzz"], lessons.notebooks(root))


def test_the_course_is_found_in_the_checkout_else_in_the_current_folder(root, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(root)
    assert lessons.course_root() == lessons.checkout()
    monkeypatch.setattr(lessons, "checkout", lambda: None)
    assert lessons.course_root() == root
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(FileNotFoundError, match="Clone the repository"):
        lessons.course_root()
