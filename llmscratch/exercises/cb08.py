"""Exercises of CB 08, an MLP in NumPy."""

import numpy as np

from llmscratch.exercises.lesson import Lesson, Wrong, expect

lesson = Lesson("CB08")
check, hint, solution = lesson.check, lesson.hint, lesson.solution


def _check_top_k(answer):
    logits = np.array([[0.1, 0.9, 0.5], [2.0, 1.0, 3.0], [0.3, 0.2, 0.1]])
    y = np.array([2, 2, 0])  # second, first, first place
    for k, want in [(1, 2 / 3), (2, 1.0), (3, 1.0)]:
        expect(answer(logits, y, k), want, f"logits {logits.tolist()}, y = {y.tolist()}, k = {k}")
    rng = np.random.default_rng(0)
    logits, y = rng.normal(size=(500, 10)), rng.integers(0, 10, size=500)
    want = np.mean([label in np.argsort(row)[-3:] for row, label in zip(logits, y, strict=True)])
    expect(answer(logits, y, 3), want, "500 random rows, k = 3")


def top_k_accuracy(logits, y, k):
    best = np.argsort(-logits, axis=1)[:, :k]  # (N, k)
    return (best == y[:, None]).any(axis=1).mean()


lesson.add(
    1, 1, "Right among the first k", check=_check_top_k,
    hints=["np.argsort puts the smallest first; sort −logits, or take the end.",
           "Compare the (N, k) best classes with y[:, None], then ask for any() along the row."],
    solution=top_k_accuracy,
    wrong={
        (lambda z, y, k: (np.argsort(z, axis=1)[:, :k] == y[:, None]).any(axis=1).mean()): "k = 1",
        (lambda z, y, k: (np.argsort(-z, axis=1)[:, k - 1] == y).mean()): "k = 2",
        (lambda z, y, k: (np.argsort(-z, axis=1)[:, :k] == y[:, None]).mean()): "k = 2",
    },
)  # fmt: skip


def _stable_log_softmax(logits):
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _check_smoothing(answer):
    rng = np.random.default_rng(0)
    cases = [
        ("logits [[0, 0, 0]], y = [1], eps = 0", np.zeros((1, 3)), np.array([1]), 0.0),
        ("logits [[0, 1, 2, 3]], y = [0], eps = 0.2", np.array([[0.0, 1, 2, 3]]), np.array([0]), 0.2),
        ("random logits (6, 5), eps = 0.1", rng.normal(size=(6, 5)), rng.integers(0, 5, size=6), 0.1),
        ("logits [[1000, 0, −1000]], y = [2], eps = 0.1", np.array([[1000.0, 0, -1000]]), np.array([2]), 0.1),
        ("logits [[1000, 0], [−1000, −1001]], y = [0, 1], eps = 0.1", np.array([[1000.0, 0], [-1000, -1001]]),
         np.array([0, 1]), 0.1),
    ]  # fmt: skip
    for given, logits, y, eps in cases:
        target = np.full_like(logits, eps / logits.shape[1])
        target[np.arange(len(y)), y] += 1 - eps
        logp = _stable_log_softmax(logits)
        with np.errstate(all="ignore"):
            result = answer(logits.copy(), y, eps)
        if not isinstance(result, tuple) or len(result) != 2:
            raise Wrong(f"expected two results, loss and gradient, for {given}")
        expect(result[0], -(target * logp).sum(axis=1).mean(), f"the loss of {given}")
        expect(result[1], (np.exp(logp) - target) / len(y), f"the gradient of {given}")


def smoothed_cross_entropy(logits, y, eps):
    n, classes = logits.shape
    target = np.full(logits.shape, eps / classes)
    target[np.arange(n), y] += 1 - eps
    shifted = logits - logits.max(axis=1, keepdims=True)
    logp = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return -(target * logp).sum(axis=1).mean(), (np.exp(logp) - target) / n


def _others_only(logits, y, eps):
    n, classes = logits.shape
    target = np.full_like(logits, eps / (classes - 1))
    target[np.arange(n), y] = 1 - eps
    logp = _stable_log_softmax(logits)
    return -(target * logp).sum(axis=1).mean(), (np.exp(logp) - target) / n


def _not_divided(logits, y, eps):
    loss, gradient = smoothed_cross_entropy(logits, y, eps)
    return loss, gradient * len(y)


def _overflowing(logits, y, eps):
    n, classes = logits.shape
    target = np.full_like(logits, eps / classes)
    target[np.arange(n), y] += 1 - eps
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return -(target * np.log(p)).sum(axis=1).mean(), (p - target) / n


def _largest_of_all(logits, y, eps):
    n, classes = logits.shape
    target = np.full_like(logits, eps / classes)
    target[np.arange(n), y] += 1 - eps
    logp = logits - logits.max()
    logp -= np.log(np.exp(logp).sum(axis=1, keepdims=True))
    return -(target * logp).sum(axis=1).mean(), (np.exp(logp) - target) / n


lesson.add(
    2, 2, "Label smoothing", check=_check_smoothing,
    hints=["Write the target as an array (N, C): ε/C everywhere, then add 1 − ε at the labels.",
           "The gradient of −Σ t_j ln p_j is p − t when t adds up to 1; do not forget the mean over N.",
           "Use the stable log-softmax of the lesson for ln p."],
    solution=smoothed_cross_entropy,
    wrong={_others_only: "eps = 0.2", _not_divided: "the gradient of random logits (6, 5)",
           _overflowing: "[[1000, 0, −1000]]", _largest_of_all: "[−1000, −1001]"},
)  # fmt: skip


def _check_momentum(answer):
    rng = np.random.default_rng(0)
    start = [rng.normal(size=(2, 3)), rng.normal(size=3)]
    params, velocities = [p.copy() for p in start], [np.zeros((2, 3)), np.zeros(3)]
    want_p, want_v = [p.copy() for p in start], [np.zeros((2, 3)), np.zeros(3)]
    kept, kept_v = list(params), list(velocities)
    for step in range(1, 4):
        gradients = [rng.normal(size=(2, 3)), rng.normal(size=3)]
        given = [g.copy() for g in gradients]
        answer(params, gradients, velocities, 0.1, 0.9)
        for i in range(2):
            want_v[i] = 0.9 * want_v[i] + given[i]
            want_p[i] = want_p[i] - 0.1 * want_v[i]
            where = f"array {i} after step {step} (lr = 0.1, beta = 0.9)"
            if not np.array_equal(gradients[i], given[i]):
                raise Wrong(f"expected the gradient of {where} unchanged, but it was changed in place")
            if params[i] is not kept[i] or velocities[i] is not kept_v[i]:
                raise Wrong(f"expected parameter and velocity {where} changed in place, but a list holds a new array")
            expect(velocities[i], want_v[i], f"velocity {where}")
            expect(params[i], want_p[i], f"parameter {where}")


def momentum_step(params, gradients, velocities, lr, beta):
    for p, g, v in zip(params, gradients, velocities, strict=True):
        v *= beta
        v += g
        p -= lr * v


def _damped(params, gradients, velocities, lr, beta):
    for p, g, v in zip(params, gradients, velocities, strict=True):
        v *= beta
        v += (1 - beta) * g
        p -= lr * v


def _rebound(params, gradients, velocities, lr, beta):
    for p, g, v in zip(params, gradients, velocities, strict=True):
        v = beta * v + g  # a new array: the caller's velocity stays zero
        p -= lr * v


def _spoils_gradients(params, gradients, velocities, lr, beta):
    for p, g, v in zip(params, gradients, velocities, strict=True):
        v *= beta
        v += g
        g *= lr
        p -= lr * v


lesson.add(
    3, 2, "Momentum", check=_check_momentum,
    hints=["In place means `v *= beta`: `v = beta * v` makes a new array and leaves the caller's alone.",
           "First the velocity, then the parameter with the new velocity. The learning rate belongs to the second."],
    solution=momentum_step,
    wrong={_damped: "velocity array 0 after step 1", _rebound: "velocity array 0 after step 1",
           _spoils_gradients: "changed in place"},
)  # fmt: skip


def _photo(height, width, box, rng_seed=0, ink=25.0):
    """White paper with an L-shaped stroke inside `box` = (top, left, bottom, right)."""
    photo = np.full((height, width), 235.0) + np.random.default_rng(rng_seed).uniform(-10, 10, size=(height, width))
    top, left, bottom, right = box
    thick = max(4, (bottom - top) // 6)
    photo[top:bottom, left : left + thick] = ink
    photo[bottom - thick : bottom, left:right] = ink
    return photo


def _check_prepare(answer):
    cases = [("a 200 × 160 photo with a tall L", _photo(200, 160, (40, 30, 160, 90)), 60 / 120),
             ("a 90 × 300 photo with a wide L", _photo(90, 300, (20, 180, 70, 280)), 100 / 50)]  # fmt: skip
    faint = _photo(200, 160, (40, 30, 160, 90), ink=100.0)
    faint[5:15, 140:150] = 150.0
    cases.append(("a 200 × 160 photo of a faint L beside a smudge that is lighter than half way", faint, 60 / 120))
    for given, photo, shape in cases:
        x = np.asarray(answer(photo.copy()))
        if x.shape != (784,):
            raise Wrong(f"expected shape (784,) for {given}, got {x.shape}")
        if x.min() < 0 or x.max() > 1 or x.max() < 0.5:
            raise Wrong(f"expected ink up to 1 and values in [0, 1] for {given}, got {x.min():.3g} to {x.max():.3g}")
        image = x.astype(float).reshape(28, 28)
        if image[0].mean() > 0.3:
            raise Wrong(f"expected dark paper and bright ink for {given}, got a bright border: invert the photo")
        ink = image > image.max() / 2
        rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
        tall, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
        if abs(max(tall, wide) - 20) > 1:
            raise Wrong(f"expected the digit's longer side to measure 20 pixels for {given}, got {max(tall, wide)}")
        if abs(min(tall, wide) - 20 * min(shape, 1 / shape)) > 1.5 or (tall > wide) != (shape < 1):
            raise Wrong(f"expected both sides scaled alike for {given}, got {tall} × {wide} pixels")
        top, left = rows[0], columns[0]
        corners = [image[r : r + 3, c : c + 3].mean() for r in (top, top + tall - 3) for c in (left, left + wide - 3)]
        if [value > 0.25 for value in corners] != [True, False, True, True]:
            raise Wrong(f"expected the L upright, all its corners inked but the upper right, for {given}")
        r, c = np.mgrid[:28, :28]
        centre = np.array([(image * r).sum(), (image * c).sum()]) / image.sum()
        if np.abs(centre - 14).max() > 0.55:
            raise Wrong(f"expected the centre of mass at 14, 14 for {given}, got {centre[0]:.1f}, {centre[1]:.1f}")
        if x.dtype != np.float32:
            raise Wrong(f"expected float32 for {given}, got {x.dtype}")
    try:
        answer(np.random.default_rng(1).uniform(140, 245, size=(50, 40)))
    except ValueError:
        return
    except Exception as error:
        raise Wrong(f"expected a ValueError for a page without ink, got {type(error).__name__}: {error}") from None
    raise Wrong("expected a ValueError for a page without ink, got an answer")


def prepare(photo, middle=14.0, alike=True):
    ink = 1 - photo / 255.0
    ink[ink < 0.5] = 0
    if not ink.any():
        raise ValueError("there is no ink on this page")
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    longer = max(ink.shape)
    tall, wide = (max(1, round(20 * side / longer)) if alike else 20 for side in ink.shape)
    # the nearest old pixel for each new one
    small = ink[((np.arange(tall) + 0.5) * ink.shape[0] / tall).astype(int)]
    small = small[:, ((np.arange(wide) + 0.5) * ink.shape[1] / wide).astype(int)]
    r, c = np.mgrid[:tall, :wide]
    mass = np.array([(small * r).sum(), (small * c).sum()]) / small.sum()
    top, left = np.clip(np.rint(middle - mass).astype(int), 0, [28 - tall, 28 - wide])
    out = np.zeros((28, 28), dtype=np.float32)
    out[top : top + tall, left : left + wide] = small
    return out.ravel()


def _stretched(photo):
    return prepare((photo - photo.min()) / np.ptp(photo) * 255)


def _dark_only(photo):
    return prepare(np.where(photo < 60, photo, 255.0))


def _light_too(photo):
    return prepare(np.where(photo < 180, photo / 2, 255.0))


def _mirrored(photo):
    return prepare(photo[:, ::-1])


def _filled(photo):
    ink = photo < 127
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    solid = np.full(photo.shape, 255.0)
    solid[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = 0
    return prepare(solid)


lesson.add(
    4, 3, "Your own handwriting", check=_check_prepare,
    hints=["Four steps: invert and scale to [0, 1], cut out the box that holds ink, resize, place. Look at each.",
           "Resize by asking where each new pixel comes from, as in shift_and_turn; the nearest old pixel is enough.",
           "The centre of mass is the ink-weighted mean of the row and column numbers; it should land on 14, 14."],
    solution=prepare,
    wrong={
        (lambda photo: 1 - prepare(photo)): "invert the photo",
        (lambda photo: prepare(photo, middle=12.9)): "centre of mass",
        _mirrored: "the L upright",
        _stretched: "lighter than half way",
        _dark_only: "no ink on this page",
        _light_too: "lighter than half way",
        _filled: "the L upright",
        (lambda photo: prepare(photo, alike=False)): "both sides scaled alike",
        (lambda photo: prepare(photo).astype(np.float64)): "expected float32",
    },
)  # fmt: skip
