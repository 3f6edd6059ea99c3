"""Exercises of CB 10, tensor autograd."""

import numpy as np

from llmscratch.basis.tensor import Tensor, cross_entropy, record
from llmscratch.exercises.lesson import Lesson, Wrong, expect

lesson = Lesson("CB10")
check, hint, solution = lesson.check, lesson.hint, lesson.solution


def _tensor(result, given):
    if not isinstance(result, Tensor):
        raise Wrong(f"expected a Tensor for {given}, got {type(result).__name__}")
    return result


def _leaf(array):
    return Tensor(np.asarray(array), requires_grad=True)


def _gradient(leaf, given):
    if leaf.grad is None:
        raise Wrong(f"expected a gradient of {given}, got none: the result does not depend on it for the engine")
    return leaf.grad


def _check_clip(answer):
    numbers = np.array([-2.0, -1.0, -0.5, 0.0, 0.7, 1.5, 3.0])
    given = f"x = {numbers.tolist()}, low = -1, high = 1.5"
    x = _leaf(numbers)
    y = _tensor(answer(x, -1, 1.5), given)
    expect(y.data, np.clip(numbers, -1, 1.5), given)
    (y * 3.0).backward(np.ones(7))
    expect(_gradient(x, "x"), [0, 3, 3, 3, 3, 3, 0], f"the gradient of 3 clip(x) at {given}")
    x = _leaf(np.float32([[0.5, 9.0]]))
    y = answer(x, 0.0, 1.0)
    if y.dtype != np.float32:
        raise Wrong(f"expected float32 for x = [[0.5, 9]] in float32, got {y.dtype}")
    y.backward(np.float32([[2, 2]]))
    if x.grad.dtype != np.float32:
        raise Wrong(f"expected a gradient in float32 for x in float32, got {x.grad.dtype}")
    expect(x.grad, [[2, 0]], "the gradient at x = [[0.5, 9]], low = 0, high = 1, when [[2, 2]] arrives")
    x = _leaf([5.0, 0.5])
    (answer(x, 0, 1) + x).backward(np.ones(2))  # + hands the same array to both
    expect(x.grad, [1, 2], "the gradient of clip(x, 0, 1) + x at [5, 0.5] (a vjp must not write into what it gets)")


def clip(x, low, high):
    inside = (x.data >= low) & (x.data <= high)  # captured by the vjp: an array, not a Tensor
    return record(np.clip(x.data, float(low), float(high)), (x,), (lambda g: g * inside,), "clip")


def _writing_clip(x, low, high):
    def vjp(g):
        g[(x.data < low) | (x.data > high)] = 0
        return g

    return record(np.clip(x.data, low, high), (x,), (vjp,), "clip")


def _strict_clip(x, low, high):
    return record(np.clip(x.data, low, high), (x,), (lambda g: g * ((x.data > low) & (x.data < high)),), "clip")


def _passing_clip(x, low, high):
    return record(np.clip(x.data, low, high), (x,), (lambda g: g,), "clip")


def _upcasting_clip(x, low, high):
    inside = np.where((x.data >= low) & (x.data <= high), 1.0, 0.0)  # float64
    return record(np.clip(x.data, low, high), (x,), (lambda g: g * inside,), "clip")


lesson.add(
    1, 1, "Clip", check=_check_clip,
    hints=["np.clip(x.data, low, high) is the result. The vjp multiplies by 1 where x was inside, and by 0 elsewhere.",
           "An array of booleans times float32 stays float32; an array of 1.0 and 0.0 that NumPy made is float64."],
    solution=clip,
    wrong={
        _strict_clip: "the gradient of 3 clip(x)",
        _passing_clip: "the gradient of 3 clip(x)",
        _upcasting_clip: "dtypes float64 and float32 differ",
        _writing_clip: "clip(x, 0, 1) + x",
        (lambda x, low, high: Tensor(np.clip(x.data, low, high))): "depends on nothing that requires a gradient",
    },
)  # fmt: skip


def _check_rms_norm(answer):
    rng = np.random.default_rng(0)
    for shape, eps in [((4,), 1e-5), ((2, 3), 1e-5), ((2,), 0.5), ((2, 3, 5), 0.5)]:
        numbers, scale, g = rng.normal(size=shape), rng.normal(size=shape[-1]), rng.normal(size=shape)
        given = f"x of shape {shape}, eps = {eps:g}"
        x, weight = _leaf(numbers), _leaf(scale)
        y = _tensor(answer(x, weight, eps), given)
        root = np.sqrt((numbers**2).mean(-1, keepdims=True) + eps)
        expect(y.data, numbers / root * scale, given)
        y.backward(g)
        d = g * scale
        inner = (d * numbers).mean(-1, keepdims=True)
        expect(_gradient(x, "x"), d / root - numbers * inner / root**3, f"the gradient of x for {given}")
        summed = (g * numbers / root).reshape(-1, shape[-1]).sum(0)
        expect(_gradient(weight, "weight"), summed, f"the gradient of weight for {given}")
    y = answer(_leaf([[1e-3, 2e-3]]), _leaf([1.0, 1.0]))
    expect(y.data, np.array([[1e-3, 2e-3]]) / np.sqrt(2.5e-6 + 1e-5), "x = [[0.001, 0.002]], eps not given")
    y = answer(_leaf(np.float32([[3.0, 4.0]])), _leaf(np.float32([1.0, 1.0])))
    if y.dtype != np.float32:
        raise Wrong(f"expected float32 for x and weight in float32, got {y.dtype}")


def rms_norm(x, weight, eps=1e-5):
    return x * ((x * x).mean(axis=-1, keepdims=True) + eps) ** -0.5 * weight


def _constant_root(x, weight, eps=1e-5):
    root = np.sqrt((x.data**2).mean(axis=-1, keepdims=True) + eps)  # an array: its gradient is lost
    return x / root * weight


def _layer_norm(x, weight, eps=1e-5):
    return rms_norm(x - x.mean(axis=-1, keepdims=True), weight, eps)


def _over_everything(x, weight, eps=1e-5):
    return x * ((x * x).mean() + eps) ** -0.5 * weight


lesson.add(
    2, 2, "RMSNorm", check=_check_rms_norm,
    hints=["Look at LayerNorm.__call__ and leave out the centring and the bias.",
           "Everything that depends on x must be computed with Tensors; with x.data the gradient is lost there."],
    solution=rms_norm,
    wrong={
        _constant_root: "the gradient of x",
        _layer_norm: "expected",
        _over_everything: "x of shape (2, 3)",
        (lambda x, weight, eps=1e-5: rms_norm(x, weight)): "x of shape (2,), eps = 0.5",
        (lambda x, weight, eps=1e-3: rms_norm(x, weight, eps)): "eps not given",
        (lambda x, weight, eps=1e-5: x * (x * x).mean(axis=-1, keepdims=True) ** -0.5 * weight): "eps = 1e-05",
    },
)  # fmt: skip


def _check_concatenate(answer):
    rng = np.random.default_rng(1)
    cases = [([(2, 3), (1, 3), (4, 3)], 0), ([(2, 1), (2, 3)], 1), ([(2, 3, 1), (2, 3, 2)], -1), ([(5,)], 0)]
    for shapes, axis in cases:
        given = f"shapes {shapes}, axis = {axis}"
        arrays = [rng.normal(size=shape) for shape in shapes]
        leaves = [_leaf(a) for a in arrays]
        y = _tensor(answer(leaves, axis), given)
        whole = np.concatenate(arrays, axis)
        expect(y.data, whole, given)
        if len(y._parents) != len(leaves) or any(p is not q for p, q in zip(y._parents, leaves, strict=True)):
            raise Wrong(f"expected one operation whose parents are the tensors themselves for {given}")
        g = rng.normal(size=whole.shape)
        borders = np.cumsum([a.shape[axis] for a in arrays])[:-1]
        for i, (vjp, part) in enumerate(zip(y._vjps, np.split(g, borders, axis), strict=True)):
            expect(vjp(g), part, f"the gradient of tensor {i} for {given} (has each vjp its own i?)")
    x = _leaf([1.0, 2.0])
    answer([x, x]).backward(np.array([1.0, 2.0, 10.0, 20.0]))
    expect(x.grad, [11, 22], "the gradient of x for concatenate([x, x]), when [1, 2, 10, 20] arrives")
    y = answer([_leaf(np.float32([1])), _leaf(np.float32([2]))])
    if y.dtype != np.float32 or y._vjps[0](np.float32([1, 2])).dtype != np.float32:
        raise Wrong(f"expected float32 for tensors in float32, forwards and backwards, got {y.dtype}")


def concatenate(tensors, axis=0):
    borders = np.cumsum([t.shape[axis] for t in tensors])[:-1]
    # i=i binds the loop variable: each function keeps its own
    vjps = tuple(lambda g, i=i: np.split(g, borders, axis)[i] for i in range(len(tensors)))
    return record(np.concatenate([t.data for t in tensors], axis), tuple(tensors), vjps, "concatenate")


def _last_one(tensors, axis=0):
    borders = np.cumsum([t.shape[axis] for t in tensors])[:-1]
    vjps = tuple([lambda g: np.split(g, borders, axis)[i] for i in range(len(tensors))])  # noqa: B023
    return record(np.concatenate([t.data for t in tensors], axis), tuple(tensors), vjps, "concatenate")


def _always_axis_0(tensors, axis=0):
    borders = np.cumsum([t.shape[0] for t in tensors])[:-1]
    vjps = tuple(lambda g, i=i: np.split(g, borders, 0)[i] for i in range(len(tensors)))
    return record(np.concatenate([t.data for t in tensors], axis), tuple(tensors), vjps, "concatenate")


def _upcasting_concatenate(tensors, axis=0):
    borders = np.cumsum([t.shape[axis] for t in tensors])[:-1]
    vjps = tuple(lambda g, i=i: np.split(g, borders, axis)[i].astype(float) for i in range(len(tensors)))
    return record(np.concatenate([t.data for t in tensors], axis), tuple(tensors), vjps, "concatenate")


def _two_by_two(tensors, axis=0):
    if len(tensors) == 1:
        return tensors[0] * 1
    return concatenate([_two_by_two(tensors[:-1], axis), tensors[-1]], axis)


lesson.add(
    3, 2, "Concatenate", check=_check_concatenate,
    hints=["np.concatenate joins; np.split(g, borders, axis) cuts at the places where one tensor ended.",
           "The borders are running sums of the lengths along axis: np.cumsum, without the last.",
           "Bind the loop variable: lambda g, i=i: …"],
    solution=concatenate,
    wrong={
        _last_one: "the gradient of tensor 0",
        _always_axis_0: "the gradient of tensor 0",
        _two_by_two: "expected one operation",
        _upcasting_concatenate: "expected float32",
        (lambda tensors, axis=0: Tensor(np.concatenate([t.data for t in tensors], axis))): "expected one operation",
    },
)  # fmt: skip


def _innocent():
    rng = np.random.default_rng(2)
    n = rng.normal
    ids = np.array([2, 0, 2, 2])
    return {
        "a * b, shapes (3, 4) and (4,)": (lambda a, b: a * b, n(size=(3, 4)), n(size=4)),
        "a @ b, shapes (2, 3) and (3, 4)": (lambda a, b: a @ b, n(size=(2, 3)), n(size=(3, 4))),
        "log_softmax": (lambda a: a.log_softmax(), n(size=(2, 5))),
        "rows picked repeatedly": (lambda a: a[ids], n(size=(3, 2))),
        "cross-entropy": (lambda a: cross_entropy(a, np.array([0, 2])), n(size=(2, 3))),
        "100000 * tanh(a)": (lambda a: a.tanh() * 1e5, n(size=4)),
        "0.00001 * a * a * a": (lambda a: a * a * a * 1e-5, n(size=4)),
        "the sum of a softmax, whose slopes are 0": (lambda a: a.log_softmax().exp().sum(-1), n(size=(2, 3))),
        "a product with a third input that is not used": (lambda a, b, c: a * b, n(size=2), n(size=2), n(size=2)),
    }


def _broken():
    rng = np.random.default_rng(3)
    n = rng.normal
    ids = np.array([1, 0, 1, 1])

    def forgets_the_sum(a, b):  # the gradient of b has the shape of the result, cut to fit
        return record(a.data + b.data, (a, b), (lambda g: g, lambda g: g[0]), "+")

    def assigns(a):
        def vjp(g):
            scattered = np.zeros_like(a.data)
            scattered[ids] = g
            return scattered

        return record(a.data[ids], (a,), (vjp,), "index")

    def not_transposed(a, b):
        return record(a.data @ b.data, (a, b), (lambda g: g @ b.data, lambda g: a.data.T @ g), "@")

    def ignores_the_gradient(a):
        return record(a.data**2, (a,), (lambda g: 2 * a.data,), "square")

    def loses_the_cross_terms(a):
        y = a.log_softmax().data
        return record(y, (a,), (lambda g: g * (1 - np.exp(y)),), "log_softmax")

    def small_and_wrong(a):
        return record(a.data * 1e-5, (a,), (lambda g: g * 1.1e-5,), "scaled")

    def second_input_only(a, b):
        return record(a.data * b.data, (a, b), (lambda g: g * b.data, lambda g: g * b.data), "*")

    def wrong_sign(a):
        return record(3 * a.data, (a,), (lambda g: -3 * g,), "three times")

    def reversed_order(a, b):  # the right numbers in the wrong places
        return record(a.data * b.data, (a, b), (lambda g: (g * b.data)[::-1], lambda g: (g * a.data)[::-1]), "*")

    def too_small(a):
        return record(a.data * 1, (a,), (lambda g: g - np.abs(g),), "copy")

    def too_large(a):
        return record(a.data * 1, (a,), (lambda g: g + np.abs(g),), "copy")

    def raises(a):
        return record(a.data * 1, (a,), (lambda g: g[len(a.data)],), "copy")

    def cut(a, b):  # the gradient of b is lost
        return a * b.data

    def wrong_where_small(a):
        w = np.array([100.0, 1, 1, 1])
        return record(a.data * w, (a,), (lambda g: g * np.array([100.0, 1.1, 1.1, 1.1]),), "scaled")

    def wrong_shape(a):
        return record(a.data.sum(axis=0), (a,), (lambda g: np.tile(g, 3),), "sum")

    return {
        "a sum over the stretched axis that was forgotten": (forgets_the_sum, n(size=(3, 4)), n(size=4)),
        "an index whose gradient is assigned, not added": (assigns, n(size=(3, 2))),
        "a product of square matrices without its transpose": (not_transposed, n(size=(3, 3)), n(size=(3, 3))),
        "a square whose vjp ignores the gradient that arrives": (ignores_the_gradient, n(size=4)),
        "a log-softmax whose vjp sees only the diagonal of the Jacobian": (loses_the_cross_terms, n(size=(2, 3))),
        "a * 0.00001 whose gradient is 10% too large": (small_and_wrong, n(size=4)),
        "a product that is wrong for its second input only": (second_input_only, n(size=3), n(size=3)),
        "a sum whose vjp returns the wrong shape": (wrong_shape, n(size=(3, 4))),
        "3 * a whose gradient has the wrong sign": (wrong_sign, n(size=4)),
        "a product whose gradients are in reverse order": (reversed_order, n(size=4), n(size=4)),
        "a copy whose gradient is never too large": (too_small, n(size=4)),
        "a copy whose gradient is never too small": (too_large, n(size=4)),
        "an operation whose vjp raises an IndexError": (raises, n(size=4)),
        "a product that loses the gradient of its second input": (cut, n(size=3), n(size=3)),
        "a scaling that is wrong only where its slopes are small": (wrong_where_small, n(size=4)),
    }


def _check_detective(answer):
    for name, (f, *arrays) in _innocent().items():
        before = [a.copy() for a in arrays]
        if (got := answer(f, *arrays)) not in (True, False):
            raise Wrong(f"expected True or False for {name}, got {got!r}")
        if not got:
            raise Wrong(f"expected True for {name}, whose gradient is right, got False")
        if any((a != b).any() for a, b in zip(arrays, before, strict=True)):
            raise Wrong(f"expected the arrays to be left as they are for {name}, but yours changed them")
    for name, (f, *arrays) in _broken().items():
        try:
            got = answer(f, *arrays)
        except Exception as error:
            raise Wrong(f"expected False for {name}, got {type(error).__name__}: {error}") from None
        if got:
            raise Wrong(f"expected False for {name}, got True")


def gradient_is_right(f, *arrays):
    leaves = [Tensor(a, requires_grad=True) for a in arrays]
    y = f(*leaves)
    g = np.asarray(np.random.default_rng(0).normal(size=y.shape))  # random: ones would let some wrong vjps pass
    try:
        y.backward(g)
    except Exception:
        return False
    rounding = 1e-15 * np.abs(y.data * g).sum() / 1e-6  # what a difference of two sums may be off by
    for k, (array, leaf) in enumerate(zip(arrays, leaves, strict=True)):
        slopes = np.zeros_like(array)
        for i in np.ndindex(array.shape):
            ends = []
            for nudge in (1e-6, -1e-6):
                nudged = array.copy()
                nudged[i] += nudge
                ends.append((f(*[Tensor(nudged if j == k else a) for j, a in enumerate(arrays)]).data * g).sum())
            slopes[i] = (ends[0] - ends[1]) / 2e-6
        grad = np.zeros_like(array) if leaf.grad is None else leaf.grad
        if not np.allclose(grad, slopes, rtol=0, atol=rounding + 1e-5 * np.abs(slopes).max(initial=0)):
            return False
    return True


def _farthest(grad, slopes):
    return np.abs(grad - slopes).max()


def _at_largest(grad, slopes):
    at = np.abs(slopes).argmax()
    return abs(grad.flat[at] - slopes.flat[at])


def _detective(ones=False, first_only=False, absolute=False, in_place=False, used_only=False, compare=None):
    def wrong(f, *arrays):
        leaves = [Tensor(a, requires_grad=True) for a in arrays]
        y = f(*leaves)
        g = np.ones(y.shape) if ones else np.asarray(np.random.default_rng(0).normal(size=y.shape))
        try:
            y.backward(g)
        except Exception:
            return False
        for k, (array, leaf) in enumerate(zip(arrays, leaves, strict=True)):
            if used_only and leaf.grad is None:
                continue
            grad, slopes = np.zeros_like(array) if leaf.grad is None else leaf.grad, np.zeros_like(array)
            for i in np.ndindex(array.shape):
                kept, ends = array[i], []
                for nudge in (1e-6, -1e-6):
                    array[i] = kept + nudge
                    ends.append((f(*[Tensor(a) for a in arrays]).data * g).sum())
                array[i] = kept + 1e-7 if in_place else kept
                slopes[i] = (ends[0] - ends[1]) / 2e-6
            allowed = 1e-4 if absolute else 1e-5 * np.abs(slopes).max() + 5e-9
            if (compare or _farthest)(grad, slopes) > allowed:
                return False
            if first_only and k == 0:
                return True
        return True

    return wrong


lesson.add(
    4, 3, "The detective", check=_check_detective,
    hints=["Draw a random array g in the shape of the result, and call backward(g). The number whose slopes you "
           "compare is then (f(...).data * g).sum().",
           "For each input and each place in it: a copy with that number nudged up, one nudged down, the difference "
           "over twice the nudge.",
           "Compare the largest absolute difference with 1e-5 times the largest slope, plus a little for rounding: "
           "1e-9 times the size of the result is enough. An absolute tolerance alone lets small gradients pass.",
           "backward raises when a vjp returns what cannot be right, or fails itself: catch that. An input that was "
           "not used has no gradient at all, which is right when its slopes are 0."],
    solution=gradient_is_right,
    wrong={
        _detective(ones=True): "ignores the gradient that arrives",
        _detective(first_only=True): "forgotten",
        _detective(absolute=True): "0.00001",
        _detective(in_place=True): "left as they are",
        _detective(used_only=True): "loses the gradient",
        _detective(compare=_at_largest): "where its slopes are small",
        _detective(compare=lambda grad, slopes: abs(grad.sum() - slopes.sum())): "got True",
        _detective(compare=lambda grad, slopes: np.abs(np.sort(grad, None) - np.sort(slopes, None)).max()): "reverse",
        _detective(compare=lambda grad, slopes: np.abs(np.abs(grad) - np.abs(slopes)).max()): "wrong sign",
        _detective(compare=lambda grad, slopes: (grad - slopes).max()): "never too large",
        _detective(compare=lambda grad, slopes: (slopes - grad).max()): "never too small",
        (lambda f, *arrays: True): "forgotten",
    },
)  # fmt: skip
