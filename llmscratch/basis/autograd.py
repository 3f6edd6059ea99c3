"""A scalar automatic-differentiation engine in pure Python, with neurons, layers and an MLP on top of it."""

# Made from 01_common_basis/09_autograd.ipynb by `make export`: change the notebook, not this file.

import math
from itertools import count
from operator import attrgetter

__all__ = ["Layer", "MLP", "Neuron", "Node", "Operators", "Value", "real", "record", "softplus", "sorted_graph"]


_tick = count().__next__  # one clock for all values: 0, 1, 2, …


def real(number, name):
    """The number as a float; TypeError with its name for what is no real number, a text such as "3" included."""
    if getattr(number, "requires_grad", False):
        raise TypeError(f"{name} must be a plain number; a torch tensor would lose its gradient here")
    try:
        return float(number * 1.0)  # a text would pass float() alone
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{name} must be a real number that a float can hold, not {number!r}") from None


def sorted_graph(root):
    """All nodes that `root` depends on, itself included, each after every node that uses it.

    Raises RuntimeError when part of the graph was freed, or a value was changed in place after it was used.
    """
    nodes, seen = [root], {root}
    for node in nodes:  # the list grows while it is walked
        if node._parents is None:
            raise RuntimeError(
                "this graph was freed by an earlier backward(); to keep one: backward(retain_graph=True)"
            )
        for parent in node._parents:
            if parent._order > node._order:
                name = parent.label or repr(parent)
                raise RuntimeError(f"{name} was changed in place after '{node.op}' used it: compute that again")
            if parent not in seen:
                seen.add(parent)
                nodes.append(parent)
    return sorted(nodes, key=attrgetter("_order"), reverse=True)


class Node:
    """A scalar in a computation graph: its data, its gradient, and how it was computed.

    data: a float; setting it (leaves only) marks the node as changed. grad: the derivative, with respect to this
    node, of the value whose backward() was called; leaves add up over calls. op, label: texts for messages.
    """

    __slots__ = ("_data", "grad", "_parents", "_slopes", "_order", "op", "label")
    __array_ufunc__ = None  # NumPy numbers on the left leave the operation to us

    def __init__(self, data, label=""):
        self.grad, self._parents, self._slopes, self.op, self.label = 0.0, (), (), "", label
        self.data = data

    @property
    def data(self):
        return self._data

    @data.setter
    def data(self, number):
        if self._parents != ():
            raise RuntimeError(f"only a value you made can be set; this one is the result of '{self.op}'")
        self._data = real(number, "data")
        self._order = _tick()  # as if made now: whatever was computed from it before is out of date

    def __reduce__(self):  # a copy, or a pickle in another process with its own clock, is a new leaf
        return type(self), (self._data, self.label)

    def __repr__(self):
        return f"{type(self).__name__}(data={self._data:.6g}, grad={self.grad:.6g})"

    def backward(self, retain_graph=False):
        """Set .grad to d(self)/d(node) for every node that self depends on; leaves add it to what they have.

        Frees the graph unless retain_graph. Raises RuntimeError as sorted_graph does, before any gradient changes.
        """
        nodes = sorted_graph(self)
        for node in nodes:
            if node._parents:
                node.grad = 0.0
        self.grad += 1.0
        for node in nodes:
            gradient = node.grad
            for parent, slope in zip(node._parents, node._slopes, strict=True):
                parent.grad += gradient * slope
            if node._parents and not retain_graph:
                node._parents = node._slopes = None


def record(data, parents, slopes, op):
    """A Value: the float `data`, result of `op` on `parents` (a tuple of Values), with one slope (float) for each."""
    out = object.__new__(Value)  # skips __init__, which would check what is known to be a float
    out._data, out.grad, out._order = data, 0.0, _tick()
    out._parents, out._slopes = parents, slopes
    out.op, out.label = op, ""
    return out


class Operators(Node):
    """Arithmetic: + − * / ** and negation, with Values or plain numbers on either side."""

    __slots__ = ()

    def __add__(self, other):
        other = other if isinstance(other, Node) else Value(other)
        return record(self._data + other._data, (self, other), (1.0, 1.0), "+")

    def __sub__(self, other):
        other = other if isinstance(other, Node) else Value(other)
        return record(self._data - other._data, (self, other), (1.0, -1.0), "-")

    def __mul__(self, other):
        other = other if isinstance(other, Node) else Value(other)
        return record(self._data * other._data, (self, other), (other._data, self._data), "*")

    def __truediv__(self, other):
        other = other if isinstance(other, Node) else Value(other)
        a, b = self._data, other._data
        return record(a / b, (self, other), (1 / b, -(a / b) / b), "/")

    def __pow__(self, exponent):
        a, recorded = self._data, isinstance(exponent, Node)
        n = exponent._data if recorded else real(exponent, "the exponent")
        if a < 0 and (recorded or not n.is_integer()) or a == 0 and (recorded or n < 0):
            raise ValueError(f"{a:g} ** {n:g}: a base > 0 is needed here for the result and its slopes to exist")
        try:
            y, slope = a**n, 0.0 if n == 0 else math.inf if a == 0 and n < 1 else n * a ** (n - 1)
        except OverflowError:
            raise OverflowError(f"{a:g} ** {n:g}: the result or its slope is too large for a float") from None
        if recorded:
            return record(y, (self, exponent), (slope, y * math.log(a)), "**")
        return record(y, (self,), (slope,), f"**{n:g}")

    def __neg__(self):
        return record(-self._data, (self,), (-1.0,), "neg")

    __radd__, __rmul__ = __add__, __mul__

    def __rsub__(self, other):
        return Value(other) - self

    def __rtruediv__(self, other):
        return Value(other) / self

    def __rpow__(self, base):
        return Value(base) ** self


class Value(Operators):
    """A scalar that records the operations it goes through, so that backward() can differentiate the result."""

    __slots__ = ()

    def __lt__(self, other):
        return self._data < (other._data if isinstance(other, Node) else other)

    def __gt__(self, other):
        return self._data > (other._data if isinstance(other, Node) else other)

    def __le__(self, other):
        return self._data <= (other._data if isinstance(other, Node) else other)

    def __ge__(self, other):
        return self._data >= (other._data if isinstance(other, Node) else other)

    def exp(self):
        try:
            y = math.exp(self._data)
        except OverflowError:
            raise OverflowError(f"exp({self._data:g}) is too large for a float") from None
        return record(y, (self,), (y,), "exp")

    def log(self):
        """Natural logarithm. ValueError when the number is not positive."""
        if self._data <= 0:
            raise ValueError(f"log({self._data:g}): the argument must be positive")
        return record(math.log(self._data), (self,), (1 / self._data,), "log")

    def tanh(self):
        small = math.exp(-2 * abs(self._data))
        slope = 4 * small / (1 + small) ** 2  # 1 − y², without the loss of digits when y is near ±1
        return record(math.tanh(self._data), (self,), (slope,), "tanh")

    def sigmoid(self):
        """1 / (1 + exp(−x)), without overflow for any x."""
        small = math.exp(-abs(self._data))  # in [0, 1]: rounded to 0 for large |x|
        y = 1 / (1 + small) if self._data >= 0 else small / (1 + small)
        return record(y, (self,), (small / (1 + small) ** 2,), "sigmoid")

    def relu(self):
        """max(0, x); the slope at exactly 0 is 0, as in PyTorch."""
        if self._data <= 0:
            return record(0.0, (self,), (0.0,), "relu")
        return record(self._data, (self,), (1.0,), "relu")  # nan comes this way, and stays nan


class Neuron:
    """tanh(w · x + b) over n_in inputs, or w · x + b without `bend`. Weights are drawn with `rng`, a random.Random."""

    def __init__(self, n_in, rng, bend=True):
        self.w = [Value(rng.gauss(0, 1 / math.sqrt(n_in))) for _ in range(n_in)]
        self.b, self.bend = Value(0.0), bend

    def __call__(self, x):
        if len(x) != len(self.w):
            raise ValueError(f"this neuron takes {len(self.w)} inputs, got {len(x)}")
        z = self.b
        for w, value in zip(self.w, x):
            z = z + w * value
        return z.tanh() if self.bend else z

    def parameters(self):
        return [*self.w, self.b]


class Layer:
    """n_out neurons that read the same inputs; called with a list of numbers or Values, it returns a list of Values."""

    def __init__(self, n_in, n_out, rng, bend=True):
        self.neurons = [Neuron(n_in, rng, bend) for _ in range(n_out)]

    def __call__(self, x):
        return [neuron(x) for neuron in self.neurons]

    def parameters(self):
        return [p for neuron in self.neurons for p in neuron.parameters()]


class MLP:
    """Layers in a row, such as MLP([2, 16, 16, 1], random.Random(0)): tanh in all but the last, which is linear."""

    def __init__(self, sizes, rng):
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"sizes must name at least an input and an output width, all positive; got {sizes}")
        last = len(sizes) - 2
        self.layers = [Layer(m, n, rng, bend=i < last) for i, (m, n) in enumerate(zip(sizes, sizes[1:]))]

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x

    def parameters(self):
        return [p for layer in self.layers for p in layer.parameters()]

    def zero_grad(self):
        """Set every parameter's gradient to zero: call it before each backward()."""
        for p in self.parameters():
            p.grad = 0.0


def softplus(x):
    """ln(1 + exp(x)) of a Value, without overflow for any x."""
    small = math.exp(-abs(x.data))  # in [0, 1]: rounded to 0 for large |x|
    slope = (1.0 if x.data >= 0 else small) / (1 + small)  # the sigmoid of x
    return record(max(x.data, 0.0) + math.log1p(small), (x,), (slope,), "softplus")
