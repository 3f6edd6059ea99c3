"""Exercises of CB 07, neural networks from zero to one."""

import itertools

import numpy as np

from llmscratch.exercises.lesson import Lesson, Wrong, expect

lesson = Lesson("CB07")
check, hint, solution = lesson.check, lesson.hint, lesson.solution


def _check_quorum(answer):
    for n, k in [(2, 1), (2, 2), (3, 2), (5, 4), (4, 1)]:
        result = answer(n, k)
        if not isinstance(result, tuple | list) or len(result) != 2:
            raise Wrong("expected two things, the weights w and the bias b: end with `return w, b`")
        w, b = result[0], np.asarray(result[1], dtype=float)
        if np.shape(w) != (n,):
            raise Wrong(f"expected weights of shape ({n},) for n = {n}, k = {k}, got shape {np.shape(w)}")
        if b.size != 1:
            raise Wrong(f"expected one number as the bias for n = {n}, k = {k}, got shape {b.shape}")
        for votes in itertools.product([0, 1], repeat=n):
            z = float(np.dot(w, votes) + b.item())
            wanted = sum(votes) >= k
            if (z > 0) != wanted:
                sign = "positive" if wanted else "negative"
                raise Wrong(f"expected a {sign} z for n = {n}, k = {k} and input {votes}, got z = {z:.3g}")
            if abs(z) < 0.4 - 1e-9:
                raise Wrong(
                    f"expected |z| ≥ 0.4 for n = {n}, k = {k}, input {votes}, got z = {z:.3g}: too close a vote"
                )


def quorum(n, k):
    return np.ones(n), 0.5 - k  # k votes give z = +0.5, one vote less gives z = −0.5


lesson.add(
    1, 1, "A vote with a quorum", check=_check_quorum,
    hints=["Give every input one vote. What is z when exactly k inputs are 1, and when k − 1 are?",
           "The line must lie between k − 1 and k votes; the middle leaves the same margin on both sides."],
    solution=quorum,
    wrong={
        (lambda n, k: (np.ones(n), -k)): "expected a positive z",
        (lambda n, k: (np.ones(n), 0.9 - k)): "too close a vote",
        (lambda n, k: (np.ones(n) / n, -0.5)): "expected a",
        (lambda n, k: (1.0, 0.5 - k)): "expected weights of shape (2,)",
        (lambda n, k: np.ones(n) / k): "expected",
    },
)  # fmt: skip


def _check_largest_lr(answer):
    rng = np.random.default_rng(7)
    expect(answer(np.array([[2.0], [0.0]])), 1.0, "X = [[2], [0]] (mean of x² is 2)")
    for shape in [(30, 3), (8, 5)]:
        X = rng.normal(size=shape) * rng.uniform(0.5, 3, size=shape[1])
        expect(answer(X), 2 / np.linalg.eigvalsh(X.T @ X / len(X))[-1], f"a random X of shape {shape}")


def largest_lr(X):
    hessian = X.T @ X / len(X)  # (D, D): second derivatives of the half mean squared error
    return 2 / np.linalg.eigvalsh(hessian).max()


lesson.add(
    2, 2, "The largest safe step", check=_check_largest_lr,
    hints=["Write the gradient for one step from an error e: it is H e. What is H in terms of X?",
           "The steepest direction decides: take the largest eigenvalue of H (it is symmetric: `eigvalsh`)."],
    solution=largest_lr,
    wrong={
        (lambda X: 2 / np.linalg.eigvalsh(X.T @ X).max()): "expected 1 for X = [[2], [0]]",  # sum instead of mean
        (lambda X: 1 / np.linalg.eigvalsh(X.T @ X / len(X)).max()): "expected 1 for X = [[2], [0]]",
        (lambda X: 2 / np.linalg.eigvalsh(X.T @ X / len(X)).min()): "a random X of shape (30, 3)",
    },
)  # fmt: skip


def _check_delta(answer):
    with np.errstate(all="ignore"):
        expect(answer(np.array([0.0]), np.array([1.0])), np.array([-0.5]), "z = [0], y = [1]")
        z, y = np.array([-2.0, 0.5, 3.0]), np.array([0.0, 1.0, 1.0])
        expect(answer(z, y), 1 / (1 + np.exp(-z)) - y, "z = [-2, 0.5, 3], y = [0, 1, 1]")
        z, y = np.array([800.0, -800.0]), np.array([0.0, 1.0])
        expect(answer(z, y), np.array([1.0, -1.0]), "z = [800, −800], y = [0, 1]")
        z, y = np.array([-18.0, 18.0]), np.array([0.0, 1.0])
        expect(answer(z, y), np.array([1, -1]) / (1 + np.exp(18.0)), "z = [-18, 18], y = [0, 1]")
        rng = np.random.default_rng(1)
        z, y = rng.normal(size=(4, 3)), rng.uniform(size=(4, 3))
        expect(answer(z, y), 1 / (1 + np.exp(-z)) - y, "a random z of shape (4, 3) and targets between 0 and 1")


def delta_cross_entropy(z, y):
    # dC/da = (a − y) / (a (1 − a)), and da/dz = a (1 − a): the two cancel
    return 0.5 * (1 + np.tanh(0.5 * z)) - y  # the sigmoid, without overflow


def _clipped(z, y):
    a = np.clip(1 / (1 + np.exp(-z)), 1e-7, 1 - 1e-7)
    return (a - y) / (a * (1 - a)) * a * (1 - a)


def _uncancelled(z, y):
    a = 1 / (1 + np.exp(-z))
    return (a - y) / (a * (1 - a)) * a * (1 - a)  # 0/0 where the sigmoid saturates


def _squared_error(z, y):
    a = 1 / (1 + np.exp(-z))
    return (a - y) * a * (1 - a)


lesson.add(
    3, 2, "Another loss, another BP1", check=_check_delta,
    hints=["δ = ∂C/∂a · σ'(z). Differentiate the two logarithms and bring them to one fraction.",
           "σ'(z) = a (1 − a) cancels the fraction's denominator. Write the simplified form, not the product."],
    solution=delta_cross_entropy,
    wrong={
        _uncancelled: "z = [800, −800]",
        _clipped: "z = [-18, 18]",
        _squared_error: "expected [-0.5] for z = [0]",
        (lambda z, y: y - 1 / (1 + np.exp(-z))): "expected [-0.5] for z = [0]",
    },
)  # fmt: skip


def _check_hinge(answer):
    tables = [
        ("t = [0, 1, 3], y = [0, 2, 2]", np.array([0.0, 1.0, 3.0]), np.array([0.0, 2.0, 2.0])),
        ("t = [1, 2, 4, 5], y = [3, 1, 1, −2]", np.array([1.0, 2.0, 4.0, 5.0]), np.array([3.0, 1.0, 1.0, -2.0])),
    ]
    rng = np.random.default_rng(3)
    tables.append(("a random table of 20 points", np.sort(rng.uniform(5, 9, 20)), rng.normal(size=20)))
    for given, t, y in tables:
        result = answer(t, y)
        if not isinstance(result, tuple | list) or len(result) != 3:
            raise Wrong("expected three things: end with `return v, s, c`")
        v, s, c = result
        if np.shape(v) != (len(t) - 2,):
            raise Wrong(
                f"expected {len(t) - 2} hinges, one an inner point, for {given}, got {np.shape(v)} (v comes first)"
            )
        x = np.linspace(t[0], t[-1], 101)
        got = c + s * x + np.maximum(0, x[:, None] - t[1:-1]) @ np.asarray(v, dtype=float)
        worst = np.argmax(np.abs(got - np.interp(x, t, y)))
        expect(got[worst], np.interp(x[worst], t, y), f"{given} at x = {x[worst]:.3g}", atol=1e-8)


def hinge_network(t, y):
    slopes = np.diff(y) / np.diff(t)  # (n - 1,): one for each straight piece
    v = np.diff(slopes)  # (n - 2,): the bend at each inner point
    return v, slopes[0], y[0] - slopes[0] * t[0]


def _heights(t, y):
    slopes = np.diff(y) / np.diff(t)
    return slopes[1:], slopes[0], y[0] - slopes[0] * t[0]  # slopes where bends are needed


def _from_zero(t, y):
    slopes = np.diff(y) / np.diff(t)
    return np.diff(slopes), slopes[0], y[0]  # forgets that the first point is not at x = 0


def _all_points(t, y):
    slopes = np.diff(y) / np.diff(t)
    return np.diff(slopes, append=0), slopes[0], y[0] - slopes[0] * t[0]


lesson.add(
    4, 3, "A sensor's calibration table as a network", check=_check_hinge,
    hints=["Left of t₁ all hinges are silent: s and c alone must draw the first piece.",
           "A hinge that wakes at tₖ changes the slope by vₖ, for good. Which change does the table need there?",
           "np.diff twice: once for the slopes, once for their changes."],
    solution=hinge_network,
    wrong={_heights: "t = [0, 1, 3]", _from_zero: "t = [1, 2, 4, 5]", _all_points: "expected 1 hinges"},
)  # fmt: skip
