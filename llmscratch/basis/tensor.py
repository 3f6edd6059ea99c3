"""Automatic differentiation on NumPy arrays, with modules and optimisers on top of it."""

# Generated from 01_common_basis/10_tensor_autograd.ipynb by `make export`: change the notebook, not this file.

from contextlib import contextmanager
from itertools import count

import numpy as np

from llmscratch.basis import mlp
from llmscratch.basis.autograd import sorted_graph

__all__ = ["Adam", "Embedding", "LayerNorm", "Linear", "Module", "SGD", "Tensor", "cross_entropy", "no_grad", "record"]


def _unbroadcast(gradient, shape):
    """`gradient` summed over the axes along which an array of `shape` was stretched; the result has `shape`."""
    strides = np.broadcast_to(np.empty(shape, bool), gradient.shape).strides  # 0 along a stretched axis
    return gradient.sum(axis=tuple(i for i, stride in enumerate(strides) if stride == 0)).reshape(shape)


class _Node:
    """An array in a computation graph: its data, its gradient, and how it was computed.

    data: float32 or float64, copied; arrays keep their dtype, numbers and lists become float32, unless `dtype` says
    otherwise. grad: None, or an array like data to which each backward() adds; for leaves that require it.
    """

    _tick, _recording = count().__next__, True  # one clock for all nodes; whether operations are recorded
    __array_ufunc__ = None  # NumPy arrays on the left leave the operation to us
    grad, op, label, _parents, _vjps = None, "", "", (), ()
    shape, ndim = property(lambda self: self._data.shape), property(lambda self: self._data.ndim)
    data, dtype = property(lambda self: self._data), property(lambda self: self._data.dtype)

    def __init__(self, data, requires_grad=False, dtype=None):
        self._data = np.array(data, dtype or getattr(data, "dtype", np.float32))
        if self.dtype not in (np.float32, np.float64):
            raise ValueError(f"a Tensor holds float32 or float64, not {self.dtype}; choose one by dtype=")
        self._order, self.requires_grad = self._tick(), requires_grad

    @data.setter
    def data(self, array):
        if self._parents != ():
            raise RuntimeError(f"only a tensor you made can be set; this one is the result of '{self.op}'")
        if (np.shape(array), getattr(array, "dtype", None)) != (self.shape, self.dtype):
            raise ValueError(f"data must stay {self.shape} {self.dtype}, not become {np.shape(array)}")
        self._data, self._order = array, self._tick()  # as if made now: what was computed from it is out of date

    def backward(self, gradient=None, retain_graph=False):
        """Add to .grad of the leaves the gradient of self, one number; of more, weighted by `gradient`, an array."""
        _sweep(self, np.ones_like(self._data) if gradient is None and self._data.size == 1 else gradient, retain_graph)


def _sweep(root, gradient, retain_graph):
    """Carry `gradient`, an array like root, back to the leaves; free the graph unless retain_graph."""
    if not root.requires_grad:
        raise RuntimeError("backward(): this tensor depends on nothing that requires a gradient")
    if (np.shape(gradient), getattr(gradient, "dtype", None)) != (root.shape, root.dtype):
        raise ValueError(f"backward() from {root.shape} {root.dtype} needs a gradient, an array like that")
    pending = {root: gradient}  # what has arrived at nodes whose turn is still to come
    for node in sorted_graph(root):
        gradient = pending.pop(node, None)
        if node.requires_grad and node._parents == ():
            node.grad = np.array(gradient) if node.grad is None else node.grad + gradient
        for parent, vjp in zip(node._parents, node._vjps, strict=True):
            if parent.requires_grad:
                share = vjp(gradient)
                if share.shape != parent.shape:
                    share = _unbroadcast(share, parent.shape)
                pending[parent] = pending[parent] + share if parent in pending else share
        if node._parents and not retain_graph:
            node._parents = node._vjps = None


@contextmanager
def no_grad():
    """Inside `with no_grad():` nothing is recorded; for evaluation, which needs no gradients."""
    before, _Node._recording = _Node._recording, False
    try:
        yield
    finally:
        _Node._recording = before


def record(data, parents, vjps, op):
    """A Tensor: the array `data`, result of `op` on `parents` (a tuple of Tensors), with a function for each parent.

    A vjp takes the gradient of the result and returns the parent's, in the parent's shape or stretched from it.
    """
    out = object.__new__(Tensor)
    out._data, out._order, out.op = np.asarray(data), out._tick(), op
    out.requires_grad = out._recording and any(parent.requires_grad for parent in parents)
    out._parents, out._vjps = (parents, vjps) if out.requires_grad else ((), ())
    return out


def _fit(op, function, *arrays):
    """function(*arrays); an error that names op and the arrays when NumPy refuses them or their dtypes differ."""
    if any(array.dtype != arrays[0].dtype for array in arrays):
        raise ValueError(f"{op}: dtypes {' and '.join(str(a.dtype) for a in arrays)} differ; nothing is upcast")
    try:
        return function(*arrays)
    except (ValueError, IndexError) as error:
        message = f"{op} does not fit shape {' and '.join(str(array.shape) for array in arrays)}"
        raise IndexError(message) if type(error) is IndexError else ValueError(message) from error


def _operation(op, function, *vjps):
    """A method that records y = function(a, b) of arrays (or function(a)), with a vjp(g, y, a, b) for each of them."""

    def method(self, *others):
        tensors = [self]
        for x in others:  # numbers take self's dtype, arrays must have it
            x = x if isinstance(x, np.ndarray | _Node) else np.array(x, self.dtype)
            tensors.append(x if isinstance(x, _Node) else Tensor(x))
        arrays = [tensor._data for tensor in tensors]
        y = _fit(op, function, *arrays)
        return record(y, tensors, [lambda g, vjp=vjp: vjp(g, y, *arrays) for vjp in vjps], op)

    return method


def _right_factor(g, y, a, b):
    """The vjp of a @ b for b; one matrix b for a whole batch takes one product."""
    return a.mT @ g if b.ndim > 2 else (g.reshape(-1, g.shape[-1]).T @ a.reshape(-1, a.shape[-1])).T


class _Operations(_Node):
    """Operations without options, a line each: name, result, and the vector-Jacobian product for each input."""

    __add__ = __radd__ = _operation("+", np.add, lambda g, y, a, b: g, lambda g, y, a, b: g)
    __sub__ = _operation("-", np.subtract, lambda g, y, a, b: g, lambda g, y, a, b: -g)
    __rsub__ = _operation("-", lambda a, b: b - a, lambda g, y, a, b: -g, lambda g, y, a, b: g)
    __mul__ = __rmul__ = _operation("*", np.multiply, lambda g, y, a, b: g * b, lambda g, y, a, b: g * a)
    __truediv__ = _operation("/", np.divide, lambda g, y, a, b: g / b, lambda g, y, a, b: -g * y / b)
    __rtruediv__ = _operation("/", lambda a, b: b / a, lambda g, y, a, b: -g * y / a, lambda g, y, a, b: g / a)
    __pow__ = _operation(
        "**", np.power, lambda g, y, a, b: g * b * a ** np.where(b, b - 1, 1), lambda g, y, a, b: g * y * np.log(a)
    )
    __neg__ = _operation("neg", np.negative, lambda g, y, a: -g)
    __matmul__ = _operation("@", lambda a, b: a.mT.mT @ b.mT.mT, lambda g, y, a, b: g @ b.mT, _right_factor)
    exp = _operation("exp", np.exp, lambda g, y, a: g * y)
    log = _operation("log", np.log, lambda g, y, a: g / a)
    tanh = _operation("tanh", np.tanh, lambda g, y, a: g * (1 - y * y))
    relu = _operation("relu", lambda a: np.maximum(a, 0), lambda g, y, a: g * (y > 0))  # slope 0 at 0, as in torch

    def gelu(self):
        """x Φ(x) in the tanh form of GPT-2 (Hendrycks and Gimpel, arXiv:1606.08415); torch: approximate="tanh"."""
        a, c = self._data, (2 / np.pi) ** 0.5
        t = np.tanh(c * (a + 0.044715 * a * a * a))
        slope = 0.5 * (1 + t + a * (1 - t * t) * c * (1 + 3 * 0.044715 * a * a))
        return record(0.5 * a * (1 + t), (self,), (lambda g: g * slope,), "gelu")


class Tensor(_Operations):
    """An array that records the operations it goes through, so that backward() can differentiate the result."""

    numpy, item, detach = lambda self: self._data, lambda self: self._data.item(), lambda self: Tensor(self._data)
    T = property(lambda self: self.transpose())

    def __repr__(self):
        few = np.array2string(self._data, precision=4, separator=", ") if self._data.size <= 12 else self.shape
        return f"Tensor({few}, {self.dtype}{', requires_grad' * self.requires_grad})"

    def sum(self, axis=None, keepdims=False):
        a, kept = self._data, self._data.sum(axis, keepdims=True)
        y = kept if keepdims else kept.squeeze(axis)
        return record(y, (self,), (lambda g: np.broadcast_to(g.reshape(kept.shape), a.shape),), "sum")

    def mean(self, axis=None, keepdims=False):
        total = self.sum(axis, keepdims)
        return total * (total._data.size / self._data.size)

    def max(self, axis=None, keepdims=False):
        """The largest numbers along axis; equal ones share the gradient, as in torch.amax."""
        a, top = self._data, self._data.max(axis, keepdims=True)
        share = (a == top) / (a == top).sum(axis, keepdims=True, dtype=a.dtype)
        return record(top if keepdims else top.squeeze(axis), (self,), (lambda g: g.reshape(top.shape) * share,), "max")

    def log_softmax(self, axis=-1):
        y = mlp.log_softmax(self._data.swapaxes(axis, -1)).swapaxes(axis, -1)
        return record(y, (self,), (lambda g: g - np.exp(y) * g.sum(axis, keepdims=True),), "log_softmax")

    def reshape(self, *shape):
        y = _fit(f"reshape to {shape}", lambda a: a.reshape(*shape), self._data)
        return record(y, (self,), (lambda g, old=self.shape: g.reshape(old),), "reshape")

    def transpose(self, *axes):
        """All axes in the order given (without any: reversed), as NumPy's; torch calls it permute."""
        y = _fit(f"transpose to {axes}", lambda a: a.transpose(axes or None), self._data)
        back = np.argsort([axis % self.ndim for axis in axes]) if axes else None
        return record(y, (self,), (lambda g: g.transpose(back),), "transpose")

    def __getitem__(self, index):
        def scatter_add(g, shape=self.shape):
            out = np.zeros(shape, g.dtype)
            np.add.at(out, index, g)
            return out

        return record(_fit("index", lambda a: a[index], self._data), (self,), (scatter_add,), "index")


def cross_entropy(logits, targets):
    """Mean cross-entropy in nats of logits (B, C) against integers targets (B,), fused: see basis.mlp."""
    loss, dlogits = mlp.cross_entropy(logits.data, targets)
    return record(loss, (logits,), (lambda g: g * dlogits,), "cross_entropy")


class Module:
    """Base of layers and models, which define __call__, the forward pass; finds the parameters in them."""

    def named_parameters(self):
        """Pairs such as ("layers.0.weight", Tensor), each Tensor once, in the order of the attributes."""
        found, todo = {}, list(vars(self).items())
        while todo:
            name, value = todo.pop(0)
            if isinstance(value, Tensor) and value.requires_grad and not value.op:
                found.setdefault(value, name)
            inside = dict(enumerate(value)) if isinstance(value, list) else {}
            inside = vars(value) if isinstance(value, Module) else inside
            todo[:0] = [(f"{name}.{key}", part) for key, part in inside.items()]
        return [(name, p) for p, name in found.items()]

    def parameters(self):
        return [p for _, p in self.named_parameters()]

    def zero_grad(self):
        for p in self.parameters():
            p.grad = None


class Linear(Module):
    """x (…, n_in) → x @ weightᵀ + bias (…, n_out); weight (n_out, n_in) with He's variance 2/n_in, bias 0."""

    def __init__(self, n_in, n_out, rng, dtype=np.float32):
        self.weight = Tensor(rng.normal(size=(n_out, n_in)) * np.sqrt(2 / n_in), True, dtype)
        self.bias = Tensor(np.zeros(n_out), True, dtype)

    def __call__(self, x):
        return x @ self.weight.T + self.bias


class Embedding(Module):
    """Integers (…) → rows (…, d) of the table weight (n, d), which is drawn from N(0, 1)."""

    def __init__(self, n, d, rng, dtype=np.float32):
        self.weight = Tensor(rng.normal(size=(n, d)), True, dtype)

    def __call__(self, ids):
        ids, n = np.asarray(ids), self.weight.shape[0]
        if ids.dtype.kind not in "iu" or ids.size and not 0 <= ids.min() <= ids.max() < n:
            raise ValueError(f"ids must be integers from 0 to {n - 1}; got {ids.dtype} {ids.ravel()[:5]}")
        return self.weight[ids]


class LayerNorm(Module):
    """Standardise over the last axis (d), then scale and shift (Ba et al., arXiv:1607.06450)."""

    def __init__(self, d, eps=1e-5, dtype=np.float32):
        self.weight, self.bias, self.eps = Tensor(np.ones(d), True, dtype), Tensor(np.zeros(d), True, dtype), eps

    def __call__(self, x):
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred * centred).mean(-1, keepdims=True)
        return centred / (variance + self.eps) ** 0.5 * self.weight + self.bias


class SGD:
    """Stochastic gradient descent: v ← momentum·v + gradient, p ← p − lr·v, as torch.optim.SGD."""

    def __init__(self, parameters, lr, momentum=0.0):
        self.parameters, self.lr, self.momentum, self.state = list(parameters), lr, momentum, {}

    def direction(self, p, g):
        if self.momentum:
            g = self.state[p] = self.momentum * self.state.get(p, 0.0) + g
        return g

    def step(self):
        for p in self.parameters:
            if p.grad is not None:
                p.data -= float(self.lr) * self.direction(p, p.grad)

    def zero_grad(self):
        for p in self.parameters:
            p.grad = None


class Adam(SGD):
    """SGD in another direction: Kingma and Ba, arXiv:1412.6980, algorithm 1, as torch.optim.Adam."""

    def __init__(self, parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(parameters, lr)
        self.betas, self.eps = betas, eps

    def direction(self, p, g):
        (b1, b2), (m, v, t) = self.betas, self.state.get(p, (0.0, 0.0, 0))
        self.state[p] = m, v, t = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g, t + 1
        return m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + self.eps)
