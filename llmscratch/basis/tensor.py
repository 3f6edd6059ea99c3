"""Automatic differentiation on NumPy arrays, with modules and optimisers on top of it."""

from contextlib import contextmanager
from itertools import count

import numpy as np

from llmscratch.basis import mlp
from llmscratch.basis.autograd import sorted_graph

__all__ = ["Adam", "Embedding", "LayerNorm", "Linear", "Module", "Node", "Operators", "Optimizer", "Parameter",
           "SGD", "Tensor", "cross_entropy", "no_grad", "record", "unbroadcast"]

_tick = count().__next__  # one clock for all tensors, as in basis.autograd
_recording = True


@contextmanager
def no_grad():
    """Within `with no_grad():` nothing is recorded: for evaluation, where no gradient is needed."""
    global _recording
    before, _recording = _recording, False
    try:
        yield
    finally:
        _recording = before


def unbroadcast(gradient, shape):
    """`gradient` summed over the axes along which an array of `shape` was stretched; the result has `shape`."""
    new = gradient.ndim - len(shape)  # axes that broadcasting put in front
    stretched = [new + i for i, n in enumerate(shape) if n == 1 and gradient.shape[new + i] != 1]
    return gradient.sum(axis=(*range(new), *stretched)).reshape(shape)


class Node:
    """An array in a computation graph: its data, its gradient, and how it was computed.

    data: float32 or float64. A NumPy array keeps its dtype; numbers and lists become float32 unless dtype says
    otherwise. The numbers are copied. grad: None, or an array like data, to which each backward() adds (leaves only).
    """

    __slots__ = ("_data", "_order", "_parents", "_vjps", "grad", "label", "op", "requires_grad")
    __array_ufunc__ = None  # NumPy arrays on the left leave the operation to us

    def __init__(self, data, requires_grad=False, dtype=None):
        if hasattr(data, "requires_grad"):
            raise TypeError(f"data must be numbers or an array; a {type(data).__name__} would lose its gradient here")
        self._data = np.array(data, dtype or getattr(data, "dtype", np.float32))
        if self._data.dtype not in (np.float32, np.float64):
            raise ValueError(f"a Tensor holds float32 or float64, not {self._data.dtype}: say which, as dtype=")
        self.grad, self._parents, self._vjps, self._order = None, (), (), _tick()
        self.requires_grad, self.op, self.label = requires_grad, "", ""

    @property
    def data(self):
        return self._data

    @data.setter
    def data(self, array):
        if self._parents != ():
            raise RuntimeError(f"only a tensor you made can be set; this one is the result of '{self.op}'")
        if np.shape(array) != self.shape or array.dtype != self.dtype:
            got = f"{np.shape(array)} {getattr(array, 'dtype', type(array).__name__)}"
            raise ValueError(f"data must stay {self.shape} {self.dtype}; got {got}")
        self._data, self._order = array, _tick()  # as if made now: what was computed from it is out of date

    shape = property(lambda self: self._data.shape)
    ndim = property(lambda self: self._data.ndim)
    dtype = property(lambda self: self._data.dtype)

    def __len__(self):
        return len(self._data)

    def __repr__(self):
        made = f", op='{self.op}'" if self.op else ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({np.array2string(self._data, precision=4, separator=', ', threshold=50)}, {self.dtype}{made})"

    def numpy(self):
        return self._data

    def item(self):
        return self._data.item()

    def detach(self):
        """The same numbers, copied, without history."""
        return Tensor(self._data)

    def backward(self, gradient=None, retain_graph=False):
        """Add d(self)/d(leaf) to .grad of every leaf that requires it, for a self that is one number.

        Otherwise `gradient` (shape and dtype of self) says how much each number of self counts. Frees the graph
        unless retain_graph. Raises RuntimeError as sorted_graph does, before any gradient changes.
        """
        if not self.requires_grad:
            raise RuntimeError("backward(): this tensor depends on nothing that requires a gradient")
        if gradient is None and self._data.size != 1:
            raise ValueError(f"backward() from shape {self.shape} needs a gradient of that shape; a loss is one number")
        gradient = np.ones_like(self._data) if gradient is None else np.asarray(gradient)
        if (gradient.shape, gradient.dtype) != (self.shape, self.dtype):
            raise ValueError(f"gradient must be {self.shape} {self.dtype}; got {gradient.shape} {gradient.dtype}")
        pending = {self: gradient}
        for node in sorted_graph(self):
            if node not in pending:
                continue
            gradient = pending.pop(node)
            if node._parents == ():
                node.grad = np.array(gradient) if node.grad is None else node.grad + gradient
            for parent, vjp in zip(node._parents, node._vjps, strict=True):
                if parent.requires_grad:
                    share = vjp(gradient)
                    share = share if share.shape == parent.shape else unbroadcast(share, parent.shape)
                    pending[parent] = pending[parent] + share if parent in pending else share
            if node._parents and not retain_graph:
                node._parents = node._vjps = None


def record(data, parents, vjps, op):
    """A Tensor: the array `data`, result of `op` on `parents` (a tuple of Tensors), with one function for each parent.

    A vjp takes the gradient of the result and returns that of its parent, in the parent's shape or stretched from it.
    """
    out = object.__new__(Tensor)
    out._data, out._order, out.grad, out.op, out.label = np.asarray(data), _tick(), None, op, ""
    out.requires_grad = _recording and any(parent.requires_grad for parent in parents)
    out._parents, out._vjps = (parents, vjps) if out.requires_grad else ((), ())
    return out


def _swap(array):
    return array.swapaxes(-1, -2)


def _rows(array):
    return array.reshape(-1, array.shape[-1])


class Operators(Node):
    """Arithmetic with broadcasting: + − * / @ and negation between Tensors, arrays and numbers; ** a number."""

    __slots__ = ()

    def _pair(self, other, op):
        """The arrays of self and other, and other as a Tensor; ValueError when dtypes or shapes do not fit."""
        if not isinstance(other, Node):
            other = Tensor(other, dtype=None if isinstance(other, np.ndarray) else self.dtype)
        if other.dtype != self.dtype:
            raise ValueError(f"{op}: dtypes {self.dtype} and {other.dtype} differ; make both the same, nothing is upcast")
        if other.shape != self.shape and op != "@":
            try:
                np.broadcast(self._data, other._data)
            except ValueError:
                raise ValueError(f"{op}: shapes {self.shape} and {other.shape} cannot be broadcast together") from None
        return self._data, other._data, other

    def __add__(self, other):
        a, b, other = self._pair(other, "+")
        return record(a + b, (self, other), (lambda g: g, lambda g: g), "+")

    def __sub__(self, other):
        a, b, other = self._pair(other, "-")
        return record(a - b, (self, other), (lambda g: g, lambda g: -g), "-")

    def __mul__(self, other):
        a, b, other = self._pair(other, "*")
        return record(a * b, (self, other), (lambda g: g * b, lambda g: g * a), "*")

    def __truediv__(self, other):
        a, b, other = self._pair(other, "/")
        y = a / b
        return record(y, (self, other), (lambda g: g / b, lambda g: -g * y / b), "/")

    def __pow__(self, n):
        if not isinstance(n, (int, float, np.integer, np.floating)):
            raise TypeError(f"**: the exponent must be a plain number, not a {type(n).__name__}")
        a, n = self._data, float(n)
        return record(a**n, (self,), (lambda g: g * (n * a ** (n - 1) if n else np.zeros_like(a)),), f"**{n:g}")

    def __neg__(self):
        return record(-self._data, (self,), (lambda g: -g,), "neg")

    def __matmul__(self, other):
        """(…, n, k) @ (…, k, m) → (…, n, m); the axes in front are broadcast."""
        a, b, other = self._pair(other, "@")
        if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
            raise ValueError(f"@: shapes {a.shape} and {b.shape} do not fit; (…, n, k) @ (…, k, m) is needed")
        try:
            y = a @ b
        except ValueError:
            raise ValueError(f"@: shapes {a.shape} and {b.shape} cannot be broadcast in the axes in front") from None

        def vjp_b(g):
            return (_rows(g).T @ _rows(a)).T if b.ndim == 2 else _swap(a) @ g

        return record(y, (self, other), (lambda g: g @ _swap(b), vjp_b), "@")

    __radd__, __rmul__ = __add__, __mul__

    def __rsub__(self, other):
        return -self + other

    def __rtruediv__(self, other):
        return self**-1 * other

    def __rmatmul__(self, other):
        return Tensor(other) @ self


class Tensor(Operators):
    """An array that records the operations it goes through, so that backward() can differentiate the result."""

    __slots__ = ()

    def exp(self):
        y = np.exp(self._data)
        return record(y, (self,), (lambda g: g * y,), "exp")

    def log(self):
        a = self._data
        return record(np.log(a), (self,), (lambda g: g / a,), "log")

    def tanh(self):
        y = np.tanh(self._data)
        return record(y, (self,), (lambda g: g * (1 - y * y),), "tanh")

    def relu(self):
        """max(0, x); the slope at exactly 0 is 0, as in PyTorch."""
        y = np.maximum(self._data, 0)
        return record(y, (self,), (lambda g: g * (y > 0),), "relu")

    def gelu(self):
        """x Φ(x) in the tanh form that GPT-2 uses (Hendrycks and Gimpel, arXiv:1606.08415, section 2)."""
        a, c = self._data, (2 / np.pi) ** 0.5
        t = np.tanh(c * (a + 0.044715 * a**3))

        def vjp(g):
            return g * 0.5 * (1 + t + a * (1 - t * t) * c * (1 + 3 * 0.044715 * a * a))

        return record(0.5 * a * (1 + t), (self,), (vjp,), "gelu")

    def log_softmax(self, axis=-1):
        a = self._data
        shifted = a - a.max(axis=axis, keepdims=True)
        y = shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))
        return record(y, (self,), (lambda g: g - np.exp(y) * g.sum(axis=axis, keepdims=True),), "log_softmax")

    def sum(self, axis=None, keepdims=False):
        kept, shape = self._data.sum(axis=axis, keepdims=True), self.shape
        y = kept if keepdims else self._data.sum(axis=axis)
        return record(y, (self,), (lambda g: np.broadcast_to(g.reshape(kept.shape), shape),), "sum")

    def mean(self, axis=None, keepdims=False):
        total = self.sum(axis, keepdims)
        return total * (total._data.size / self._data.size)

    def max(self, axis=None, keepdims=False):
        """The largest along axis; equal largest ones share the gradient, as in torch.amax."""
        top = self._data.max(axis=axis, keepdims=True)
        at_top = self._data == top
        share = at_top / at_top.sum(axis=axis, keepdims=True).astype(self.dtype)
        y = top if keepdims else self._data.max(axis=axis)
        return record(y, (self,), (lambda g: g.reshape(top.shape) * share,), "max")

    def reshape(self, *shape):
        shape = shape[0] if shape and isinstance(shape[0], (tuple, list)) else shape
        old = self.shape
        try:
            y = self._data.reshape(shape)
        except ValueError:
            raise ValueError(f"reshape: shape {old} does not fit into {tuple(shape)}") from None
        return record(y, (self,), (lambda g: g.reshape(old),), "reshape")

    def transpose(self, *axes):
        axes = axes or tuple(reversed(range(self.ndim)))
        back = np.argsort([axis % self.ndim for axis in axes])
        return record(self._data.transpose(axes), (self,), (lambda g: g.transpose(back),), "transpose")

    T = property(transpose)

    def __getitem__(self, index):
        shape, dtype = self.shape, self.dtype

        def vjp(g):
            scattered = np.zeros(shape, dtype)
            np.add.at(scattered, index, g)
            return scattered

        return record(self._data[index], (self,), (vjp,), "index")


def cross_entropy(logits, targets):
    """Mean cross-entropy in nats of logits (B, C) against integer targets (B,); a fused operation (basis.mlp)."""
    loss, dlogits = mlp.cross_entropy(logits.data, targets)
    return record(loss, (logits,), (lambda g: g * dlogits,), "cross_entropy")


class Parameter(Tensor):
    """A Tensor that training changes: requires_grad is True, and a Module finds it."""

    __slots__ = ()

    def __init__(self, data, dtype=None):
        super().__init__(data, requires_grad=True, dtype=dtype)


class Module:
    """Base of layers and models: finds the Parameters among its attributes, in Modules and in lists of either."""

    def __call__(self, *inputs):
        return self.forward(*inputs)

    def named_parameters(self):
        """A dict from names such as "layers.0.weight" to Parameters, each once, in the order they were set."""
        found = {}

        def visit(name, value):
            if isinstance(value, Parameter) and not any(value is p for p in found.values()):
                found[name] = value
            inside = vars(value) if isinstance(value, Module) else value if isinstance(value, dict) else {}
            inside = dict(enumerate(value)) if isinstance(value, (list, tuple)) else inside
            for key, part in inside.items():
                visit(f"{name}.{key}" if name else str(key), part)

        visit("", self)
        return found

    def parameters(self):
        return list(self.named_parameters().values())

    def zero_grad(self):
        for p in self.parameters():
            p.grad = None

    def state_dict(self):
        return {name: p.data.copy() for name, p in self.named_parameters().items()}

    def load_state_dict(self, arrays):
        mine = self.named_parameters()
        if mine.keys() != arrays.keys():
            missing, extra = sorted(mine.keys() - arrays.keys()), sorted(arrays.keys() - mine.keys())
            raise ValueError(f"names do not fit: missing {missing}, unexpected {extra}")
        for name, p in mine.items():
            p.data = np.array(arrays[name])


class Linear(Module):
    """x @ weight.T + bias for x (…, n_in); weight (n_out, n_in) with He's variance 2/n_in, bias (n_out,) zero."""

    def __init__(self, n_in, n_out, rng, dtype=np.float32):
        self.weight = Parameter(rng.normal(size=(n_out, n_in)) * np.sqrt(2 / n_in), dtype)
        self.bias = Parameter(np.zeros(n_out), dtype)

    def forward(self, x):
        return x @ self.weight.T + self.bias


class Embedding(Module):
    """Row ids[…] of a table weight (n, d), drawn from N(0, 1): integers (…) → (…, d)."""

    def __init__(self, n, d, rng, dtype=np.float32):
        self.weight = Parameter(rng.normal(size=(n, d)), dtype)

    def forward(self, ids):
        ids = np.asarray(ids)
        if ids.dtype.kind not in "iu" or (ids.size and not 0 <= ids.min() <= ids.max() < len(self.weight)):
            raise ValueError(f"ids must be integers from 0 to {len(self.weight) - 1}; got {ids.dtype} {ids.ravel()[:5]}")
        return self.weight[ids]


class LayerNorm(Module):
    """(x − mean) / √(variance + eps) · weight + bias, over the last axis (d), as torch.nn.LayerNorm."""

    def __init__(self, d, eps=1e-5, dtype=np.float32):
        self.weight, self.bias, self.eps = Parameter(np.ones(d), dtype), Parameter(np.zeros(d), dtype), eps

    def forward(self, x):
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = (centred * centred).mean(axis=-1, keepdims=True)
        return centred * (variance + self.eps) ** -0.5 * self.weight + self.bias


class Optimizer:
    """What optimisers share: the parameters, the learning rate lr, zero_grad() and step()."""

    def __init__(self, parameters, lr):
        self.parameters, self.lr, self.state = list(parameters), lr, {}
        if not self.parameters or not all(isinstance(p, Tensor) and p.requires_grad for p in self.parameters):
            raise ValueError("parameters must be one or more Tensors that require a gradient")

    def zero_grad(self):
        for p in self.parameters:
            p.grad = None

    def step(self):
        """Change every parameter that has a gradient."""
        for p in self.parameters:
            if p.grad is not None:
                p.data -= self.change(p)


class SGD(Optimizer):
    """p ← p − lr·v with v ← momentum·v + gradient, as torch.optim.SGD."""

    def __init__(self, parameters, lr, momentum=0.0):
        super().__init__(parameters, lr)
        self.momentum = momentum

    def change(self, p):
        v = p.grad
        if self.momentum:
            v = self.state[p] = self.momentum * self.state[p] + v if p in self.state else v
        return float(self.lr) * v


class Adam(Optimizer):
    """Kingma and Ba, arXiv:1412.6980, algorithm 1, in the form of torch.optim.Adam."""

    def __init__(self, parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(parameters, lr)
        self.betas, self.eps = betas, eps

    def change(self, p):
        (b1, b2), g = self.betas, p.grad
        m, v, t = self.state.get(p, (np.zeros_like(g), np.zeros_like(g), 0))
        m, v, t = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g, t + 1
        self.state[p] = m, v, t
        return float(self.lr) / (1 - b1**t) * m / (np.sqrt(v) / (1 - b2**t) ** 0.5 + self.eps)
