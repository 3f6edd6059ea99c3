"""CB 08's network: gradients and losses equal torch's for any sizes, and bad input gets a message that helps."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmscratch.basis.mlp import MLP, accuracy, cross_entropy, log_softmax, shift_and_turn, train_epoch


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=5), st.integers(1, 12), st.integers(0, 10_000))
def test_gradients_equal_torchs(sizes, batch, seed):
    rng = np.random.default_rng(seed)
    model = MLP(sizes, rng, dtype=np.float64)
    for b in model.b:
        b += rng.normal(size=b.shape)
    X, y = rng.normal(size=(batch, sizes[0])), rng.integers(0, sizes[-1], size=batch)
    loss, gradients = model.loss_and_gradients(X, y)
    tensors = [torch.tensor(p, requires_grad=True) for p in model.parameters()]
    W, b = tensors[: len(model.W)], tensors[len(model.W) :]
    a = torch.tensor(X)
    for layer, (w, c) in enumerate(zip(W, b, strict=True), start=1):
        a = a @ w.T + c
        a = torch.relu(a) if layer < len(W) else a
    expected = torch.nn.functional.cross_entropy(a, torch.tensor(y))
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-10)
    for g, t in zip(gradients, tensors, strict=True):
        np.testing.assert_allclose(g, t.grad.numpy(), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nothing_changes_its_dtype(dtype):
    rng = np.random.default_rng(0)
    model, X, y = MLP([16, 5, 3], rng, dtype=dtype), rng.random((6, 16)).astype(dtype), np.array([0, 1, 2, 0, 1, 2])
    loss, gradients = model.loss_and_gradients(X, y)
    assert {a.dtype for a in (*model.forward(X), *gradients, shift_and_turn(X, rng))} == {np.dtype(dtype)}
    train_epoch(model, X, y, lr=0.1, batch_size=4, rng=rng)
    assert {p.dtype for p in model.parameters()} == {np.dtype(dtype)}


def test_log_softmax_of_extreme_logits_is_finite():
    extreme = np.array([[1e4, 0.0, -1e4], [-1e30, -1e30, -1e30]])
    result = log_softmax(extreme)
    assert np.isfinite(result).all()
    np.testing.assert_allclose(np.exp(result).sum(axis=1), 1)


def test_training_learns_and_is_reproducible():
    rng = np.random.default_rng(3)
    X = rng.normal(size=(300, 4)).astype(np.float32)
    y = (X[:, 0] * X[:, 1] > 0).astype(np.int64)

    def trained():
        model, order = MLP([4, 32, 2], np.random.default_rng(0)), np.random.default_rng(1)
        losses = [train_epoch(model, X, y, lr=0.3, batch_size=20, rng=order) for _ in range(60)]
        return losses, accuracy(model, X, y)

    (losses, score), (again, _) = trained(), trained()
    assert losses == again
    assert losses[-1] < 0.3 * losses[0]
    assert score > 0.95


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (np.zeros((2, 3)), np.array([0, 1, 2]), r"at least one example; got \(2, 3\) and \(3,\)"),
        (np.zeros(3), np.array([0]), "logits must be"),
        (np.zeros((2, 3)), np.array([0, 3]), "integers from 0 to 2"),
        (np.zeros((2, 3)), np.array([-1, 0]), "integers from 0 to 2"),
        (np.zeros((2, 3)), np.array([0.0, 1.0]), "integers from 0 to 2; got float64"),
        (np.zeros((0, 3)), np.array([], dtype=int), "at least one example"),
    ],
)
def test_bad_targets_are_named(logits, targets, message):
    with pytest.raises(ValueError, match=message):
        cross_entropy(logits, targets)


def test_bad_sizes_and_inputs_are_named():
    rng = np.random.default_rng(0)
    for sizes in ([5], [5, 0]):
        with pytest.raises(ValueError, match="sizes must name"):
            MLP(sizes, rng)
    model = MLP([4, 2], rng)
    with pytest.raises(ValueError, match=r"X must be \(B, 4\); got \(3, 5\)"):
        model.forward(np.zeros((3, 5)))
    with pytest.raises(ValueError, match="same length, at least 1; got 3 and 2"):
        train_epoch(model, np.zeros((3, 4)), np.zeros(2, dtype=int), lr=0.1, batch_size=2, rng=rng)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        train_epoch(model, np.zeros((3, 4)), np.zeros(3, dtype=int), lr=0.1, batch_size=0, rng=rng)
    for lr in (-0.5, 0, np.nan):
        with pytest.raises(ValueError, match="lr positive and finite"):
            train_epoch(model, np.zeros((3, 4)), [0, 1, 0], lr=lr, batch_size=2, rng=rng)
    with pytest.raises(ValueError, match="at least 1; got 0 and 0"):
        train_epoch(model, np.zeros((0, 4)), [], lr=0.1, batch_size=2, rng=rng)
    with pytest.raises(ValueError, match="15 pixels are not a square"):
        shift_and_turn(np.zeros((2, 15)), rng)
    for bad in ({"shift": np.nan}, {"degrees": np.inf}, {"shift": -1}):
        with pytest.raises(ValueError, match="finite and not negative"):
            shift_and_turn(np.zeros((2, 16)), rng, **bad)


def test_lists_are_arrays():
    assert cross_entropy([[0.0, 1.0]], [0])[0] == pytest.approx(np.log(1 + np.e))
    model = MLP([4, 2], np.random.default_rng(0))
    assert len(model.forward([[0.0, 1, 2, 3]])) == 2
    assert train_epoch(model, np.ones((3, 4)), [0, 1, 0], lr=0.1, batch_size=2, rng=np.random.default_rng(0)) > 0


def test_a_loss_that_explodes_is_said():
    model, rng = MLP([4, 8, 2], np.random.default_rng(0)), np.random.default_rng(1)
    X, y = rng.normal(size=(40, 4)).astype(np.float32), rng.integers(0, 2, size=40)
    with pytest.raises(FloatingPointError, match="try a smaller lr than"), np.errstate(all="ignore"):
        for _ in range(50):
            train_epoch(model, X, y, lr=1e20, batch_size=4, rng=rng)
    model.W[0][:] = np.nan
    with pytest.raises(FloatingPointError, match="logits are nan"):
        accuracy(model, X, y)


def test_pictures_move_by_what_was_drawn():
    picture = np.zeros((1, 49))
    picture[0, 24] = 1.0  # the centre of 7 × 7
    still = shift_and_turn(picture, np.random.default_rng(0), shift=0, degrees=0)
    np.testing.assert_allclose(still, picture, atol=1e-12)
    moved = shift_and_turn(picture, np.random.default_rng(0), shift=2, degrees=0)
    assert moved.sum() == pytest.approx(1.0)
    rows, columns = np.divmod(np.arange(49), 7)
    drawn = np.random.default_rng(0)
    drawn.uniform(size=(1, 1))  # the angle
    shift_r, shift_c = drawn.uniform(-2, 2, size=(2, 1, 1)).ravel()
    assert (moved @ rows, moved @ columns) == (pytest.approx(3 + shift_r), pytest.approx(3 + shift_c))
