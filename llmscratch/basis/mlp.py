"""A multilayer perceptron in NumPy: stable softmax cross-entropy, vectorised backpropagation, mini-batch SGD, and
augmentation by shifting and turning digits.
"""

# Made from 01_common_basis/08_mlp_in_numpy.ipynb by `make export`: change the notebook, not this file.

import numpy as np

__all__ = ["MLP", "accuracy", "cross_entropy", "log_softmax", "shift_and_turn", "train_epoch"]


def log_softmax(logits):
    """Logarithms of the softmax over the last axis, without overflow for logits of any size. Same shape as `logits`."""
    shifted = np.asarray(logits) - np.max(logits, axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def cross_entropy(logits, targets):
    """Mean cross-entropy of `logits` (B, C) against `targets` (B,) and its gradient.

    targets: integers in 0..C-1. Returns (loss, dlogits): a number in nats, and an array (B, C) in the logits' dtype.
    Raises ValueError when the shapes do not fit or a target is out of range.
    """
    logits, targets = np.asarray(logits), np.asarray(targets)
    if logits.ndim != 2 or targets.shape != logits.shape[:1] or not len(targets):
        shapes = f"got {logits.shape} and {targets.shape}"
        raise ValueError(f"logits must be (B, C) and targets (B,), with at least one example; {shapes}")
    if not np.issubdtype(targets.dtype, np.integer) or targets.min() < 0 or targets.max() >= logits.shape[1]:
        raise ValueError(
            f"targets must be integers from 0 to {logits.shape[1] - 1}; got {targets.dtype} {targets[:5]}…"
        )
    rows = np.arange(len(targets))
    logp = log_softmax(logits)
    dlogits = np.exp(logp)
    dlogits[rows, targets] -= 1  # p − [j = y]
    dlogits /= len(targets)
    return -logp[rows, targets].mean(), dlogits


class MLP:
    """A multilayer perceptron: linear layers with relu between them. `sizes` such as [784, 128, 10].

    Weights W[l] are (out, in) with He's variance 2/in (He et al. 2015, eq. 10); biases b[l] are (out,), zero at first.
    `rng` is a np.random.Generator; `dtype` float32 or float64.
    """

    def __init__(self, sizes, rng, dtype=np.float32):
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(
                f"sizes must name at least an input and an output width, all positive; got {sizes}"
            )
        if dtype not in (np.float32, np.float64):
            raise ValueError(f"dtype must be np.float32 or np.float64; got {dtype}")
        self.W = [(rng.normal(size=(n, m)) * np.sqrt(2 / m)).astype(dtype) for m, n in zip(sizes, sizes[1:])]
        self.b = [np.zeros(n, dtype) for n in sizes[1:]]

    def parameters(self):
        """The arrays themselves, weights first: changing them in place changes the network."""
        return self.W + self.b

    def forward(self, X):
        """Activations of every layer for X (B, in), in the weights' dtype: [X, A1, …, logits], the last (B, out)."""
        X = np.asarray(X)
        if X.ndim != 2 or X.shape[1] != self.W[0].shape[1]:
            raise ValueError(f"X must be (B, {self.W[0].shape[1]}); got {X.shape}")
        A = [X.astype(self.W[0].dtype, copy=False)]
        for layer, (W, b) in enumerate(zip(self.W, self.b), start=1):
            Z = A[-1] @ W.T  # (B, out)
            Z += b
            if layer < len(self.W):
                np.maximum(Z, 0, out=Z)
            A.append(Z)
        return A

    def loss_and_gradients(self, X, targets):
        """Mean cross-entropy for X (B, in), targets (B,), and its gradients, in order and shape of parameters()."""
        A = self.forward(X)
        loss, delta = cross_entropy(A[-1], targets)
        dW, db = [None] * len(self.W), [None] * len(self.W)
        for l in reversed(range(len(self.W))):
            dW[l] = delta.T @ A[l]  # (out, in)
            db[l] = delta.sum(axis=0)  # (out,)
            if l > 0:
                delta = delta @ self.W[l]  # (B, in)
                delta *= A[l] > 0
        return loss, dW + db


def train_epoch(model, X, y, *, lr, batch_size, rng):
    """One epoch of mini-batch SGD over X (N, in), y (N,), in a random order; changes the model.

    Returns the mean of the batches' losses, each taken before its own step: the model at the end is usually better.
    Raises FloatingPointError when the loss stops being finite (usually: lr is much too large).
    """
    y = np.asarray(y)
    if len(X) != len(y) or not len(X):
        raise ValueError(f"X and y must have the same length, at least 1; got {len(X)} and {len(y)}")
    if batch_size < 1 or not 0 < lr < np.inf:
        raise ValueError(f"batch_size must be at least 1, lr positive and finite; got {batch_size} and {lr}")
    order, total = rng.permutation(len(X)), 0.0
    for start in range(0, len(X), batch_size):
        batch = order[start : start + batch_size]
        loss, gradients = model.loss_and_gradients(X[batch], y[batch])
        if not np.isfinite(loss):
            raise FloatingPointError(f"the loss became {loss}; look for nan in X, or try a smaller lr than {lr}")
        for p, g in zip(model.parameters(), gradients):
            g *= lr  # in place: the gradients are ours, and no new array is made
            p -= g
        total += loss * len(batch)
    return total / len(X)


def accuracy(model, X, y):
    """The share, from 0 to 1, of the rows of X (N, in) whose largest logit stands at their label y (N,).

    Raises FloatingPointError when a logit is nan.
    """
    if np.shape(y) != (len(X),) or not len(X):
        raise ValueError(
            f"y must hold one label for each of at least one row; got {np.shape(y)} for {len(X)} rows"
        )
    logits = model.forward(X)[-1]
    if np.isnan(logits).any():
        raise FloatingPointError("the logits are nan: the training has diverged, or X holds nan")
    return float((logits.argmax(axis=1) == y).mean())


def shift_and_turn(X, rng, *, shift=2.0, degrees=12.0):
    """Each picture of X (N, side²) shifted by up to ±shift pixels each way and turned by up to ±degrees, at random.

    Bilinear interpolation; what comes from outside the picture is 0. Same shape and dtype as X.
    Raises ValueError when X is not (N, side²) of float32 or float64, or a range is negative or not finite.
    """
    if X.ndim != 2 or X.dtype not in (np.float32, np.float64) or not all(0 <= r < np.inf for r in (shift, degrees)):
        raise ValueError(
            "X must be (N, side²), float32 or float64, and shift and degrees finite and not negative; "
            f"got {X.shape} {X.dtype}, shift {shift}, degrees {degrees}"
        )
    n, side = len(X), round(X.shape[1] ** 0.5)
    if side * side != X.shape[1]:
        raise ValueError(f"X must hold square pictures as rows; {X.shape[1]} pixels are not a square")
    angle = np.deg2rad(rng.uniform(-degrees, degrees, size=(n, 1))).astype(X.dtype)
    shift_r, shift_c = rng.uniform(-shift, shift, size=(2, n, 1)).astype(X.dtype)
    centre = (side - 1) / 2
    r, c = (np.divmod(np.arange(side * side), side) - np.array(centre)).astype(X.dtype)  # (side²,) each
    old_r = np.cos(angle) * r + np.sin(angle) * c + (centre - shift_r)  # (N, side²)
    old_c = np.cos(angle) * c - np.sin(angle) * r + (centre - shift_c)
    np.clip(old_r, -1, side, out=old_r)
    np.clip(old_c, -1, side, out=old_c)
    top, left = np.floor(old_r), np.floor(old_c)
    f_r, f_c = old_r - top, old_c - left
    wide = side + 3  # a frame of zeros: one pixel before, two after
    framed = np.zeros((n, wide, wide), X.dtype)
    framed[:, 1:-2, 1:-2] = X.reshape(n, side, side)
    framed = framed.ravel()
    row, column = top.astype(np.int32) + 1, left.astype(np.int32) + 1
    at = np.arange(n, dtype=np.int32)[:, None] * wide**2 + row * wide + column
    upper = framed[at] * (1 - f_c) + framed[at + 1] * f_c
    lower = framed[at + wide] * (1 - f_c) + framed[at + wide + 1] * f_c
    return upper * (1 - f_r) + lower * f_r
