"""Exercises of CB 09, autograd."""

import math

from llmscratch.basis.autograd import Value, record
from llmscratch.exercises.lesson import Lesson, Wrong, expect

lesson = Lesson("CB09")
check, hint, solution = lesson.check, lesson.hint, lesson.solution


def _value(result, given):
    if not isinstance(result, Value):
        raise Wrong(f"expected a Value for {given}, got {type(result).__name__}")
    return result


def _check_sin(answer):
    for number in (0.0, 1.0, -2.5, 100.0):
        given = f"x = {number:g}"
        x = Value(number)
        y = _value(answer(x), given)
        expect(y.data, math.sin(number), given)
        if not isinstance(y._parents, tuple | list):
            raise Wrong("expected a tuple of parents; a tuple of one is written (x,), with a comma")
        (y * 3.0).backward()
        expect(x.grad, 3 * math.cos(number), f"the gradient of 3 sin(x) at {given}")
    x = Value(0.5)
    answer(answer(x)).backward()
    expect(x.grad, math.cos(math.sin(0.5)) * math.cos(0.5), "the gradient of sin(sin(x)) at x = 0.5")


def sin(x):
    return record(math.sin(x.data), (x,), (math.cos(x.data),), "sin")


def _series(x):
    return x - x**3 / 6 + x**5 / 120  # good near 0 only


lesson.add(
    1, 1, "An operation of your own", check=_check_sin,
    hints=["record takes the result, a tuple of parents, a tuple of slopes (one a parent) and a name.",
           "The slope of sin at x is cos(x). Use math.sin and math.cos on x.data."],
    solution=sin,
    wrong={
        (lambda x: record(math.sin(x.data), (x,), (-math.cos(x.data),), "sin")): "the gradient of 3 sin(x)",
        (lambda x: Value(math.sin(x.data))): "the gradient of 3 sin(x)",
        _series: "x = 1",
        (lambda x: record(math.sin(x.data), (x), (math.cos(x.data)), "sin")): "with a comma",
        (lambda x: math.sin(x.data)): "expected a Value",
    },
)  # fmt: skip


def _check_log_sum_exp(answer):
    for numbers in ([0.0, 0.0], [1.0, 2.0, 3.0], [1000.0, 1001.0, 1002.0], [-1000.0, -1003.0], [5.0], [0.0, 1000.0],
                    [1000.0, 0.0], [3000.0, 0.0, -3000.0]):  # fmt: skip
        given = f"values {numbers}"
        values = [Value(n) for n in numbers]
        y = _value(answer(values), given)
        top = max(numbers)
        total = sum(math.exp(n - top) for n in numbers)
        expect(y.data, top + math.log(total), given)
        y.backward()
        expect([v.grad for v in values], [math.exp(n - top) / total for n in numbers], f"the gradients of {given}")
        if [v.data for v in values] != numbers:
            raise Wrong(f"expected the {given} to be left as they are, but your function changed their data")


def log_sum_exp(values):
    top = max(v.data for v in values)  # a plain number: constant for the gradient
    return sum((v - top).exp() for v in values).log() + top


def _detached(values):
    top = max(values, key=lambda v: v.data)
    return sum((v - top).exp() for v in values).log() + top.data  # subtracts the Value, adds back the number


def _around_the_mean(values):
    middle = sum(v.data for v in values) / len(values)
    return sum((v - middle).exp() for v in values).log() + middle


lesson.add(
    2, 2, "Log-sum-exp", check=_check_log_sum_exp,
    hints=["Take out the largest value, as in notebook 08: ln Σ exp(v − m) + m.",
           "The result does not depend on m, so m may be a plain number. A Value must go in and come out again."],
    solution=log_sum_exp,
    wrong={
        (lambda values: sum(v.exp() for v in values).log()): "OverflowError",
        (lambda values: sum((v - values[0].data).exp() for v in values).log() + values[0].data): "OverflowError",
        (lambda values: sum((v - values[-1].data).exp() for v in values).log() + values[-1].data): "OverflowError",
        _around_the_mean: "OverflowError",
        (lambda values: sum((v - max(u.data for u in values)).exp() for v in values).log()): "expected 3.40761",
        _detached: "the gradients of values",
    },
)  # fmt: skip


def _check_newton(answer):
    calls = set()

    def counted(f):
        def counting(x):
            calls.add(x.data if isinstance(x, Value) else x)  # a step may ask twice at one place
            return f(x)

        return counting

    def expect_root(f, start, root, given):
        calls.clear()
        try:
            got = answer(counted(f), start)
        except ValueError as error:
            raise Wrong(f"expected {root:.6g} for {given}, got a ValueError: {error}") from None
        if isinstance(got, Value):
            raise Wrong(f"expected a plain float for {given}, got a Value")
        expect(got, root, given, atol=1e-7)

    expect_root(lambda x: x * x - 2, 1.0, math.sqrt(2), "f = x² − 2, start 1")
    expect_root(lambda x: x * x - 2, 1e20, math.sqrt(2), "f = x² − 2, start 1e20, which takes 71 steps")
    expect_root(lambda x: x.exp() - 5, 3.0, math.log(5), "f = eˣ − 5, start 3")
    expect_root(lambda x: 1e-6 * (x * x - 2), 1.0, math.sqrt(2), "f = 0.000001 (x² − 2), start 1")
    expect_root(
        lambda x: sum(82 / (1 + x) ** k for k in range(1, 13)) - 900, 0.01, 0.0140021886, "the bicycle, start 0.01"
    )
    calls.clear()
    answer(counted(lambda x: x * x - 2), 1.0, tolerance=0.2)
    if len(calls) > 3:
        raise Wrong(
            f"expected at most 3 steps for f = x² − 2, start 1, tolerance 0.2, got {len(calls)}: use the tolerance"
        )
    for f, given in [
        (lambda x: x * x + 1, "f = x² + 1, which has no root"),
        (lambda x: x * 0 + 1, "f = 1, with slope 0"),
    ]:
        calls.clear()
        try:
            got = answer(counted(f), 0.7)
        except ValueError:
            if len(calls) > 101:
                raise Wrong(f"expected at most 100 steps for {given}, got {len(calls)}") from None
            continue
        except ZeroDivisionError:
            raise Wrong(f"expected a ValueError for {given}, got ZeroDivisionError") from None
        raise Wrong(f"expected a ValueError for {given}, got {got!r}")


def newton(f, start, tolerance=1e-10):
    guess = start
    for _ in range(100):
        x = Value(guess)
        y = f(x)
        y.backward()
        if x.grad == 0:
            raise ValueError(f"the slope at {guess:g} is zero: Newton's method cannot go on")
        step = y.data / x.grad
        guess -= step
        if abs(step) <= tolerance:
            return guess
    raise ValueError("no root found in 100 steps")


def _never_gives_up(f, start, tolerance=1e-10):
    for _ in range(100):
        x = Value(start)
        y = f(x)
        y.backward()
        start -= y.data / x.grad
    return start


def _small_f(f, start, tolerance=1e-6):
    for _ in range(100):
        x = Value(start)
        y = f(x)
        if abs(y.data) < tolerance:  # a small f is not a small error in x
            return start
        y.backward()
        if x.grad == 0:
            raise ValueError("slope zero")
        start -= y.data / x.grad
    raise ValueError("no root")


def _twenty_steps(f, start, tolerance=1e-10):
    for _ in range(20):
        x = Value(start)
        y = f(x)
        y.backward()
        if x.grad == 0:
            break
        start -= y.data / x.grad
        if abs(y.data / x.grad) <= tolerance:
            return start
    raise ValueError("no root")


def _dirty(f, start, tolerance=1e-10):
    x = Value(start)
    for _ in range(100):
        y = f(x)
        y.backward()  # x.grad is never zeroed
        if x.grad == 0:
            raise ValueError("slope zero")
        step = y.data / x.grad
        x.data -= step
        if abs(step) < tolerance:
            return x.data
    raise ValueError("no root")


lesson.add(
    3, 2, "The interest hidden in a loan", check=_check_newton,
    hints=["Make a fresh Value for each guess; then no gradient is left over from the last one.",
           "Measure the step before you decide to stop; after a short step the new guess is the root.",
           "After the loop, raise ValueError; before dividing, look at the slope. The root of the bicycle is near "
           "0.0140 a month, 18.2% a year."],
    solution=newton,
    wrong={
        _never_gives_up: "use the tolerance", _small_f: "0.000001", _dirty: "f = x² − 2", _twenty_steps: "1e20",
    },
)  # fmt: skip


def _check_dot(answer):
    w, x, b = [Value(2.0), Value(-1.0)], [Value(3.0), Value(0.5)], Value(0.25)
    given = "w = [2, −1], x = [3, 0.5], b = 0.25"
    y = _value(answer(w, x, b), given)
    expect(y.data, 5.75, given)
    names = {**{v: f"w[{i}]" for i, v in enumerate(w)}, **{v: f"x[{i}]" for i, v in enumerate(x)}, b: "b"}
    if extra := set(y._parents) - set(names):
        raise Wrong(
            f"expected one operation on the inputs themselves for {given}, got {len(extra)} other node(s) between"
        )
    if missing := [names[v] for v in names if v not in y._parents]:
        raise Wrong(f"expected every input among the parents for {given}, missing: {', '.join(missing)}")
    (y * y).backward()
    expect([v.grad for v in w], [2 * 5.75 * 3.0, 2 * 5.75 * 0.5], f"the gradients of w for dot² at {given}")
    expect([v.grad for v in x], [2 * 5.75 * 2.0, -2 * 5.75], f"the gradients of x for dot² at {given}")
    expect(b.grad, 2 * 5.75, f"the gradient of b for dot² at {given}")
    three = [Value(n) for n in (1.0, 2.0, 3.0)]
    y = answer(three, [Value(n) for n in (4.0, 5.0, 6.0)], Value(7.0))
    expect(y.data, 39.0, "w = [1, 2, 3], x = [4, 5, 6], b = 7")
    y.backward()
    expect([v.grad for v in three], [4.0, 5.0, 6.0], "the gradients of w at w = [1, 2, 3], x = [4, 5, 6], b = 7")
    v, c = Value(3.0), Value(1.0)
    y = answer([v, v], [v, c], c)  # v² + vc + c
    expect(y.data, 13.0, "w = [v, v], x = [v, c], b = c with v = 3, c = 1")
    y.backward()
    expect([v.grad, c.grad], [7.0, 4.0], "the gradients when v and c occur several times")


def dot(w, x, b):
    data = b.data + sum(p.data * q.data for p, q in zip(w, x, strict=True))
    slopes = (*(q.data for q in x), *(p.data for p in w), 1.0)  # the slope of w is x, and the other way round
    return record(data, (*w, *x, b), slopes, "dot")


def _not_fused(w, x, b):
    for p, q in zip(w, x, strict=True):
        b = b + p * q
    return b


def _two_inputs(w, x, b):
    data = w[0].data * x[0].data + w[1].data * x[1].data + b.data
    return record(data, (*w[:2], *x[:2], b), (x[0].data, x[1].data, w[0].data, w[1].data, 1.0), "dot")


def _swapped(w, x, b):
    out = dot(w, x, b)
    return record(out.data, (*w, *x, b), (*(p.data for p in w), *(q.data for q in x), 1.0), "dot")


def _no_bias(w, x, b):
    out = dot(w, x, b)
    return record(out.data, (*w, *x), (*(q.data for q in x), *(p.data for p in w)), "dot")


lesson.add(
    4, 3, "A neuron as one node", check=_check_dot,
    hints=["One call of record, with the parents (*w, *x, b). The slopes must stand in the same order.",
           "A Value that occurs twice simply stands in parents twice: backward adds up."],
    solution=dot,
    wrong={_not_fused: "expected one operation", _swapped: "the gradients of w", _no_bias: "missing: b",
           _two_inputs: "expected 39"},
)  # fmt: skip
