"""Automatic differentiation on NumPy arrays, with modules and optimisers on top of it."""

# Made from 01_common_basis/10_tensor_autograd.ipynb by `make export`: change the notebook, not this file.

from contextlib import contextmanager
from copy import deepcopy
from functools import partialmethod
from itertools import count

import numpy as np

from llmscratch.basis import mlp
from llmscratch.basis.autograd import sorted_graph

__all__ = ["Adam", "Embedding", "LayerNorm", "Linear", "Module", "SGD", "Tensor", "cross_entropy", "no_grad", "record"]


def _unbroadcast(gradient, parent):
    """`gradient` summed over the axes along which the array `parent` was stretched; the result has its shape."""
    if gradient.shape == parent.shape:
        return gradient
    strides = np.broadcast_to(np.empty(parent.shape, bool), gradient.shape).strides  # 0 along a stretched axis
    return gradient.sum(axis=tuple(i for i, stride in enumerate(strides) if stride == 0)).reshape(parent.shape)


class _Node:
    """An array in a computation graph: its data, its gradient, and how it was computed.

    data: a copy, float32 or float64 (numbers and lists: float32); grad: None, or an array to which backward() adds.
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

    def __reduce__(self):  # a copy, or a pickle in another process with its own clock, is a new leaf
        return type(self), (self._data, self.requires_grad and not self.op), {"label": self.label, "grad": self.grad}

    @data.setter
    def data(self, array):
        if self._parents != ():
            raise RuntimeError(f"only a tensor you made can be set; this one is the result of '{self.op}'")
        if not isinstance(array, np.ndarray | np.generic) or (array.shape, array.dtype) != (self.shape, self.dtype):
            raise ValueError(f"data must stay {self.shape} {self.dtype}, not {type(array).__name__} {np.shape(array)}")
        self._data, self._order = array if array is self._data else np.array(array), self._tick()  # as if made now

    def backward(self, gradient=None, retain_graph=False):
        """Add to .grad of the leaves the gradient of self, one number; of more, weighted by `gradient`, an array."""
        _sweep(self, np.ones_like(self._data) if gradient is None and self._data.size == 1 else gradient, retain_graph)


def _sweep(root, gradient, retain_graph):
    """Carry `gradient`, an array like root, back to the leaves; free the graph unless retain_graph."""
    if not root.requires_grad:
        raise RuntimeError("backward(): this tensor depends on nothing that requires a gradient")
    if not isinstance(gradient, np.ndarray) or (gradient.shape, gradient.dtype) != (root.shape, root.dtype):
        raise ValueError(f"from {root.shape} {root.dtype}: backward(gradient), an array of that shape and dtype")
    pending = {root: gradient}  # what has arrived at nodes whose turn is still to come
    for node in sorted_graph(root):
        gradient = pending.pop(node, None)
        if node.requires_grad and node._parents == ():
            node.grad = np.array(gradient) if node.grad is None else node.grad + gradient
        for parent, vjp in zip(node._parents, node._vjps, strict=True):
            if parent.requires_grad:
                share = _fit(f"the vjp of '{node.op}'", _unbroadcast, vjp(gradient), parent._data)
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
    """A Tensor: the array `data`, result of `op` on `parents`, with a function in `vjps` for each (both are tuples).

    A vjp takes the gradient of the result, into which it must not write, and returns the parent's: an array of the
    parent's dtype, in its shape or stretched from it.
    """
    if not all(isinstance(group, tuple) for group in (parents, vjps)) or len(parents) != len(vjps):
        raise TypeError(f"record '{op}': parents and vjps must be tuples of one length; of one thing: (x,)")
    out = object.__new__(Tensor)
    out._data, out._order, out.op = np.asarray(data), out._tick(), op
    if any(parent.dtype != out.dtype for parent in parents):
        raise ValueError(f"{op}: the result is {out.dtype}, its inputs are not; nothing is upcast")
    out.requires_grad = out._recording and any(parent.requires_grad for parent in parents)
    out._parents, out._vjps = (parents, vjps) if out.requires_grad else ((), ())
    return out


def _fit(op, function, *arrays):
    """function(*arrays); an error that names op and the arrays when NumPy refuses them or their dtypes differ."""
    if not all(isinstance(array, np.ndarray | np.generic) for array in arrays):
        raise TypeError(f"{op}: only arrays fit here, not {' and '.join(type(array).__name__ for array in arrays)}")
    if any(array.dtype != arrays[0].dtype for array in arrays):
        raise ValueError(f"{op}: dtypes {' and '.join(str(a.dtype) for a in arrays)} differ; nothing is upcast")
    try:
        return function(*arrays)
    except (ValueError, IndexError, TypeError) as error:
        kind = IndexError if type(error) is IndexError else ValueError
        raise kind(f"{op} does not fit shape {' and '.join(str(array.shape) for array in arrays)}") from error


def _operation(op, function, *vjps):
    """A method that records y = function(a, b) of arrays (or function(a)), with a vjp(g, y, a, b) for each of them."""

    def method(self, *others, mirrored=False):
        made = lambda x: Tensor(x, dtype=None if isinstance(x, np.ndarray) else self.dtype)  # arrays must have it
        tensors = (self, *[x if isinstance(x, _Node) else made(x) for x in others])[:: -1 if mirrored else 1]
        arrays = [tensor._data for tensor in tensors]
        y = _fit(op, function, *arrays)
        return record(y, tensors, tuple([lambda g, vjp=vjp: vjp(g, y, *arrays) for vjp in vjps]), op)

    return method


class _Operations(_Node):
    """Operations without options, a line each: name, result, and the vector-Jacobian product for each input."""

    __add__ = __radd__ = _operation("+", np.add, lambda g, y, a, b: g, lambda g, y, a, b: g)
    __sub__ = _operation("-", np.subtract, lambda g, y, a, b: g, lambda g, y, a, b: -g)
    __mul__ = __rmul__ = _operation("*", np.multiply, lambda g, y, a, b: g * b, lambda g, y, a, b: g * a)
    __truediv__ = _operation("/", np.divide, lambda g, y, a, b: g / b, lambda g, y, a, b: -g * y / b)
    __pow__ = _operation("**", np.power, lambda g, y, a, b: g * b * a ** np.where(b, b - 1, 1),  # for b = 0 not 0 ** -1
                         lambda g, y, a, b: g * y * np.log(np.where(a, a, 1)))  # fmt: skip
    __neg__ = _operation("neg", np.negative, lambda g, y, a: -g)
    __matmul__ = _operation("@", lambda a, b: a.mT.mT @ b.mT.mT, lambda g, y, a, b: g @ b.mT,  # .mT refuses vectors
        lambda g, y, a, b: a.mT @ g if b.ndim > 2 else np.tensordot(g, a, [range(g.ndim - 1)] * 2).T)  # fmt: skip
    __rsub__, __rtruediv__ = partialmethod(__sub__, mirrored=True), partialmethod(__truediv__, mirrored=True)
    __rpow__, __rmatmul__ = partialmethod(__pow__, mirrored=True), partialmethod(__matmul__, mirrored=True)
    T = property(_operation("transpose", np.transpose, lambda g, y, a: g.T))
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

    def __repr__(self):
        few = np.array2string(self._data, precision=4, separator=", ") if self._data.size <= 12 else self.shape
        return f"Tensor({few}, {self.dtype}{', requires_grad' * self.requires_grad})"

    def sum(self, axis=None, keepdims=False):
        vjp = lambda g, y, a: np.broadcast_to(g if keepdims or axis is None else np.expand_dims(g, axis), a.shape)
        return _operation(f"sum(axis={axis})", lambda a: a.sum(axis, keepdims=keepdims), vjp)(self)

    def mean(self, axis=None, keepdims=False):
        return (total := self.sum(axis, keepdims)) * np.divide(total._data.size, self._data.size)  # 1 / how many

    def max(self, axis=None, keepdims=False):
        """The largest numbers along axis; equal ones share the gradient, as in torch.amax."""
        top = self._data == _fit(f"max(axis={axis})", lambda a: a.max(axis, keepdims=True), self._data)
        shares = top / top.sum(axis, keepdims=True, dtype=self.dtype)
        vjp = lambda g, y, a: (g if keepdims or axis is None else np.expand_dims(g, axis)) * shares
        return _operation(f"max(axis={axis})", lambda a: a.max(axis, keepdims=keepdims), vjp)(self)

    def log_softmax(self, axis=-1):
        function = lambda a: mlp.log_softmax(a.swapaxes(axis, -1)).swapaxes(axis, -1)
        return _operation("log_softmax", function, lambda g, y, a: g - np.exp(y) * g.sum(axis, keepdims=True))(self)

    def reshape(self, *shape):
        return _operation(f"reshape to {shape}", lambda a: a.reshape(*shape), lambda g, y, a: g.reshape(a.shape))(self)

    def transpose(self, first, second):  # exchanges two axes, as torch's; NumPy's puts all of them in order
        swap = lambda a: a.swapaxes(first, second)
        return _operation(f"transpose of {first}, {second}", swap, lambda g, y, a: swap(g))(self)

    def __getitem__(self, index):
        index = deepcopy(index)  # an array of indices may be refilled before backward()

        def scatter_add(g, y, a):
            out, put = np.zeros_like(a), np.ndarray.__setitem__ if np.may_share_memory(y, a) else np.add.at
            put(out, index, g)  # where y is a view of a, nothing was picked twice
            return out

        return _operation("index", lambda a: a[index], scatter_add)(self)


def cross_entropy(logits, targets):
    """Mean cross-entropy in nats of logits (B, C) against integers targets (B,), fused: see basis.mlp."""
    loss, dlogits = mlp.cross_entropy(logits._data, targets)
    return record(loss, (logits,), (lambda g: g * dlogits,), "cross_entropy")


class Module:
    """Base of layers and models, which define __call__, the forward pass; finds the parameters in them."""

    def named_parameters(self):
        """Pairs such as ("layers.0.weight", Tensor), each Tensor once, in the order of the attributes."""
        seen, todo = {}, [("", self)]
        while todo:  # depth first
            name, value = todo.pop(0)
            if id(value) not in seen:
                seen[id(value)] = name, value
                parts = vars(value) if isinstance(value, Module) else value if isinstance(value, dict) else {}
                parts = dict(enumerate(value)) if isinstance(value, list | tuple) else parts
                todo[:0] = [(f"{name}.{key}", part) for key, part in parts.items()]
        return [(name[1:], p) for name, p in seen.values() if isinstance(p, Tensor) and p.requires_grad and not p.op]

    parameters = lambda self: [p for _, p in self.named_parameters()]


class Linear(Module):
    """x (…, B, n_in) → x @ weightᵀ + bias (…, B, n_out); weight (n_out, n_in) with He's variance 2/n_in, bias 0."""

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
        if x.shape[-1:] != self.weight.shape:  # a width of 1 would be stretched
            raise ValueError(f"LayerNorm: the last axis must have length {self.weight.shape[0]}; got {x.shape}")
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred * centred).mean(-1, keepdims=True)
        return centred / (variance + self.eps) ** 0.5 * self.weight + self.bias


class SGD:
    """Stochastic gradient descent: u ← momentum·u + gradient, p ← p − lr·u, as torch.optim.SGD."""

    def __init__(self, parameters, lr, momentum=0.0):
        self.parameters, self.lr, self.momentum, self.state = list(parameters), lr, float(momentum), {}
        if not self.parameters or any(p.op or not p.requires_grad for p in self.parameters):
            raise ValueError("an optimiser needs leaves that require a gradient, at least one")

    def direction(self, p, g):
        if self.momentum:
            g = self.state[p] = self.momentum * self.state.get(p, 0.0) + g
        return g

    def step(self):
        for p in self.parameters:
            if p.grad is not None:  # in place, and then assigned: the setter hears of it
                p.data -= float(self.lr) * self.direction(p, p.grad)

    def zero_grad(self):
        for p in self.parameters:
            p.grad = None


class Adam(SGD):
    """SGD in another direction: Kingma and Ba, arXiv:1412.6980, algorithm 1, as torch.optim.Adam."""

    def __init__(self, parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(parameters, lr)
        self.betas, self.eps = [float(beta) for beta in betas], float(eps)

    def direction(self, p, g):
        (b1, b2), (m, v, t) = self.betas, self.state.get(p, (0.0, 0.0, 0))
        self.state[p] = m, v, t = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g, t + 1
        return m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + self.eps)
