"""CB 10's engine against torch.autograd on random shapes, and what it promises about dtypes, memory and errors."""

import copy
import gc
import pickle
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmscratch.basis import mlp, tensor
from llmscratch.basis.tensor import (
    SGD,
    Adam,
    Embedding,
    LayerNorm,
    Linear,
    Module,
    Tensor,
    cross_entropy,
    no_grad,
    record,
)

F = torch.nn.functional
SEEDS, SIDE = st.integers(0, 10_000), st.integers(1, 4)
SHAPES = st.lists(SIDE, max_size=4).map(tuple)


def property_test(*strategies, examples=40):
    return lambda test: settings(max_examples=examples, deadline=None, derandomize=True)(given(*strategies)(test))


@st.composite
def broadcastable(draw):
    """Two shapes that NumPy stretches to one."""
    full = draw(SHAPES)
    parts = []
    for _ in range(2):
        part = [1 if draw(st.booleans()) else n for n in full]
        parts.append(tuple(part[draw(st.integers(0, len(part))) :]))
    return parts


def equal_to_torch(ours, theirs, arrays, seed=0, dtype=np.float64):
    """The result and all gradients of a function are torch's, for a random gradient of the result."""
    arrays = [np.asarray(a, dtype) for a in arrays]
    leaves = [Tensor(a, requires_grad=True) for a in arrays]
    torchs = [torch.tensor(a, requires_grad=True) for a in arrays]
    y, expected = ours(*leaves), theirs(*torchs)
    assert (y.shape, y.dtype) == (tuple(expected.shape), dtype)
    g = np.asarray(np.random.default_rng(seed).normal(size=y.shape), dtype)
    y.backward(g)
    expected.backward(torch.tensor(g))
    exact = {"rtol": 1e-8, "atol": 1e-10} if dtype == np.float64 else {"rtol": 1e-3, "atol": 1e-4}
    np.testing.assert_allclose(y.data, expected.detach().numpy(), **exact)
    for leaf, t in zip(leaves, torchs, strict=True):
        wanted = np.zeros_like(leaf.data) if t.grad is None else t.grad.numpy()
        assert (leaf.grad.shape, leaf.grad.dtype) == (leaf.shape, dtype)
        np.testing.assert_allclose(leaf.grad, wanted, **exact)


BINARY = {
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / (b * b + 0.5),
    "**": lambda a, b: (a * a + 0.2) ** b, "used twice": lambda a, b: a * b + a / (b * b + 1) - a,
}  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", BINARY)
@property_test(broadcastable(), SEEDS)
def test_operators_with_broadcasting(name, dtype, shapes, seed):
    rng = np.random.default_rng(seed)
    equal_to_torch(BINARY[name], BINARY[name], [rng.normal(size=shape) for shape in shapes], seed, dtype)


NUMBERS = {
    "2 - a": lambda a: 2 - a, "a - 2": lambda a: a - 2, "3 / a": lambda a: 3 / (a * a + 1), "a / 3": lambda a: a / 3,
    "1 + a * 2.5": lambda a: 1 + a * 2.5, "-a": lambda a: -a, "a ** 3": lambda a: a**3, "a ** 0": lambda a: a**0,
    "root": lambda a: (a * a + 0.1) ** 0.5, "a ** -2": lambda a: (a * a + 0.5) ** -2, "2 * 3": lambda a: 2 * a * 3,
}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
@property_test(SHAPES, SEEDS, examples=15)
def test_operators_with_numbers(name, shape, seed):
    for dtype in (np.float32, np.float64):
        equal_to_torch(NUMBERS[name], NUMBERS[name], [np.random.default_rng(seed).normal(size=shape)], seed, dtype)


@pytest.mark.filterwarnings("error")
def test_zero_to_a_power():
    for n in (0, 1, 2, 3):
        equal_to_torch(lambda a, n=n: a**n, lambda a, n=n: a**n, [np.array([0.0, 1.0, -2.0])])
    equal_to_torch(lambda a, b: a**b, lambda a, b: a**b, [np.array([0.0, 0.0, 2.0]), np.array([0.0, 2.0, 0.5])])


@property_test(SHAPES, SEEDS, examples=15)
def test_arrays_and_numbers_on_the_left(shape, seed):
    left = np.random.default_rng(seed).random(shape) + 0.5
    a = np.random.default_rng(seed + 1).normal(size=shape)
    for ours in (lambda a, x: x - a, lambda a, x: x / (a * a + 1), lambda a, x: x**a, lambda a, x: 2.0**a):
        equal_to_torch(lambda a, ours=ours: ours(a, left), lambda a, ours=ours: ours(a, torch.tensor(left)), [a], seed)


def test_an_array_on_the_left_of_a_matrix_product():
    left, a = np.arange(6.0).reshape(2, 3), np.arange(12.0).reshape(3, 4)
    equal_to_torch(lambda a: left @ a, lambda a: torch.tensor(left) @ a, [a])


def test_empty_products():
    for shapes in [((2, 3), (3, 0)), ((2, 0), (0, 3)), ((0, 3), (3, 2)), ((2, 0, 3), (3, 2))]:
        equal_to_torch(lambda a, b: a @ b, lambda a, b: a @ b, [np.ones(shape) for shape in shapes])


def test_a_gradient_that_others_hold_is_not_added_to_in_place():
    """h, k and u share the array that arrives; with += in the sweep, b would get 3."""

    def f(a, b):
        h, k = a * 1, b * 1
        u = h * 2
        return (h + k) + u

    equal_to_torch(f, f, [np.ones(2), np.ones(2)])


@property_test(SIDE, SIDE, SIDE, broadcastable(), SEEDS, examples=80)
def test_matrix_products(n, k, m, fronts, seed):
    rng = np.random.default_rng(seed)
    arrays = [rng.normal(size=(*fronts[0], n, k)), rng.normal(size=(*fronts[1], k, m))]
    for dtype in (np.float32, np.float64):
        equal_to_torch(lambda a, b: a @ b, lambda a, b: a @ b, arrays, seed, dtype)


FUNCTIONS = {
    "exp": (lambda a: a.exp(), torch.exp), "log": (lambda a: (a * a + 0.1).log(), lambda a: (a * a + 0.1).log()),
    "tanh": (lambda a: a.tanh(), torch.tanh), "relu": (lambda a: a.relu(), torch.relu),
    "gelu": (lambda a: (a * 3).gelu(), lambda a: F.gelu(a * 3, approximate="tanh")), "T": (lambda a: a.T * 2, None),
    "detach": (lambda a: a * a.detach(), lambda a: a * a.detach()),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
@property_test(SHAPES, SEEDS)
def test_functions(name, shape, seed):
    ours, theirs = FUNCTIONS[name]
    theirs = theirs or (lambda a: a.permute(tuple(range(a.ndim)[::-1])) * 2)
    for dtype in (np.float32, np.float64):
        equal_to_torch(ours, theirs, [np.random.default_rng(seed).normal(size=shape)], seed, dtype)


def test_relu_at_zero_is_torchs():
    equal_to_torch(lambda a: a.relu(), torch.relu, [np.array([-1.0, 0.0, 2.0])])


@property_test(SHAPES.filter(len), st.data(), st.booleans(), SEEDS, examples=80)
def test_reductions(shape, data, keepdims, seed):
    axes = data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1).map(tuple))
    axes = data.draw(st.sampled_from([axes, axes[0], axes[0] - len(shape), None]))
    every = tuple(range(len(shape))) if axes is None else axes
    a = np.random.default_rng(seed).integers(-2, 3, size=shape)  # with equal largest numbers
    for name, theirs in [("sum", torch.sum), ("mean", torch.mean), ("max", torch.amax)]:
        for dtype in (np.float32, np.float64):
            equal_to_torch(
                lambda x, name=name: getattr(x, name)(axis=axes, keepdims=keepdims),
                lambda x, theirs=theirs: theirs(x, every, keepdims), [a], seed, dtype,
            )  # fmt: skip


@property_test(SHAPES.filter(len), st.data(), SEEDS)
def test_log_softmax_over_any_axis(shape, data, seed):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    a = np.random.default_rng(seed).normal(size=shape) * 5
    for dtype in (np.float32, np.float64):
        equal_to_torch(lambda x: x.log_softmax(axis), lambda x: F.log_softmax(x, axis), [a], seed, dtype)


@property_test(SHAPES.filter(len), st.data(), SEEDS)
def test_reshape_and_transpose(shape, data, seed):
    a = np.random.default_rng(seed).normal(size=shape)
    new = data.draw(st.permutations(shape))
    new[data.draw(st.integers(0, len(new) - 1))] = -1
    equal_to_torch(lambda x: x.reshape(*new), lambda x: x.reshape(*new), [a], seed)
    equal_to_torch(lambda x: x.reshape(tuple(new)) * 2, lambda x: x.reshape(new) * 2, [a], seed)
    axes = [data.draw(st.integers(-len(shape), len(shape) - 1)) for _ in range(2)]
    equal_to_torch(lambda x: x.transpose(*axes), lambda x: x.transpose(*axes), [a], seed)


INDEX = st.one_of(
    st.integers(-2, 1), st.slices(2).filter(lambda s: (s.step or 1) > 0), st.just(Ellipsis), st.none(),
    st.lists(st.integers(-2, 1), min_size=1, max_size=5).map(np.array),
)  # fmt: skip


@property_test(INDEX, INDEX, SEEDS, examples=80)
def test_index(first, second, seed):
    a = np.random.default_rng(seed).normal(size=(2, 2, 3))

    def of_torch(part):
        return torch.tensor(part) if isinstance(part, np.ndarray) else part

    equal_to_torch(lambda x: x[first] * 1, lambda x: x[of_torch(first)] * 1, [a], seed)
    both = not (isinstance(first, np.ndarray) and isinstance(second, np.ndarray) and len(first) != len(second))
    if both and not (first is Ellipsis and second is Ellipsis):
        equal_to_torch(lambda x: x[first, second], lambda x: x[of_torch(first), of_torch(second)], [a], seed)


def test_an_index_array_may_be_refilled_before_backward():
    ids, table = np.array([0, 1]), Embedding(4, 2, np.random.default_rng(0))
    y = table(ids).sum() + table.weight[ids].sum() + table.weight[:, ids].sum()
    ids[:] = 1
    y.backward()
    assert table.weight.grad.tolist() == [[3, 3], [3, 3], [1, 1], [1, 1]]


def test_index_by_a_mask_and_iteration():
    a = np.arange(6.0).reshape(2, 3)
    equal_to_torch(lambda x: x[a > 2], lambda x: x[torch.tensor(a > 2)], [a])
    assert [row.data.tolist() for row in Tensor(a)] == a.tolist()


@property_test(st.integers(1, 6), st.integers(1, 5), SEEDS)
def test_cross_entropy(batch, classes, seed):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, size=batch)
    for dtype in (np.float32, np.float64):
        equal_to_torch(
            lambda x: cross_entropy(x, targets) * 2, lambda x: F.cross_entropy(x, torch.tensor(targets)) * 2,
            [rng.normal(size=(batch, classes)) * 10], seed, dtype,
        )  # fmt: skip


@property_test(SIDE, SIDE, SIDE, st.integers(2, 5), SEEDS)
def test_layers(batch, time, n, d, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, time, d))
    linear, norm = Linear(d, n, rng, np.float64), LayerNorm(d, dtype=np.float64)
    table = Embedding(5, d, rng, np.float64)
    equal_to_torch(
        lambda x, w, b: _with(linear, weight=w, bias=b)(x), lambda x, w, b: F.linear(x, w, b),
        [x, linear.weight.data, rng.normal(size=n)], seed,
    )  # fmt: skip
    equal_to_torch(
        lambda x, w, b: _with(norm, weight=w, bias=b)(x), lambda x, w, b: F.layer_norm(x, (d,), w, b, 1e-5),
        [x, rng.normal(size=d), rng.normal(size=d)], seed,
    )  # fmt: skip
    ids = rng.integers(0, 5, size=(batch, time))
    equal_to_torch(
        lambda w: _with(table, weight=w)(ids), lambda w: F.embedding(torch.tensor(ids), w), [table.weight.data], seed
    )


def _with(layer, **parameters):
    changed = copy.copy(layer)
    vars(changed).update(parameters)
    return changed


class Net(Module):
    def __init__(self, rng, dtype=np.float32):
        self.layers = [Linear(784, 16, rng, dtype), Linear(16, 10, rng, dtype)]

    def __call__(self, x):
        return self.layers[1](self.layers[0](x).relu())


def batch(dtype=np.float32, size=8):
    rng = np.random.default_rng(5)
    return rng.random((size, 784)).astype(dtype), rng.integers(0, 10, size=size)


@pytest.mark.parametrize(
    ("make", "make_torch"),
    [
        (lambda p: SGD(p, 0.1), lambda p: torch.optim.SGD(p, 0.1)),
        (lambda p: SGD(p, 0.05, momentum=0.8), lambda p: torch.optim.SGD(p, 0.05, momentum=0.8)),
        (lambda p: Adam(p, 0.01), lambda p: torch.optim.Adam(p, 0.01)),
        (
            lambda p: Adam(p, 0.02, betas=(0.8, 0.95), eps=1e-4),
            lambda p: torch.optim.Adam(p, 0.02, betas=(0.8, 0.95), eps=1e-4),
        ),
    ],
)
def test_optimisers_equal_torchs_step_by_step(make, make_torch):
    rng = np.random.default_rng(0)
    start, unused = rng.normal(size=(3, 4)), rng.normal(size=2)
    ours = [Tensor(start, requires_grad=True), Tensor(unused, requires_grad=True)]
    theirs = [torch.tensor(start, requires_grad=True), torch.tensor(unused, requires_grad=True)]
    optimiser, other = make(ours), make_torch(theirs)
    for step in range(25):
        optimiser.zero_grad()
        other.zero_grad()
        used = 2 if step in (3, 4, 9) else 1  # the second parameter has no gradient most of the time
        sum(((p - 0.3) ** 2).sum() * (step + 1) for p in ours[:used]).backward()
        sum(((t - 0.3) ** 2).sum() * (step + 1) for t in theirs[:used]).backward()
        optimiser.step()
        other.step()
        for p, t in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(p.data, t.detach().numpy(), rtol=1e-10, atol=1e-12)


def test_the_first_50_losses_are_those_of_notebook_08():
    rng, X, y = np.random.default_rng(0), *batch(np.float64, 400)
    reference = mlp.MLP([784, 16, 10], np.random.default_rng(0), dtype=np.float64)
    net = Net(np.random.default_rng(0), np.float64)
    optimiser = SGD(net.parameters(), lr=0.1)
    for _ in range(50):
        rows = rng.integers(0, 400, size=32)
        optimiser.zero_grad()
        loss = cross_entropy(net(Tensor(X[rows])), y[rows])
        loss.backward()
        optimiser.step()
        by_hand, gradients = reference.loss_and_gradients(X[rows], y[rows])
        for p, g in zip(reference.parameters(), gradients, strict=True):
            p -= 0.1 * g
        assert loss.item() == pytest.approx(by_hand, abs=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nothing_changes_its_dtype(dtype):
    X, y = batch(dtype)
    net, norm = Net(np.random.default_rng(0), dtype), LayerNorm(10, dtype=dtype)
    high, seen = np.float64, set()
    for make in (
        lambda p: SGD(p, high(0.1), momentum=high(0.9)),
        lambda p: Adam(p, high(0.01), betas=(high(0.9), high(0.99)), eps=high(1e-8)),
    ):
        optimiser = make([*net.parameters(), *norm.parameters()])
        for _ in range(2):
            optimiser.zero_grad()
            logits = norm(net(Tensor(X) * np.float64(2) - np.sqrt(2.0)).gelu()) / np.int64(3)
            loss = cross_entropy(logits, y) + logits.log_softmax().mean() * 0.01 + logits.max(0).sum() ** 2
            loss.backward()
            optimiser.step()
        seen |= {optimiser.direction(p, p.grad).dtype for p in optimiser.parameters}
        for kept in optimiser.state.values():  # a velocity, or two means and a number
            seen |= {part.dtype for part in (kept[:2] if isinstance(kept, tuple) else (kept,))}
        tensors = [*optimiser.parameters, logits, loss]
        assert {t.dtype for t in tensors} | {p.grad.dtype for p in optimiser.parameters} == {np.dtype(dtype)}
        assert seen == {np.dtype(dtype)}


def test_an_optimiser_does_not_upcast_its_step():
    """p.data -= … would cast a float64 step back in silence."""
    p = Tensor([1.0, 2.0], requires_grad=True)
    steps = []

    class Watched(np.ndarray):
        def __isub__(self, step):
            steps.append(step.dtype)
            return super().__isub__(step)

    p._data = p._data.view(Watched)
    p.grad = np.ones(2, np.float32)
    SGD([p], np.float64(0.1)).step()
    assert steps == [np.float32]


def test_what_tensors_are_made_of():
    assert Tensor(1).dtype == Tensor([1, 2.5]).dtype == np.float32
    assert Tensor(np.zeros(2)).dtype == Tensor([1], dtype=np.float64).dtype == np.float64
    assert Tensor(np.arange(3), dtype=np.float32).dtype == np.float32
    source = np.ones(3)
    t = Tensor(source)
    source[0] = 5
    assert t.data[0] == 1.0
    assert (t.ndim, t.shape, t.T.shape, Tensor(2.5).item()) == (1, (3,), (3,), 2.5)
    assert t.numpy() is t.data
    assert repr(Tensor([1.0, 2.0], requires_grad=True)) == "Tensor([1., 2.], float32, requires_grad)"
    assert repr(Tensor(np.zeros((20, 30)))) == "Tensor((20, 30), float64)"
    assert isinstance(np.ones(3) * t, Tensor) and isinstance(np.float64(2) / t, Tensor)


A, B, SMALL = Tensor(np.ones((3, 4))), Tensor(np.ones((4, 2)), requires_grad=True), Tensor(np.ones(4, np.float32))


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: A + B, r"\+ does not fit shape \(3, 4\) and \(4, 2\)"),
        (lambda: A - np.ones(3), r"- does not fit shape \(3, 4\) and \(3,\)"),
        (lambda: A @ A, r"@ does not fit shape \(3, 4\) and \(3, 4\)"),
        (lambda: A @ np.ones(4), r"@ does not fit shape \(3, 4\) and \(4,\)"),
        (lambda: A.reshape(5, -1), r"reshape to \(5, -1\) does not fit shape \(3, 4\)"),
        (lambda: A.transpose(0, 2), r"transpose of 0, 2 does not fit shape \(3, 4\)"),
        (lambda: A.sum(5), r"sum\(axis=5\) does not fit shape \(3, 4\)"),
        (lambda: A.mean("x"), r"sum\(axis=x\) does not fit shape \(3, 4\)"),
        (lambda: A.max(2), r"max\(axis=2\) does not fit shape \(3, 4\)"),
        (lambda: Tensor(np.ones((0, 3))).max(0), r"max\(axis=0\) does not fit shape \(0, 3\)"),
        (lambda: A.log_softmax(2), r"log_softmax does not fit shape \(3, 4\)"),
        (lambda: A * SMALL, r"\*: dtypes float64 and float32 differ"),
        (lambda: SMALL / np.ones(4), "/: dtypes float32 and float64 differ"),
        (lambda: SMALL * np.arange(4), "holds float32 or float64, not int64"),
        (lambda: Tensor(np.array([1, 2])), "holds float32 or float64, not int64; choose one by dtype="),
        (lambda: Tensor([True], dtype=bool), "not bool"),
        (lambda: (A @ B).backward(), r"from \(3, 2\) float64: backward\(gradient\), an array"),
        (lambda: (A @ B).backward(np.ones((3, 2), np.float32)), "an array of that shape and dtype"),
        (lambda: (A @ B).backward(np.ones(3)), "an array of that shape and dtype"),
        (lambda: setattr(B, "data", np.ones((64, 4, 2))), r"data must stay \(4, 2\) float64, not ndarray \(64"),
        (lambda: setattr(B, "data", [[1.0]]), "data must stay"),
        (lambda: setattr(B, "data", B * 1), r"data must stay .* not Tensor \(4, 2\)"),
        (lambda: (A @ B).backward(Tensor(np.ones((3, 2)))), "an array of that shape and dtype"),
        (lambda: LayerNorm(4, dtype=np.float64)(A[:, :1]), r"last axis must have length 4; got \(3, 1\)"),
        (lambda: LayerNorm(1, dtype=np.float64)(A), r"last axis must have length 1; got \(3, 4\)"),
        (lambda: SGD([], 0.1), "at least one"),
        (lambda: Adam([B * 2]), "leaves that require a gradient"),
        (lambda: SGD([A], 0.1), "leaves that require a gradient"),
        (lambda: record(np.ones(4), (SMALL,), (lambda g: g,), "up"), "up: the result is float64"),
        (lambda: record(np.arange(4), (SMALL,), (lambda g: g,), "up"), "up: the result is int64"),
        (lambda: record(B.data, (B,), (lambda g: g.astype(np.float32),), "low").sum().backward(),
         "the vjp of 'low': dtypes float32 and float64 differ; nothing is upcast"),
        (lambda: cross_entropy(A, np.array([0, 1])), r"got \(3, 4\) and \(2,\)"),
        (lambda: cross_entropy(A, np.array([0, 1, 4])), "integers from 0 to 3"),
        (lambda: Embedding(5, 2, np.random.default_rng(0))([0, 5]), "integers from 0 to 4; got int64"),
        (lambda: Embedding(5, 2, np.random.default_rng(0))([-1]), "integers from 0 to 4"),
        (lambda: Embedding(5, 2, np.random.default_rng(0))([0.5]), "got float64"),
        (lambda: Linear(4, 2, np.random.default_rng(0))(A), "dtypes float64 and float32 differ"),
        (lambda: record(A.data[0], (B,), (lambda g: np.ones(8),), "bad").sum().backward(),
         r"the vjp of 'bad' does not fit shape \(8,\) and \(4, 2\)"),
    ],
)  # fmt: skip
def test_errors_name_what_does_not_fit(action, message):
    with pytest.raises(ValueError, match=message):
        action()


def test_record_and_vjps_of_the_wrong_kind():
    for parents, vjps in [(B, (lambda g: g,)), ((B,), lambda g: g), ((B,), ()), ([B], [lambda g: g])]:
        with pytest.raises(TypeError, match="parents and vjps must be tuples of one length"):
            record(B.data, parents, vjps, "slip")
    for share in (None, Tensor(np.ones((4, 2)))):
        with pytest.raises(TypeError, match="the vjp of 'odd': only arrays fit here"):
            record(B.data, (B,), (lambda g, share=share: share,), "odd").backward(np.ones((4, 2)))


def test_setting_data_copies():
    a, b = Tensor([1.0, 2.0], requires_grad=True), Tensor([3.0, 4.0], requires_grad=True)
    b.data, a.grad = a.data, np.ones(2, np.float32)
    SGD([a], 0.5).step()
    assert (a.data.tolist(), b.data.tolist()) == ([0.5, 1.5], [1.0, 2.0])


def test_a_copied_or_pickled_model_can_be_trained(tmp_path):
    model = Net(np.random.default_rng(0))
    model.layers[0].weight.label = "W1"
    result = model.layers[1].bias * 2
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert [name for name, _ in twin.named_parameters()] == [name for name, _ in model.named_parameters()]
        assert twin.layers[0].weight.label == "W1" and twin.layers[0].weight is not model.layers[0].weight
        twin(Tensor(batch()[0])).sum().backward()
        assert all(p.grad is not None for p in twin.parameters()) and model.layers[0].weight.grad is None
    assert not copy.deepcopy(result).requires_grad
    layer = Linear(3, 2, np.random.default_rng(0))
    for _ in range(1000):
        layer.bias._tick()  # this clock is ahead of the other process's
    (tmp_path / "layer.pickle").write_bytes(pickle.dumps(Linear(3, 2, np.random.default_rng(0))))
    program = (
        "import pickle, sys, numpy as np; from llmscratch.basis.tensor import Tensor; "
        "layer = pickle.load(open(sys.argv[1], 'rb')); layer(Tensor(np.ones((1, 3), np.float32))).sum().backward(); "
        "print(layer.bias.grad.tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "layer.pickle")], capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("[1.0, 1.0]", "")


def test_other_refusals():
    for index in (3, np.array([0.5]), A):
        with pytest.raises(IndexError, match=r"index does not fit shape \(3, 4\)"):
            A[index]
    with pytest.warns(RuntimeWarning):
        assert np.isnan(Tensor(np.ones((0, 3))).mean(0).data).all()
    with pytest.raises(RuntimeError, match="depends on nothing that requires a gradient"):
        (A * 2).sum().backward()
    with pytest.raises(RuntimeError, match=r"the result of '\*'"):
        (B * 2).data = np.ones((4, 2))
    for bad in (A, torch.ones(2, requires_grad=True), "text", {}):
        with pytest.raises((TypeError, ValueError, RuntimeError)):
            Tensor(bad)


def test_leaves_add_up_and_a_freed_graph_says_so():
    x = Tensor([1.0, 2.0], requires_grad=True)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.tolist() == [4.0, 8.0]
    with pytest.raises(RuntimeError, match="freed by an earlier backward"):
        y.backward()
    assert x.grad.tolist() == [4.0, 8.0]


def test_gradients_are_not_shared():
    a, b = Tensor([1.0, 2.0], requires_grad=True), Tensor([3.0, 4.0], requires_grad=True)
    arriving = np.ones(2, np.float32)
    (a + b).backward(arriving)
    a.grad *= 10
    assert (b.grad.tolist(), arriving.tolist()) == ([1, 1], [1, 1])
    (a.sum() * 1).backward()
    a.grad += 1  # a gradient may be changed in place: it is no read-only view


def test_a_change_in_place_is_noticed_before_any_gradient_changes():
    w, x = Tensor([2.0], requires_grad=True), Tensor([3.0], requires_grad=True)
    loss = (w * x).sum()
    w.data -= np.float32([1.0])
    with pytest.raises(RuntimeError, match="was changed in place after"):
        loss.backward()
    assert w.grad is None and x.grad is None


def test_no_grad_records_nothing_and_ends_after_an_error():
    with pytest.raises(ZeroDivisionError), no_grad():
        y = B * 2
        assert not y.requires_grad and y._parents == ()
        raise ZeroDivisionError
    assert (B * 2).requires_grad
    with no_grad(), no_grad():
        pass
    assert (B * 2).requires_grad


def test_constants_get_no_gradient_and_cost_no_product():
    x = Tensor(np.ones((2, 3)))
    calls = []
    y = record(x.data, (x, B), (lambda g: calls.append(g), lambda g: np.ones((4, 2))), "probe")
    y.sum().backward()
    assert calls == [] and x.grad is None


def test_modules_find_and_name_their_parameters():
    rng = np.random.default_rng(0)

    class Model(Module):
        def __init__(self):
            self.table, self.blocks = Embedding(7, 4, rng), [[Linear(4, 4, rng)], LayerNorm(4)]
            self.head, self.scale = Linear(4, 7, rng), Tensor([1.0], requires_grad=True)
            self.head.weight = self.table.weight  # tied
            self.constant, self.seen = Tensor([2.0]), self.scale * 2

    model = Model()
    names = [name for name, _ in model.named_parameters()]
    assert names == [
        "table.weight", "blocks.0.0.weight", "blocks.0.0.bias", "blocks.1.weight", "blocks.1.bias", "head.bias",
        "scale",
    ]  # fmt: skip
    sum((p * p).sum() for p in model.parameters()).backward()
    assert all(p.grad is not None for p in model.parameters())
    SGD(model.parameters(), 0.1).zero_grad()
    assert all(p.grad is None for p in model.parameters())
    model.parts = ({"left": Linear(1, 1, rng)}, LayerNorm(2))
    model.table.owner = model  # a circle
    assert [name for name, _ in model.named_parameters()][7:] == [
        "parts.0.left.weight", "parts.0.left.bias", "parts.1.weight", "parts.1.bias",
    ]  # fmt: skip


def test_graphs_are_freed_without_the_garbage_collector():
    X, y = batch()
    net = Net(np.random.default_rng(0))
    gc.collect()
    gc.disable()
    try:
        for _ in range(5):
            cross_entropy(net(Tensor(X)), y).backward()
            cross_entropy(net(Tensor(X)).gelu().log_softmax(), y)  # dropped without backward
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_memory_is_flat_over_1000_steps():
    X, y = batch(size=64)
    net = Net(np.random.default_rng(0))
    optimiser, losses, seen = SGD(net.parameters(), lr=0.05), [], []
    tracemalloc.start()
    for _ in range(1000):
        optimiser.zero_grad()
        losses.append(cross_entropy(net(Tensor(X)), y))
        losses[-1].backward()
        optimiser.step()
        seen.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert max(seen[10:]) - seen[9] < 1_000_000  # one kept graph holds 0.2 MB, a thousand 200 MB


def test_a_chain_of_20_000_nodes_and_its_end():
    x = Tensor(1.0, requires_grad=True)
    y = x
    for _ in range(20_000):
        y = y + 0.001
    y.backward(retain_graph=True)
    assert x.grad == 1.0
    del y  # freeing a deep graph must not overflow the stack either
    gc.collect()


def test_the_module_fits_into_300_lines():
    with open(tensor.__file__, encoding="utf-8") as file:
        assert len(file.readlines()) <= 300
    assert tensor.__all__ == sorted(tensor.__all__)
