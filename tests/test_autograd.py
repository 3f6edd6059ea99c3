"""CB 09's engine against torch.autograd on random expressions, and what it promises about depth, memory and errors."""

import ast
import copy
import gc
import inspect
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from llmscratch.basis import autograd
from llmscratch.basis.autograd import MLP, Node, Operators, Value, record, softplus, sorted_graph

LEAVES = 3
UNARY = ["neg", "tanh", "sigmoid", "relu", "exp", "log", "square", "cube", "inverse", "root"]
BINARY = ["+", "-", "*", "/", "**"]
NUMBERS = st.floats(-3, 3).map(lambda x: round(x, 3))


def expressions():
    leaf = st.tuples(st.just("leaf"), st.integers(0, LEAVES - 1))
    number = st.tuples(st.just("number"), NUMBERS)
    return st.recursive(
        leaf | number,
        lambda part: st.tuples(st.sampled_from(UNARY), part) | st.tuples(st.sampled_from(BINARY), part, part),
        max_leaves=12,
    )


def compute(tree, leaves):
    """The expression's value on Values or on torch scalars: both have the same operators and methods.

    Logarithms, roots, divisors and bases get arguments that are positive, exponents ones that are not large.
    """
    kind, *parts = tree
    if kind == "leaf":
        return leaves[parts[0]]
    if kind == "number":
        return parts[0]
    a, b = ([compute(part, leaves) for part in parts] + [None])[:2]
    if kind in BINARY and isinstance(a, float) and isinstance(b, float) or kind in UNARY and isinstance(a, float):
        a = leaves[0] * 0 + a  # an operation of plain numbers alone records nothing
    if kind in ("/", "**"):
        if kind == "/":
            return a / (b * b + 0.5)
        return (a * a + 0.1) ** (b.tanh() * 2 if not isinstance(b, float) else b)
    if kind in BINARY:
        return {"+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b}[kind]()
    if kind in ("log", "root", "inverse"):
        positive = a * a + 0.1
        return positive.log() if kind == "log" else positive ** (0.5 if kind == "root" else -1)
    if kind == "exp":
        return (a.tanh() * 3).exp()
    if kind in ("square", "cube"):
        return a ** (2 if kind == "square" else 3.0)
    return -a if kind == "neg" else getattr(a, kind)()


@settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(expressions(), st.lists(NUMBERS, min_size=LEAVES, max_size=LEAVES))
def test_equals_torch_on_500_random_expressions(tree, numbers):
    theirs = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in numbers]
    expected = compute(tree, theirs)
    assume(isinstance(expected, torch.Tensor) and expected.grad_fn is not None and abs(expected.item()) < 1e100)
    expected.backward()
    gradients = [0.0 if t.grad is None else t.grad.item() for t in theirs]
    assume(all(abs(g) < 1e100 for g in gradients))
    ours = [Value(x) for x in numbers]
    result = compute(tree, ours)
    result.backward()
    assert result.data == pytest.approx(expected.item(), rel=1e-9, abs=1e-12)
    assert [v.grad for v in ours] == pytest.approx(gradients, rel=1e-8, abs=1e-10)


def test_refuses_what_has_no_finite_answer():
    one = Value(1.0)
    for make in (lambda: Value(-1.0).log(), lambda: Value(0.0).log()):
        with pytest.raises(ValueError, match="must be positive"):
            make()
    for make in (lambda: Value(-2.0) ** 0.5, lambda: Value(0.0) ** -1, lambda: Value(-2.0) ** one):
        with pytest.raises(ValueError, match="a base > 0 is needed"):
            make()
    for make in (lambda: one / 0, lambda: one / Value(0.0)):
        with pytest.raises(ZeroDivisionError, match="division by zero"):
            make()
    with pytest.raises(OverflowError, match=r"exp\(1000\) is too large"):
        Value(1000.0).exp()
    for make in (lambda: Value(1e200) ** 2, lambda: 2 ** Value(2000.0), lambda: Value(1e-200) ** -1):
        with pytest.raises(OverflowError, match=r"\*\* .*: the result or its slope is too large"):
            make()


def test_edges_of_powers_quotients_and_relu():
    for base, exponent, slope in [
        (0.0, 2, 0.0),
        (0.0, 0, 0.0),
        (0.0, 0.5, math.inf),
        (-3.0, 2, -6.0),
        (1e-320, 0, 0.0),
    ]:
        x = Value(base)
        y = x**exponent
        y.backward()
        assert (y.data, x.grad) == (base**exponent, slope)
    a, b = Value(1e300), Value(1e200)
    (a / b).backward()
    assert b.grad == pytest.approx(-1e-100)
    assert math.isnan(Value(math.nan).relu().data)


def test_comparisons_look_at_the_data():
    assert Value(1.0) < 2 and Value(3.0) > Value(2.0) and not Value(3.0) < 2
    assert Value(2.0) <= 2 and Value(3.0) >= Value(3.0) and not Value(3.0) <= 2 and not Value(1.0) >= 2
    nan = Value(math.nan)
    assert not (nan <= 1.0 or nan >= 1.0)
    assert max([Value(1.0), Value(3.0), Value(2.0)]).data == 3.0


def test_only_leaves_may_be_set():
    x = Value(3.0)
    y = x * x
    for _ in range(2):
        with pytest.raises(RuntimeError, match="this one is the result of"):
            y.data = 100.0
        y.backward() if x.grad == 0 else None  # neither before nor after it was freed
    assert (y.data, x.grad) == (9.0, 6.0)


def test_copies_and_pickles_are_new_leaves():
    x = Value(2.0, label="x")
    for twin in (copy.deepcopy(x), pickle.loads(pickle.dumps(x)), copy.copy(x * 1)):
        y = twin * twin
        y.backward()
        assert twin.grad == 4.0
    assert copy.copy(x).label == "x"
    later = "import pickle, sys; x = pickle.loads(sys.stdin.buffer.read()); y = x * x; y.backward(); print(x.grad)"
    sent = pickle.dumps([Value(float(i)) for i in range(1000)][-1])
    done = subprocess.run([sys.executable, "-c", later], input=sent, capture_output=True, check=True)
    assert float(done.stdout) == 1998.0


def test_a_record_with_too_few_slopes_is_refused():
    x = Value(2.0)
    with pytest.raises(ValueError, match="zip"):
        record(4.0, (x, x), (2.0,), "square").backward()


@pytest.mark.parametrize("number", [2, 2.5, True, np.float64(2.5), np.float32(2.5), np.int64(2)])
def test_plain_numbers_on_either_side(number):
    for ours, plain in [
        (number + Value(3.0), number + 3.0), (Value(3.0) + number, 3.0 + number),
        (number - Value(3.0), number - 3.0), (Value(3.0) - number, 3.0 - number),
        (number * Value(3.0), number * 3.0), (Value(3.0) * number, 3.0 * number),
        (number / Value(3.0), number / 3.0), (Value(3.0) / number, 3.0 / number),
        (number ** Value(3.0), number**3.0), (Value(3.0) ** number, 3.0**number),
    ]:  # fmt: skip
        assert isinstance(ours, Value)
        assert ours.data == pytest.approx(float(plain))


@pytest.mark.parametrize("bad", ["1", None, [1.0], 1j])
def test_what_is_no_number_is_refused(bad):
    with pytest.raises(TypeError, match="must be a real number"):
        Value(bad)
    with pytest.raises(TypeError):
        Value(1.0) + bad
    with pytest.raises(TypeError, match="the exponent must be a real number"):
        Value(1.0) ** bad


def test_a_chain_of_100_000_nodes_and_its_end():
    x = Value(1.0)
    y = x
    for _ in range(100_000):
        y = y + 0.001
    y.backward(retain_graph=True)
    assert x.grad == 1.0
    del y  # freeing a deep graph must not overflow the stack either
    gc.collect()


def test_graphs_are_freed_without_the_garbage_collector():
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            x = Value(0.5)
            y = (x * x + 1).tanh().sigmoid().log()
            y.backward()
        del x, y
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_leaves_add_up_and_inner_nodes_do_not():
    x = Value(1.0)
    y = x * 2
    z = y * y
    z.backward(retain_graph=True)
    z.backward(retain_graph=True)
    assert (x.grad, y.grad) == (16.0, 4.0)


def test_a_freed_graph_says_so_and_changes_nothing():
    x = Value(2.0)
    y = x * x
    z = y + 1
    y.backward()
    with pytest.raises(RuntimeError, match="freed by an earlier backward"):
        z.backward()
    assert x.grad == 4.0


def test_a_value_changed_in_place_is_noticed_before_any_gradient_changes():
    w, x = Value(2.0, label="w"), Value(3.0)
    loss = (w * x).tanh() + w
    w.data = 5.0
    with pytest.raises(RuntimeError, match="w was changed in place after"):
        loss.backward()
    assert (w.grad, x.grad) == (0.0, 0.0)
    fresh = (w * x).tanh() + w
    fresh.backward()  # a value may be used again after a change
    assert w.grad == pytest.approx(1 + (1 - math.tanh(15.0) ** 2) * 3)


def test_softplus_is_exact_far_out():
    for number, value, slope in [(-1000.0, 0.0, 0.0), (1000.0, 1000.0, 1.0), (0.0, math.log(2), 0.5)]:
        x = Value(number)
        y = softplus(x)
        y.backward()
        assert (y.data, x.grad) == (value, slope)


def test_sigmoid_does_not_overflow():
    for number, expected in [(-1000.0, 0.0), (1000.0, 1.0), (0.0, 0.5)]:
        x = Value(number)
        y = x.sigmoid()
        y.backward()
        assert y.data == expected
        assert math.isfinite(x.grad)


def test_the_slope_of_tanh_keeps_its_digits_far_out():
    for number in (-19.0, -1.0, 0.0, 0.3, 15.0, 300.0):
        x = Value(number)
        x.tanh().backward()
        assert x.grad == pytest.approx(1 / math.cosh(number) ** 2, rel=1e-13)


def test_order_puts_every_user_first():
    a, b = Value(1.0), Value(2.0)
    c = a * b
    d = (c + a) * c
    order = {node: i for i, node in enumerate(sorted_graph(d))}
    assert all(order[node] < order[parent] for node in order for parent in node._parents)


def test_the_engine_is_at_most_130_lines_of_code():
    lines = 1  # the clock
    for part in (autograd.real, sorted_graph, Node, record, Operators, Value):
        source = inspect.getsource(part)
        documented = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        docstrings = sum(
            node.body[0].end_lineno - node.body[0].lineno + 1 for node in documented if ast.get_docstring(node)
        )
        lines += sum(bool(line.strip()) for line in source.splitlines()) - docstrings
    assert lines <= 130


def test_networks_check_their_sizes():
    import random

    model = MLP([2, 3, 1], random.Random(0))
    assert len(model.parameters()) == 2 * 3 + 3 + 3 + 1
    with pytest.raises(ValueError, match="takes 2 inputs, got 3"):
        model([1.0, 2.0, 3.0])
    for sizes in ([2], [2, 0, 1]):
        with pytest.raises(ValueError, match="sizes must name"):
            MLP(sizes, random.Random(0))
    assert autograd.__all__ == sorted(autograd.__all__)
