"""The exercises: stubs are "not started", solutions are right, and a wrong answer is told what is wrong with it."""

import __future__

import ast
import importlib
import inspect
import pkgutil
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
import samples
from anatomy import checked_name, code_cells, exercise_sections, exercises_module, lesson_id, read, stub, tree

import llmscratch.exercises
from llmscratch.exercises import Lesson, Wrong, expect, shown
from llmscratch.exercises.lesson import not_started
from llmscratch.kit.paths import SERIES

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = {
    exercises_module(path): path for series in SERIES for path in sorted((ROOT / series).glob("[0-9][0-9]_*.ipynb"))
}
MODULES = [
    module.name for module in pkgutil.iter_modules(llmscratch.exercises.__path__)
    if re.fullmatch(r"(cb|s|e)\d\d", module.name)
]  # fmt: skip


def lesson_of(module: str) -> Lesson:
    return importlib.import_module(f"llmscratch.exercises.{module}").lesson


def run_alone(statement: ast.stmt) -> object:
    """What a stub defines, run without the code around it: defaults, annotations and decorators are dropped."""
    if isinstance(statement, ast.FunctionDef):
        statement.decorator_list = []
        statement.args.defaults = [ast.Constant(None) for _ in statement.args.defaults]
        statement.args.kw_defaults = [ast.Constant(None) for _ in statement.args.kw_defaults]
    module = ast.fix_missing_locations(ast.Module([statement], []))
    namespace: dict[str, object] = {}
    exec(compile(module, "stub", "exec", __future__.annotations.compiler_flag), namespace)
    return next(value for name, value in namespace.items() if name != "__builtins__")


def squeezed(text: str) -> str:
    return re.sub(r"\s", "", text)


def solution_body(solution) -> list[ast.stmt]:
    """The statements of a solution, a function or a class, without its docstring."""
    definition = ast.parse(textwrap.dedent(inspect.getsource(solution))).body[0]
    return definition.body[1:] if ast.get_docstring(definition) is not None else definition.body


def telling_parts(solution) -> list[str]:
    """The solution's statements as squeezed code (of a `return`, its value); those under 12 characters tell nothing."""
    parts = []
    for node in (node for statement in solution_body(solution) for node in ast.walk(statement)):
        if isinstance(node, ast.Return) and node.value:
            parts.append(ast.unparse(node.value))
        elif isinstance(node, ast.Assign | ast.AugAssign | ast.Expr | ast.Raise):
            parts.append(ast.unparse(node))
    return [part for part in map(squeezed, parts) if len(part) >= 12]


def heading_faults(lesson: Lesson, nb) -> list[str]:
    """The notebook's headings have the numbers, stars and titles that the exercises have."""
    in_notebook = [(s.number, s.stars, s.title) for s in exercise_sections(nb)]
    in_module = [(e.number, e.stars, e.title) for _, e in sorted(lesson.exercises.items())]
    if in_notebook == in_module:
        return []
    return [f"{lesson.code}: the notebook's headings say {in_notebook}, the exercises {in_module}"]


def answer_faults(lesson: Lesson, number: int) -> list[str]:
    """The solution is right; at least two wrong answers are wrong, each with a message that has its fragment."""
    exercise = lesson.exercises[number]
    state, message = lesson.verdict(number, exercise.solution)
    found = [] if state == "right" else [f"exercise {number}: the solution is {state}: {message}"]
    if len(exercise.wrong) < 2:
        found.append(f"exercise {number} keeps {len(exercise.wrong)} wrong answers; at least 2 are needed")
    for place, (answer, fragment) in enumerate(exercise.wrong.items(), start=1):
        state, message = lesson.verdict(number, answer)
        if state != "wrong" or not fragment or fragment not in message:
            found.append(
                f"exercise {number}, wrong answer {place}: the verdict is {state!r}: {message!r}; "
                f"expected 'wrong' and a message with {fragment!r}"
            )
    return found


def giveaway_faults(lesson: Lesson, number: int, nb) -> list[str]:
    """At least two hints, and the solution's code neither in a hint nor in the notebook."""
    exercise = lesson.exercises[number]
    found = []
    if len(exercise.hints) < 2 or len(set(exercise.hints)) < len(exercise.hints) or not all(exercise.hints):
        found.append(f"exercise {number} must have at least 2 hints, none twice and none empty")
    for place, hint in enumerate(exercise.hints, start=1):
        given = [part for part in telling_parts(exercise.solution) if part in squeezed(hint)]
        if given:
            found.append(f"exercise {number}, hint {place} gives the solution away: {given[0]}")
    body = [ast.dump(statement) for statement in solution_body(exercise.solution)]
    nodes = (node for _, cell in code_cells(nb) for node in ast.walk(tree(cell)))
    bodies = ([ast.dump(s) for s in node.body] for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef))
    in_code = any(other[-len(body) :] == body for other in bodies)
    prose = squeezed("\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown"))
    parts = telling_parts(exercise.solution)
    if in_code or (parts and all(part in prose for part in parts)):
        found.append(f"exercise {number}: the solution stands in the notebook")
    return found


def stub_faults(lesson: Lesson, nb) -> list[str]:
    """Each stub in the notebook, as the reader finds it, is not started."""
    found = []
    for number, _, _, cells in exercise_sections(nb):
        name = next(filter(None, (checked_name(cell, number) for cell in cells)), "")
        statement = stub(cells, name)
        state, _ = lesson.verdict(number, run_alone(statement)) if statement else ("missing", "")
        if state != "not started":
            found.append(f"exercise {number}: the stub is {state!r}, not 'not started'")
    return found


# The course's exercises


@pytest.fixture(scope="module", params=MODULES)
def lesson_and_notebook(request):
    assert request.param in NOTEBOOKS, f"llmscratch.exercises.{request.param} belongs to no notebook"
    return lesson_of(request.param), NOTEBOOKS[request.param]


def test_every_notebook_has_its_exercises():
    assert sorted(NOTEBOOKS) == sorted(MODULES)


def test_the_module_belongs_to_its_lesson(lesson_and_notebook):
    lesson, path = lesson_and_notebook
    module = importlib.import_module(f"llmscratch.exercises.{exercises_module(path)}")
    assert lesson.code == lesson_id(path)
    assert (module.check, module.hint, module.solution) == (lesson.check, lesson.hint, lesson.solution)


def test_headings_match_the_exercises(lesson_and_notebook):
    lesson, path = lesson_and_notebook
    assert heading_faults(lesson, read(path)) == []


def test_stubs_are_not_started(lesson_and_notebook):
    lesson, path = lesson_and_notebook
    assert stub_faults(lesson, read(path)) == []


def test_solutions_are_right_and_wrong_answers_are_caught(lesson_and_notebook):
    lesson, _ = lesson_and_notebook
    assert [fault for number in lesson.exercises for fault in answer_faults(lesson, number)] == []


def test_nothing_gives_a_solution_away(lesson_and_notebook):
    lesson, path = lesson_and_notebook
    nb = read(path)
    assert [fault for number in lesson.exercises for fault in giveaway_faults(lesson, number, nb)] == []


def test_solutions_can_be_shown(lesson_and_notebook, capsys):
    lesson, _ = lesson_and_notebook
    for number, exercise in lesson.exercises.items():
        lesson.solution(number)
        assert exercise.solution.__name__ in capsys.readouterr().out


# A lesson to spoil: the functions above find what is wrong with it


def double(x):
    """Twice x."""
    longer_name = x + x
    return longer_name


def check_double(answer):
    expect(answer(3), 6, "x = 3")


def halve(x):
    return x / 2


GOOD = {
    "check": check_double, "hints": ["Add it to itself.", "Or multiply."], "solution": double,
    "wrong": {halve: "expected 6 for x = 3, got 1.5", abs: "got 3"},
}  # fmt: skip


def sample_lesson(**changes) -> Lesson:
    lesson = Lesson("CB08")
    for number, name in enumerate(["one", "two", "three"], start=1):
        lesson.add(number, number, f"Double with {name}", **(GOOD | (changes if number == 2 else {})))
    return lesson


@pytest.fixture
def sample(tmp_path):
    return samples.lesson(samples.course(tmp_path))[0]


def all_faults(lesson: Lesson, nb) -> list[str]:
    in_step = heading_faults(lesson, nb) + stub_faults(lesson, nb)
    return in_step + answer_faults(lesson, 2) + giveaway_faults(lesson, 2, nb)


def test_good_exercises_have_no_faults(sample):
    assert all_faults(sample_lesson(), sample) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"solution": halve}, "the solution is wrong: expected 6 for x = 3, got 1.5"),
        ({"wrong": {halve: "got 1.5"}}, "keeps 1 wrong answers"),
        ({"wrong": {halve: "got 1.5", (lambda x: 2 * x): "got 6"}}, "wrong answer 2: the verdict is 'right'"),
        ({"wrong": {halve: "got 1.5", (lambda x: 0): "got 7"}}, "a message with 'got 7'"),
        ({"wrong": {halve: "got 1.5", (lambda x: None): ""}}, "wrong answer 2: the verdict is 'not started'"),
        ({"wrong": {halve: "got 1.5", abs: ""}}, "a message with ''"),
        ({"hints": ["Add it to itself."]}, "at least 2 hints"),
        ({"hints": ["Add.", "Add."]}, "none twice"),
        ({"hints": ["Add.", "Write `longer_name  =  x + x`."]}, "hint 2 gives the solution away: longer_name=x+x"),
    ],
)
def test_bad_exercises_are_found_out(sample, changes, message):
    found = all_faults(sample_lesson(**changes), sample)
    assert len(found) == 1, found
    assert message in found[0]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("### Exercise 2 ★★ Double", "### Exercise 2 ★★★ Double", "the notebook's headings say"),
        ("Double with two", "Twice with two", "the notebook's headings say"),
        ("    ...\n\n\ncheck(2", "    ...\n    return x\n\n\ncheck(2", "exercise 2: the stub is 'missing'"),
        ("## Recap", "## Recap\n\n`longer_name = x + x` and `longer_name`", "the solution stands in the notebook"),
        ("import numpy", "def d(x):\n    longer_name = x + x\n    return longer_name\nimport numpy", "stands in"),
    ],
)
def test_a_notebook_out_of_step_is_found_out(sample, before, after, message):
    for cell in sample.cells:
        cell.source = cell.source.replace(before, after)
    found = all_faults(sample_lesson(), sample)
    assert len(found) == 1, found
    assert message in found[0]


# The machinery: not started, right, wrong


def stub_with_docstring(x: int, y: int = 2) -> int:
    """What to write."""
    ...


def stub_with_pass(x):
    pass


def closure_stub():
    def inner(x): ...

    return inner


@pytest.mark.parametrize(
    "answer", [..., None, stub_with_docstring, stub_with_pass, closure_stub(), lambda: ..., lambda x: None],
)  # fmt: skip
def test_a_stub_is_not_started(answer):
    assert not_started(answer)


def test_a_stub_is_not_started_whatever_its_signature():
    namespace = {}
    exec("def answer(x, /, y=1, *rest, z=2, **named): 'doc'; ...", namespace)
    assert not_started(namespace["answer"])


def with_a_rest(x):
    ...
    return x


@pytest.mark.parametrize(
    "answer",
    [0, "", [], False, np.zeros(2), double, with_a_rest, lambda x: x, lambda: 3, lambda: "text", lambda: True,
     lambda: (), lambda: [], abs, Lesson],
)  # fmt: skip
def test_an_answer_is_started(answer):
    assert not not_started(answer)


@pytest.mark.parametrize(
    ("got", "want", "message"),
    [
        (4, 3, "expected 3 for x = 1, got 4"),
        (1.23456789, 2.0, "expected 2 for x = 1, got 1.23457"),
        ([1, 2], [1, 3], "expected [1, 3] for x = 1, got [1, 2]"),
        (np.array([1.0, 2.0]), np.array([1 / 3, 2.0]), "expected [0.3333, 2.    ] for x = 1, got [1., 2.]"),
        (np.zeros(20), np.ones(20), "expected an array of shape (20,) for x = 1, got an array of shape (20,)"),
        (np.zeros((2, 1)), np.zeros(2), "expected shape (2,) for x = 1, got shape (2, 1)"),
        (5, [5, 5], "expected shape (2,) for x = 1, got shape ()"),
        (None, 3, "expected 3 for x = 1, got nothing (is a `return` missing?)"),
        (..., 3, "expected 3 for x = 1, got nothing (is a `return` missing?)"),
        ("three", 3, "expected 3 for x = 1, got 'three' (str)"),
        ("b", "a", "expected 'a' for x = 1, got 'b'"),
        (3, None, "expected None for x = 1, got 3"),
        (1, True, "expected True for x = 1, got 1"),
        (True, False, "expected False for x = 1, got True"),
        (np.nan, 1.0, "expected 1 for x = 1, got nan"),
        (3 + 1e-3, 3, "expected 3 for x = 1, got 3.001"),
    ],
)
def test_expect_names_what_was_expected_on_which_input(got, want, message):
    with pytest.raises(Wrong) as caught:
        expect(got, want, "x = 1")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("got", "want"),
    [(3, 3.0), (3 + 1e-7, 3), ([1, 2], np.array([1.0, 2.0])), (np.nan, np.nan), (np.float32(0.5), 0.5), ("a", "a"),
     (True, True), (np.True_, True), (None, None)],
)  # fmt: skip
def test_expect_accepts_equal_values(got, want):
    expect(got, want, "x = 1")


def test_expect_takes_its_tolerance():
    expect(3.1, 3, "x = 1", atol=0.2)
    with pytest.raises(Wrong):
        expect(3.3, 3, "x = 1", atol=0.2)


def test_shown_is_short():
    assert shown(np.arange(1000)) == "an array of shape (1000,)"
    assert shown(np.eye(2)) == "[[1., 0.], [0., 1.]]"
    assert shown(np.float32(1) / 3) == "0.333333"


@pytest.fixture
def lesson():
    return sample_lesson()


def raises(error):
    def answer(x):
        raise error

    return answer


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (..., ("not started", "replace the `...`, then run this cell again; hint(1) helps")),
        (raises(NotImplementedError()), ("not started", "your code raises NotImplementedError; hint(1) helps")),
        (raises(KeyError("w")), ("wrong", "your code stopped with KeyError: 'w'")),
        (lambda: 6, ("wrong", "your code stopped with TypeError")),
        (7, ("wrong", "your code stopped with TypeError: 'int' object is not callable")),
        (halve, ("wrong", "expected 6 for x = 3, got 1.5")),
        (double, ("right", "Double with one")),
    ],
)
def test_verdict(lesson, answer, verdict):
    state, message = lesson.verdict(1, answer)
    assert state == verdict[0]
    assert message.startswith(verdict[1])


def test_the_reader_can_still_stop_a_check(lesson):
    with pytest.raises(KeyboardInterrupt):
        lesson.verdict(1, raises(KeyboardInterrupt()))


@pytest.mark.parametrize("ask", [lambda x: x.check(9, 1), lambda x: x.hint(9), lambda x: x.solution(9)])
def test_an_exercise_that_is_not_there(lesson, ask):
    with pytest.raises(ValueError, match=r"CB08 has exercises \[1, 2, 3\], not 9"):
        ask(lesson)


def test_check_prints_one_line_and_keeps_the_verdict(lesson, capsys):
    from llmscratch.exercises import progress

    lesson.check(1, ...)
    assert progress.load() == {}
    lesson.check(1, halve)
    assert progress.load() == {"CB08": {"1": "wrong"}}
    lesson.check(1, double)
    lesson.check(1, halve)
    lesson.check(2, halve)
    assert progress.load() == {"CB08": {"1": "right", "2": "wrong"}}
    assert capsys.readouterr().out.splitlines() == [
        "Exercise 1: not started · replace the `...`, then run this cell again; hint(1) helps",
        "Exercise 1: wrong: expected 6 for x = 3, got 1.5",
        "Exercise 1: right · Double with one",
        "Exercise 1: wrong: expected 6 for x = 3, got 1.5",
        "Exercise 2: wrong: expected 6 for x = 3, got 1.5",
    ]


def test_hints_come_one_by_one_and_start_again(lesson, capsys):
    for _ in range(3):
        lesson.hint(1)
    lesson.hint(2)
    assert capsys.readouterr().out.splitlines() == [
        "Hint 1 of 2: Add it to itself.", "Hint 2 of 2: Or multiply.", "Hint 1 of 2: Add it to itself.",
        "Hint 1 of 2: Add it to itself.",
    ]  # fmt: skip


def test_solution_prints_the_code(lesson, capsys):
    lesson.solution(1)
    assert capsys.readouterr().out == (
        'def double(x):\n    """Twice x."""\n    longer_name = x + x\n    return longer_name\n'
    )
