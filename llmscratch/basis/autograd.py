"""A scalar automatic-differentiation engine in pure Python, with neurons, layers and an MLP on top of it."""

# Generated from 01_common_basis/09_autograd.ipynb by `make export`: change the notebook, not this file.

import math
from itertools import count
from operator import attrgetter

__all__ = ["Layer", "MLP", "Neuron", "Node", "Operators", "Value", "draw_graph", "layout", "record", "sorted_graph"]


_tick = count().__next__  # one clock for all values: 0, 1, 2, …


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
                what = f"{parent.label or parent!r} was changed in place after '{node.op}' used it"
                raise RuntimeError(f"{what}: compute the result again before backward()")
            if parent not in seen:
                seen.add(parent)
                nodes.append(parent)
    return sorted(nodes, key=attrgetter("_order"), reverse=True)


class Node:
    """A scalar in a computation graph: its data, its gradient, and how it was computed.

    data: a float; setting it marks the node as changed. grad: the derivative, with respect to this node, of the
    value whose backward() was called; leaves add up over calls. op and label: texts for drawings and messages.
    """

    __slots__ = ("_data", "grad", "_parents", "_slopes", "_order", "op", "label")
    __array_ufunc__ = None  # NumPy numbers on the left leave the operation to us

    def __init__(self, data, label=""):
        self.data = data
        self.grad, self._parents, self._slopes, self.op, self.label = 0.0, (), (), "", label

    @property
    def data(self):
        return self._data

    @data.setter
    def data(self, number):
        try:
            self._data = float(number)
        except (TypeError, ValueError):
            raise TypeError(f"data must be a real number, not {number!r}") from None
        self._order = _tick()  # as if made now: whatever was computed from it before is out of date

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
            for parent, slope in zip(node._parents, node._slopes):
                parent.grad += gradient * slope
            if node._parents and not retain_graph:
                node._parents = node._slopes = None


def record(data, parents, slopes, op):
    """A Value: the result `data` of operation `op` on `parents`, a tuple of Values, with one local derivative each."""
    out = object.__new__(Value)
    out._data, out.grad, out._parents, out._slopes, out._order, out.op, out.label = (
        data,
        0.0,
        parents,
        slopes,
        _tick(),
        op,
        "",
    )
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
        if b == 0:
            raise ZeroDivisionError(f"{a:g} / 0: the divisor must not be zero")
        return record(a / b, (self, other), (1 / b, -a / (b * b)), "/")

    def __pow__(self, exponent):
        a, variable = self._data, isinstance(exponent, Node)
        n = exponent._data if variable else float(exponent)
        if a < 0 and (variable or not n.is_integer()) or a == 0 and (variable or n < 0):
            raise ValueError(f"{a:g} ** {n:g}: the base must be positive for the result and its slope to exist")
        slope = n * a ** (n - 1) if a or n >= 1 else (math.inf if n else 0.0)
        if variable:
            return record(a**n, (self, exponent), (slope, a**n * math.log(a)), "**")
        return record(a**n, (self,), (slope,), f"**{n:g}")

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

    def exp(self):
        y = math.exp(self._data)
        return record(y, (self,), (y,), "exp")

    def log(self):
        """Natural logarithm. ValueError when the number is not positive."""
        if self._data <= 0:
            raise ValueError(f"log({self._data:g}): the argument must be positive")
        return record(math.log(self._data), (self,), (1 / self._data,), "log")

    def tanh(self):
        y = math.tanh(self._data)
        return record(y, (self,), (1 - y * y,), "tanh")

    def sigmoid(self):
        """1 / (1 + exp(−x)), without overflow for any x."""
        small = math.exp(-abs(self._data))  # in (0, 1]
        y = 1 / (1 + small) if self._data >= 0 else small / (1 + small)
        return record(y, (self,), (small / (1 + small) ** 2,), "sigmoid")

    def relu(self):
        """max(0, x); the slope at exactly 0 is 0, as in PyTorch."""
        if self._data > 0:
            return record(self._data, (self,), (1.0,), "relu")
        return record(0.0, (self,), (0.0,), "relu")


def layout(root):
    """Places (x, y) for drawing the graph that leads to `root`: a dict from node to place, `root` at x = 0.

    A node stands one column left of its first user; inputs stand from top to bottom, others at their middle.
    """
    users, nodes = {root: []}, [root]
    for node in nodes:
        for parent in node._parents or ():
            if parent not in users:
                nodes.append(parent)
            users.setdefault(parent, []).append(node)
    column, row, leaves, stack = {}, {}, count(), [root]
    for node in sorted(nodes, key=attrgetter("_order"), reverse=True):  # users before what they use
        column[node] = min((column[u] - 1 for u in users[node]), default=0)
    while stack:
        node = stack.pop()
        inputs = dict.fromkeys(node._parents or ())
        waiting = [p for p in inputs if p not in row]
        if waiting:
            stack += [node, *reversed(waiting)]
        elif node not in row:
            row[node] = sum(row[p] for p in inputs) / len(inputs) if inputs else -next(leaves)
    return {n: (2.3 * column[n], 1.25 * row[n] - 0.3 * (len(n._parents or ()) == 1)) for n in nodes}


def draw_graph(root, ax=None):
    """Draw the graph that leads to `root`: values and gradients in boxes, slopes on arrows. Returns the axes.

    For small graphs that were not freed.
    """
    import matplotlib.pyplot as plt

    place = layout(root)
    left, low, high = (
        min(x for x, _ in place.values()),
        *(f(y for _, y in place.values()) for f in (min, max)),
    )
    if ax is None:
        _, ax = plt.subplots(figsize=(1.2 - 0.75 * left, 1.1 + 0.75 * (high - low)))
    boxes, blue = {}, "#0072B2"
    for node, (x, y) in place.items():
        text = f"{node.label or node.op or 'constant'}\n{node.data:.3g}\ngrad {node.grad:.3g}"
        style = {
            "boxstyle": "round,pad=0.3",
            "fc": "white",
            "ec": "#222222" if node.op else "#E69F00",
            "lw": 1.4,
        }
        drawn = ax.text(x, y, text, ha="center", va="center", fontsize=8, bbox=style, zorder=3)
        boxes[node] = drawn.get_bbox_patch()
    for node, (x1, y1) in place.items():
        for k, (parent, slope) in enumerate(zip(node._parents or (), node._slopes or ())):
            x0, y0 = place[parent]
            bend = 0.35 if node._parents.index(parent) < k or x1 - x0 > 2.4 else 0.0
            style = {"arrowstyle": "->", "color": blue, "lw": 1.4, "connectionstyle": f"arc3,rad={bend}"}
            style |= {"patchA": boxes[parent], "patchB": boxes[node], "shrinkA": 0, "shrinkB": 0}
            ax.annotate("", (x1, y1), (x0, y0), arrowprops=style)
            x, y = (x0 + x1) / 2 + bend / 2 * (y1 - y0), (y0 + y1) / 2 - bend / 2 * (x1 - x0)
            style = {"fc": "white", "ec": "none", "pad": 0.6}
            ax.text(x, y, f"{slope:.3g}", color=blue, fontsize=8, ha="center", va="center", bbox=style)
    ax.set(xlim=(left - 0.8, 0.8), ylim=(low - 0.7, high + 0.7), aspect="equal")
    ax.axis("off")
    return ax


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
