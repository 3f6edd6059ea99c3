"""Every rule of the gate passes a lesson that keeps it, and finds the fault in one that does not."""

import gate
import nbformat
import pytest
import samples
from nbformat.v4 import new_markdown_cell, new_output
from samples import code, picture, text


@pytest.fixture
def course(tmp_path):
    return samples.course(tmp_path)


@pytest.fixture
def good(course):
    return samples.lesson(course)


def place(nb, start: str) -> int:
    """Where the cell that starts so stands."""
    return next(i for i, cell in enumerate(nb.cells) if cell.source.startswith(start))


def cell(nb, start: str):
    return nb.cells[place(nb, start)]


def test_a_lesson_that_keeps_every_rule_passes_them_all(good):
    assert gate.faults(good[1]) == []


def test_faults_joins_what_the_rules_find(good):
    nb, path = good
    nb.cells[2].execution_count = None
    nb.cells[-1].source = "## The end"
    nbformat.write(nb, path)
    assert len(gate.faults(path)) == 2


def _unexecuted(nb, path):
    cell(nb, "print(f").execution_count = None


def _executed_out_of_order(nb, path):
    cell(nb, "print(f").execution_count += 1


def _not_python(nb, path):
    cell(nb, "print(f").source = "print(1"


def _stored_error(nb, path):
    cell(nb, "1 / 0").metadata.tags = []


def _path_in_stdout(nb, path):
    cell(nb, "print(f").outputs = text("saved to /home/ann/course/a.npz\n")


def _path_in_stderr(nb, path):
    warning = "/tmp/ipykernel_123/1.py:1: UserWarning"
    cell(nb, "timing").outputs.append(new_output("stream", name="stderr", text=warning))


def _path_in_html(nb, path):
    cell(nb, "print(f").outputs = [new_output("display_data", data={"text/html": "<b>C:\\Users\\ann</b>"})]


def _path_in_traceback(nb, path):
    cell(nb, "1 / 0").outputs[0].traceback = ["\x1b[1mFile \x1b[0m\x1b[2m~/course/lib/python3.12/site-packages/x.py"]


def _skip_tag(nb, path):
    cell(nb, "print(f").metadata.tags = ["nbval-skip"]


def _skip_comment(nb, path):
    cell(nb, "print(f").source = "# NBVAL_SKIP\nprint(1)"


def _ignore_comment(nb, path):
    cell(nb, "print(f").source = "print(1)\n  # NBVAL_IGNORE_OUTPUT"


def _too_many_ignored(nb, path):
    cell(nb, "print(f").metadata.tags = ["nbval-ignore-output"]
    cell(nb, "print(1 / 32)").metadata.tags = ["nbval-ignore-output"]


def _ignored_and_not_held(nb, path):
    cell(nb, "holds('not slower'").outputs = []
    cell(nb, "holds('not slower'").source = "timing.ratio < 9"


def _held_after_the_next_heading(nb, path):
    cell(nb, "### What it says").source = "## What it says"


def _held_by_a_line_about_something_else(nb, path):
    cell(nb, "holds('not slower'").source = "holds('three is less than nine', 3 < 9)"


def _many_digits(nb, path):
    cell(nb, "print(f").outputs = text("loss 0.12345\n")


def _many_digits_in_a_table(nb, path):
    cell(nb, "print(f").outputs = [new_output("display_data", data={"text/html": "<td>1234.5</td>", "text/plain": "x"})]


def _idle_exact_tag(nb, path):
    cell(nb, "print(f").metadata.tags = ["exact-output"]


def _svg(nb, path):
    cell(nb, "show").outputs.append(new_output("display_data", data={"image/svg+xml": "<svg/>"}))


def _pictures_in_html(nb, path):
    cell(nb, "print(f").outputs.append(new_output("display_data", data={"text/html": "<td><img src='a.png'></td>"}))


def _no_alt_text(nb, path):
    cell(nb, "show").outputs = picture(" ")


def _figure_without_numbers(nb, path):
    nb.cells.insert(place(nb, "Its numbers:"), new_markdown_cell("Look at it."))


def _figure_with_only_an_exercise_after_it(nb, path):
    at = place(nb, "def three")
    nb.cells[at].outputs += picture("A circle")


def _semicolon(nb, path):
    cell(nb, "show").source = "plt.plot([1, 2]);  # a line"


def _two_titles(nb, path):
    cell(nb, "## A circle").source = "# A circle\n\n**Predict** the area."


def _no_title(nb, path):
    nb.cells[0].source = "A sample\n\n> A lesson in miniature.\n\nPromise."


def _no_summary(nb, path):
    nb.cells[0].source = "# A sample\n\nIt keeps every rule.\n\nAnd more."


def _no_promise(nb, path):
    nb.cells[0].source = "# A sample\n\n> A lesson in miniature."


def _no_card(nb, path):
    nb.cells[1].id = "cards"


def _badge_of_another_lesson(nb, path):
    nb.cells[1].source = nb.cells[1].source.replace("08_sample", "09_other")


def _no_install(nb, path):
    nb.cells[2].source = "import importlib.util"


def _no_recap(nb, path):
    cell(nb, "## Recap").source = "## Summary"


def _sections_out_of_order(nb, path):
    recap, exercises = cell(nb, "## Recap"), cell(nb, "## Exercises")
    recap.source, exercises.source = exercises.source, recap.source


def _one_prediction(nb, path):
    cell(nb, "## A circle").source = "## A circle\n\nPredict the area."


def _two_exercises(nb, path):
    at = place(nb, "### Exercise 3")
    del nb.cells[at : at + 2]


def _exercise_numbered_wrongly(nb, path):
    cell(nb, "### Exercise 3").source = "### Exercise 4 ★ Double"
    cell(nb, "def three").source = "def three(x): ...\n\n\ncheck(4, three)"
    cell(nb, "def three").outputs = text("Exercise 4: not started\n")


def _exercise_without_stars(nb, path):
    nb.cells.insert(place(nb, "## Read more"), new_markdown_cell("### Exercise 4: Double"))


def _solved_stub(nb, path):
    cell(nb, "def two").source = "def two(x):\n    return 2 * x\n\n\ncheck(2, two)"


def _no_check(nb, path):
    cell(nb, "def two").source = "def two(x): ..."


def _check_not_last(nb, path):
    cell(nb, "def two").source += "\nprint('done')"


def _exercise_answered(nb, path):
    cell(nb, "def two").outputs = text("Exercise 2: right · Double\n")


def _no_metadata(nb, path):
    del nb.metadata["llmscratch"]


def _unknown_key(nb, path):
    nb.metadata.llmscratch["minute"] = 3


def _seconds_as_text(nb, path):
    nb.metadata.llmscratch.seconds = "15"


def _tour_as_number(nb, path):
    nb.metadata.llmscratch.tour = 1


def _minutes_as_bool(nb, path):
    nb.metadata.llmscratch.minutes = True


def _too_slow(nb, path):
    nb.metadata.llmscratch.seconds = 91


def _needs_a_later_lesson(nb, path):
    nb.metadata.llmscratch.needs = ["4S01"]


def _needs_itself(nb, path):
    nb.metadata.llmscratch.needs = ["CB08"]


def _needs_no_lesson(nb, path):
    nb.metadata.llmscratch.needs = ["mlp"]


def _exports_something_else(nb, path):
    nb.metadata.llmscratch.exports = "basis.other"


def _watch_without_address(nb, path):
    nb.metadata.llmscratch.watch = [["part A", "bilibili"]]


def _unknown_extra(nb, path):
    nb.metadata.llmscratch.extras = ["compare", "gpu"]


def _kernel_of_a_machine(nb, path):
    nb.metadata.kernelspec.name = "ann-venv"


def _python_version(nb, path):
    nb.metadata["language_info"] = {"name": "python", "version": "3.12.1"}


def _papermill_metadata(nb, path):
    nb.metadata["papermill"] = {"input_path": "a.ipynb"}


def _timestamps(nb, path):
    cell(nb, "print(f").metadata["execution"] = {"iopub.status.busy": "2026-01-01T00:00:00Z"}


def _link_to_a_lesson_to_come(nb, path):
    cell(nb, "### What it says").source += "\n\nNext: [autograd](09_autograd.ipynb)."


def _html_link_to_nothing(nb, path):
    cell(nb, "### What it says").source += '\n\n<img src="../assets/none.png" alt="None">'


def _link_from_the_root(nb, path):
    cell(nb, "### What it says").source += f"\n\n[This]({path})."


def _star_import(nb, path):
    cell(nb, "import numpy").source += "\nfrom llmscratch.kit import *"


def _undeclared_package(nb, path):
    cell(nb, "import numpy").source += "\n%matplotlib inline\nimport yaml.nodes"


def _extra_not_named(nb, path):
    nb.metadata.llmscratch.extras = []


def _exercises_of_another_lesson(nb, path):
    cell(nb, "import numpy").source += "\nfrom llmscratch.exercises.cb07 import check"


def _unknown_module(nb, path):
    cell(nb, "import numpy").source += "\nfrom llmscratch.basis import nowhere"


def _later_module(nb, path):
    samples.lesson(path.parent.parent, "10_later", "basis.later")
    cell(nb, "import numpy").source += "\nif True:\n    from llmscratch.basis import later"


def _later_module_by_name(nb, path):
    samples.lesson(path.parent.parent, "10_later", "basis.later")
    cell(nb, "import numpy").source += "\nlater = importlib.import_module('llmscratch.basis.later')"


def _relative_import(nb, path):
    cell(nb, "import numpy").source += "\nfrom .kit import show"


def _exported_assert(nb, path):
    cell(nb, "#| export\ndef area").source += "\n\n\ndef _half(x):\n    assert x > 0\n    return x / 2"


def _no_docstring(nb, path):
    cell(nb, "#| export\ndef area").source += "\n\n\nclass Shape:\n    sides = 3"


def _late_import(nb, path):
    cell(nb, "#| export\ndef area").source += "\n\nimport cmath"


def _export_without_module(nb, path):
    cell(nb, "#| default_exp").source = "pass"
    nb.metadata.llmscratch.exports = ""


def _module_of_another_series(nb, path):
    cell(nb, "#| default_exp").source = "#| default_exp scientist.sample"


def _second_module_without_docstring(nb, path):
    nb.cells.insert(7, code("#| export basis.more\nimport cmath"))
    for number, other in enumerate((other for other in nb.cells if other.cell_type == "code"), 1):
        other.execution_count = number


def _second_module_of_another_series(nb, path):
    _second_module_without_docstring(nb, path)
    cell(nb, "#| export basis.more").source = '#| export engineer.more\n"""More."""\n\nimport cmath'


def _long_module(nb, path):
    module = path.parent.parent / "llmscratch" / "basis" / "sample.py"
    module.parent.mkdir(parents=True)
    module.write_text("x = 1\n" * 301)


SPOILT = [
    (gate.executed, _unexecuted, "has execution count None, expected 6"),
    (gate.executed, _executed_out_of_order, "has execution count 7, expected 6"),
    (gate.is_python, _not_python, "is not Python: '(' was never closed"),
    (gate.no_stored_errors, _stored_error, "stores the error ZeroDivisionError"),
    (gate.no_machine_paths, _path_in_stdout, "…saved to /home/ann"),
    (gate.no_machine_paths, _path_in_stderr, "/tmp/ipykernel_123"),
    (gate.no_machine_paths, _path_in_html, "C:\\Users\\ann"),
    (gate.no_machine_paths, _path_in_traceback, "~/course"),
    (gate.steered_by_tags, _skip_tag, "is tagged `nbval-skip`"),
    (gate.steered_by_tags, _skip_comment, "'# NBVAL_SKIP'"),
    (gate.steered_by_tags, _ignore_comment, "'# NBVAL_IGNORE_OUTPUT'"),
    (gate.mostly_compared, _too_many_ignored, "3 of the 9 cells that print"),
    (gate.ignored_is_held, _ignored_and_not_held, "no compared cell asserts"),
    (gate.ignored_is_held, _held_after_the_next_heading, "before the next `##` heading"),
    (gate.ignored_is_held, _held_by_a_line_about_something_else, "about its variables"),
    (gate.few_digits, _many_digits, "prints 0.12345"),
    (gate.few_digits, _many_digits_in_a_table, "prints 1234.5"),
    (gate.few_digits, _idle_exact_tag, "remove the tag"),
    (gate.png_with_alt_text, _svg, "image/svg+xml"),
    (gate.png_with_alt_text, _pictures_in_html, "inside HTML"),
    (gate.png_with_alt_text, _no_alt_text, "without alternative text"),
    (gate.pictures_have_numbers, _figure_without_numbers, "neither it nor the next two cells"),
    (gate.pictures_have_numbers, _figure_with_only_an_exercise_after_it, "neither it nor the next two cells"),
    (gate.no_silencing_semicolon, _semicolon, "ends a line in `;`"),
    (gate.title, _two_titles, "only the title does"),
    (gate.title, _no_title, "start with `# `"),
    (gate.title, _no_summary, "> one-line summary"),
    (gate.title, _no_promise, "promise"),
    (gate.card_and_install, _no_card, "must be Markdown `card`"),
    (gate.card_and_install, _badge_of_another_lesson, "no Colab badge that opens …/01_common_basis/08_sample.ipynb"),
    (gate.card_and_install, _no_install, "does not install the course"),
    (gate.sections, _no_recap, "must be ['Recap', 'Exercises', 'Read more']"),
    (gate.sections, _sections_out_of_order, "they are ['Exercises', 'Recap', 'Read more']"),
    (gate.sections, _one_prediction, "1 cells ask"),
    (gate.exercises, _two_exercises, "2 exercises; there must be at least 3"),
    (gate.exercises, _exercise_numbered_wrongly, "numbered [1, 2, 4]"),
    (gate.exercises, _exercise_without_stars, "must read `### Exercise N ★ title`"),
    (gate.exercises, _solved_stub, "exercise 2 has no stub"),
    (gate.exercises, _no_check, "`check(2, name)`"),
    (gate.exercises, _check_not_last, "`check(2, name)`"),
    (gate.exercises, _exercise_answered, "'Exercise 2: not started'"),
    (gate.metadata, _no_metadata, "it has []"),
    (gate.metadata, _unknown_key, "must have exactly"),
    (gate.metadata, _seconds_as_text, "seconds is '15'"),
    (gate.metadata, _tour_as_number, "tour is 1"),
    (gate.metadata, _minutes_as_bool, "minutes is True"),
    (gate.metadata, _too_slow, "at most 90"),
    (gate.metadata, _needs_a_later_lesson, "names '4S01'"),
    (gate.metadata, _needs_itself, "names 'CB08'"),
    (gate.metadata, _needs_no_lesson, "names 'mlp'"),
    (gate.metadata, _exports_something_else, "`#| default_exp` says 'basis.sample'"),
    (gate.metadata, _watch_without_address, "[label, https address]"),
    (gate.metadata, _unknown_extra, "names 'gpu'"),
    (gate.metadata, _kernel_of_a_machine, "python3"),
    (gate.metadata, _python_version, "version of the Python"),
    (gate.metadata, _papermill_metadata, "papermill"),
    (gate.metadata, _timestamps, "execution"),
    (gate.links, _link_to_a_lesson_to_come, "links to 09_autograd.ipynb"),
    (gate.links, _html_link_to_nothing, "links to ../assets/none.png"),
    (gate.links, _link_from_the_root, "08_sample.ipynb, which does not exist beside"),
    (gate.imports, _star_import, "star import of llmscratch.kit"),
    (gate.imports, _undeclared_package, "imports yaml, but pyproject.toml declares pyyaml neither"),
    (gate.imports, _extra_not_named, "imports micrograd"),
    (gate.imports, _exercises_of_another_lesson, "imports llmscratch.exercises.cb07.check: no earlier"),
    (gate.imports, _unknown_module, "no earlier notebook exports it"),
    (gate.imports, _later_module, "CB10 makes it"),
    (gate.imports, _later_module_by_name, "CB10 makes it"),
    (gate.imports, _relative_import, "in no package"),
    (gate.exported, _exported_assert, "has an assert"),
    (gate.exported, _no_docstring, "exports Shape without a docstring"),
    (gate.exported, _late_import, "first exported cell"),
    (gate.exported, _export_without_module, "go together"),
    (gate.exported, _module_of_another_series, "a module of this series, such as basis.name"),
    (gate.exported, _second_module_without_docstring, "is the first of basis.more and must begin with its docstring"),
    (gate.exported, _second_module_of_another_series, "`#| export engineer.more` must name a module of this series"),
    (gate.exported, _long_module, "has 301 lines"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "spoil", "message"), SPOILT, ids=[spoil.__name__[1:] for _, spoil, _ in SPOILT])
def test_a_spoilt_lesson_is_found_out(good, rule, spoil, message):
    nb, path = good
    assert rule(nb, path) == []
    spoil(nb, path)
    found = rule(nb, path)
    assert len(found) == 1, found
    assert message in found[0]


def test_every_rule_is_shown_to_fail():
    assert {rule for rule, _, _ in SPOILT} | {gate.named} == set(gate.RULES)


@pytest.mark.parametrize("name", ["01_common_basis/8_a.ipynb", "01_common_basis/08_A.ipynb", "08_a.ipynb"])
def test_a_notebook_with_another_name_is_found_out(good, course, name):
    nb, path = good
    assert gate.named(nb, path) == []
    assert len(gate.named(nb, course / name)) == 1


def test_an_earlier_module_may_be_imported(good, course):
    nb, path = good
    samples.lesson(course, "07_earlier", "basis.earlier")
    cell(nb, "import numpy").source += "\nimport llmscratch.basis.earlier\nfrom llmscratch.basis import earlier"
    assert gate.imports(nb, path) == []


def test_a_cell_without_variables_is_held_by_any_compared_line(good):
    nb, path = good
    cell(nb, "timing").source = "%timeit sum(range(9))"
    assert gate.ignored_is_held(nb, path) == []


def test_a_figure_may_print_its_numbers_itself_or_right_after(good):
    nb, path = good
    del nb.cells[place(nb, "Its numbers:") : place(nb, "timing")]
    assert len(gate.pictures_have_numbers(nb, path)) == 1
    cell(nb, "show").outputs += text("radius 1\n")
    assert gate.pictures_have_numbers(nb, path) == []


def test_a_syntax_error_may_be_the_point(good):
    nb, path = good
    nb.cells.append(code("print(1", tags=["raises-exception"]))
    assert gate.is_python(nb, path) == []


@pytest.mark.parametrize(
    ("number", "digits"),
    [("0.5", 1), ("0.0012", 2), ("3.14", 3), ("3.140", 4), ("0.03125", 4), ("1.234e-05", 4), ("1e-06", 1), ("12.50", 4),
     ("120.", 0), ("1000.0", 0), ("1000.00", 6), ("0.000", 0)],
)  # fmt: skip
def test_significant_digits(number, digits):
    assert gate.significant_digits(number) == digits


@pytest.mark.parametrize(
    ("line", "floats"),
    [
        ("torch 2.13.0 on 3.11.7", []),
        ("4,000 of 5000", []),
        ("x0.1234", []),
        ("1.234s, -0.5678x (9.87)", ["1.234", "0.5678", "9.87"]),
        ("[1. 2.5e-3]", ["1.", "2.5e-3"]),
        ("loss=.25.", [".25"]),
        ("1e-6", ["1e-6"]),
    ],
)
def test_which_numbers_are_floats(line, floats):
    assert gate.FLOAT.findall(line) == floats


def test_a_lesson_may_import_the_module_it_makes(good):
    nb, path = good
    cell(nb, "import numpy").source += "\nfrom llmscratch.basis.sample import area"
    assert gate.imports(nb, path) == []
