"""Exercises of CB 11, PyTorch's tensors and autograd."""

import copy
import math
import random
from itertools import product

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from llmscratch.exercises.lesson import Lesson, Wrong, expect

lesson = Lesson("CB11")
check, hint, solution = lesson.check, lesson.hint, lesson.solution


def _tensor(result, given):
    if not isinstance(result, torch.Tensor):
        raise Wrong(f"expected a tensor for {given}, got {type(result).__name__}")
    return result


def _equal(result, want, given):
    """Raise Wrong unless `result` is a tensor with the numbers and the dtype of the tensor `want`."""
    expect(_tensor(result, given).detach().numpy(), want.detach().numpy(), given)
    if result.dtype != want.dtype:
        raise Wrong(f"expected {want.dtype} for {given}, got {result.dtype}")


def _saved(compute):
    """What compute() returns, and the saved tensors (data_ptr → bytes) of the graph that it records."""
    saved = {}

    def pack(tensor):
        saved[tensor.data_ptr()] = tensor.nbytes
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        return compute(), saved


def _check_windows(answer):
    whole = torch.arange(40.0)
    for x, name in ((whole[:10], "x = 0, 1, …, 9"), (whole[3:30:3], "x = torch.arange(40.)[3:30:3]")):
        for size, step in ((4, 1), (3, 2), (9, 1), (2, 5)):
            given = f"{name}, size {size}, step {step}"
            want = torch.stack([x[i : i + size] for i in range(0, len(x) - size + 1, step)])
            got = answer(x, size, step)
            _equal(got, want, given)
            if got.untyped_storage().data_ptr() != x.untyped_storage().data_ptr():
                raise Wrong(f"expected a view of x for {given}, got a copy")


def windows(x, size, step):
    n, s = (len(x) - size) // step + 1, x.stride(0)
    return x.as_strided((n, size), (step * s, s), x.storage_offset())


def _windows_stacked(x, size, step):
    return torch.stack([x[i : i + size] for i in range(0, len(x) - size + 1, step)])


def _windows_stride_one(x, size, step):
    return x.as_strided(((len(x) - size) // step + 1, size), (step, 1))


def _windows_one_short(x, size, step):
    s = x.stride(0)
    return x.as_strided(((len(x) - size) // step, size), (step * s, s))


lesson.add(
    1, 1, "Windows at no cost", check=_check_windows,
    hints=["The last window starts at the largest multiple of step that is at most len(x) - size.",
           "A step of 1 in x is x.stride(0) boxes. as_strided starts at x's own offset unless you say otherwise."],
    solution=windows,
    wrong={
        _windows_stacked: "got a copy", _windows_stride_one: "[3:30:3]", _windows_one_short: "expected shape (7, 4)",
    },
)  # fmt: skip


def _check_scores(answer):
    generator = torch.Generator().manual_seed(0)
    for B, G, R, T, S, D in ((1, 1, 1, 2, 2, 4), (2, 3, 2, 4, 5, 8), (2, 2, 3, 3, 3, 5)):
        q = torch.randn(B, G, R, T, D, generator=generator, dtype=torch.float64, requires_grad=True)
        k = torch.randn(B, G, S, D, generator=generator, dtype=torch.float64, requires_grad=True)
        given = f"q of shape {tuple(q.shape)}, k of shape {tuple(k.shape)}"
        got = answer(q, k)
        want = (q @ k[:, :, None].mT) / math.sqrt(D)
        _equal(got, want, given)
        if not got.requires_grad:
            raise Wrong(f"expected scores that a gradient can pass for {given}, got some without a graph")
        v = torch.randn(want.shape, generator=generator, dtype=torch.float64)
        mine = torch.autograd.grad(got, (q, k), v, allow_unused=True)
        for name, gradient, right in zip("qk", mine, torch.autograd.grad(want, (q, k), v), strict=True):
            if gradient is None:
                raise Wrong(f"expected a gradient to reach {name} for {given}, got none")
            _equal(gradient, right, f"the gradient of {name} at {given}")


def grouped_scores(q, k):
    return torch.einsum("bgrtd,bgsd->bgrts", q, k) / q.shape[-1] ** 0.5


lesson.add(
    2, 1, "The scores of grouped attention", check=_check_scores,
    hints=["Name the axes of q by five letters; k shares three of them.",
           "The letter that both have and the result has not is summed over. Do not forget the square root of D."],
    solution=grouped_scores,
    wrong={
        (lambda q, k: torch.einsum("bgrtd,bgsd->bgrts", q, k)): "expected",
        (lambda q, k: torch.einsum("bgrtd,bgsd->bgrst", q, k) / q.shape[-1] ** 0.5): "q of shape",
        (lambda q, k: torch.einsum("bgrtd,bgsd->bgrts", q, k) / q.shape[-1]): "expected",
        (lambda q, k: (torch.einsum("bgrtd,bgsd->bgrts", q, k) / q.shape[-1] ** 0.5).detach()): "without a graph",
        (lambda q, k: torch.einsum("bgrtd,bgsd->bgrts", q.detach(), k) / q.shape[-1] ** 0.5): "to reach q",
        (lambda q, k: torch.einsum("bgrtd,bgsd->bgrts", q, k.detach()) / q.shape[-1] ** 0.5): "to reach k",
    },
)  # fmt: skip


def _check_quantise(answer):
    cases = (  # numbers, what they become, and whether the gradient passes
        (0.1, [0.0, 0.04, 0.26, -0.31, 12.7, 12.74, 20.0, -50.0], [0.0, 0.0, 0.3, -0.3, 12.7, 12.7, 12.7, -12.7],
         [1, 1, 1, 1, 1, 1, 0, 0]),
        # In steps of 1/8, exact in binary: 128, -128, and the halves ±127.5, which round to ±128; then just inside.
        (0.125, [16.0, -16.0, 15.9375, -15.9375, 15.9296875, -15.9296875], [15.875, -15.875] * 3, [0, 0, 0, 0, 1, 1]),
        (2.0, [1.0, -3.0, 5.0], [0.0, -4.0, 4.0], [1, 1, 1]),  # torch.round takes halves to the even side
    )  # fmt: skip
    for kind in (torch.float64, torch.float32):
        for scale, numbers, rounded, passes in cases:
            w = torch.tensor(numbers, dtype=kind, requires_grad=True)
            given = f"w = {numbers} ({kind}), scale = {scale}"
            got = answer(w, scale)
            if w.tolist() != torch.tensor(numbers, dtype=kind).tolist():
                raise Wrong(f"expected w to be left as it was for {given}, got {w.tolist()}")
            _equal(got, torch.tensor(rounded, dtype=kind), given)
            if not got.requires_grad:
                raise Wrong(f"expected a result that a gradient can pass for {given}, got one without a graph")
            answer(-3 * w.detach()[:2], scale)  # a second call must not disturb the backward pass of the first
            weights = torch.arange(1.0, len(numbers) + 1, dtype=kind)
            incoming = weights.clone()
            got.backward(incoming)
            if not torch.equal(incoming, weights):
                raise Wrong("expected the incoming gradient to be left as it was; others may read it, too")
            if w.grad is None:
                raise Wrong(f"expected a gradient to reach w for {given}, got none")
            _equal(w.grad, weights * torch.tensor(passes, dtype=kind), f"the gradient of Σ i·quantise(w)ᵢ at {given}")


def quantise(w, scale):
    class Quantise(torch.autograd.Function):
        @staticmethod
        def forward(ctx, w):
            steps = torch.round(w / scale)
            ctx.save_for_backward(steps.abs() <= 127)
            return scale * steps.clamp(-127, 127)

        @staticmethod
        def backward(ctx, gradient):
            (inside,) = ctx.saved_tensors
            return gradient * inside

    return Quantise.apply(w)


def _no_estimator(w, scale):
    return scale * torch.round(w / scale).clamp(-127, 127)


def _all_through(w, scale):
    return w + (scale * torch.round(w / scale).clamp(-127, 127) - w).detach()


def _unit_gradient(w, scale):
    class Quantise(torch.autograd.Function):
        @staticmethod
        def forward(ctx, w):
            return scale * torch.round(w / scale).clamp(-127, 127)

        @staticmethod
        def backward(ctx, gradient):
            return torch.ones_like(gradient)

    return Quantise.apply(w)


def _range_of_int8(w, scale):
    inside = (torch.round(w / scale) <= 127) & (torch.round(w / scale) >= -128)
    w = torch.where(inside, w, w.detach())
    return w + (scale * torch.round(w / scale).clamp(-127, 127) - w).detach()


def _clamped_at_the_half(w, scale):
    w = w.clamp(-127.5 * scale, 127.5 * scale)
    return w + (scale * torch.round(w / scale).clamp(-127, 127) - w).detach()


def _writes_into_w(w, scale):
    class Quantise(torch.autograd.Function):
        @staticmethod
        def forward(ctx, w):
            steps = w.div_(scale).round_()
            ctx.save_for_backward(steps.abs() <= 127)
            return scale * steps.clamp(-127, 127)

        @staticmethod
        def backward(ctx, gradient):
            return gradient * ctx.saved_tensors[0]

    return Quantise.apply(w)


class _MaskOnTheClass(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w, scale):
        steps = torch.round(w / scale)
        _MaskOnTheClass.inside = steps.abs() <= 127
        return scale * steps.clamp(-127, 127)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * _MaskOnTheClass.inside, None


def _writes_into_the_gradient(w, scale):
    class Quantise(torch.autograd.Function):
        @staticmethod
        def forward(ctx, w):
            steps = torch.round(w / scale)
            ctx.save_for_backward(steps.abs() > 127)
            return scale * steps.clamp(-127, 127)

        @staticmethod
        def backward(ctx, gradient):
            gradient[ctx.saved_tensors[0]] = 0
            return gradient

    return Quantise.apply(w)


def _always_float64(w, scale):
    return quantise(w.double(), scale)


lesson.add(
    3, 2, "A gradient for rounding", check=_check_quantise,
    hints=["forward computes torch.round(w / scale) and can put aside a mask of what the clamp leaves alone.",
           "backward returns the incoming gradient times the mask. forward may read scale from outside, or take it as "
           "a second argument; then backward must return None for it."],
    solution=quantise,
    wrong={
        _no_estimator: "the gradient of", _all_through: "the gradient of", _unit_gradient: "the gradient of",
        _range_of_int8: "scale = 0.125", _clamped_at_the_half: "scale = 0.125",
        _always_float64: "expected torch.float32", _writes_into_w: "expected w to be left as it was",
        _MaskOnTheClass.apply: "stopped with RuntimeError", _writes_into_the_gradient: "incoming gradient",
    },
)  # fmt: skip


class _Probe(torch.nn.Module):
    """A model with a part of its own mode, two levels down, that notes in which mode it is asked."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([[1.0, -0.5, 0.25], [0.5, 1.0, -1.0]]))
        self.part = torch.nn.Sequential(torch.nn.Dropout())
        self.trained = False

    def forward(self, x):
        self.trained |= any(module.training for module in self.modules())
        return self.part(x) @ self.weight


def _check_evaluate(answer):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(10, 2, generator=generator), torch.arange(10) % 3
    names = {True: "training", False: "evaluation"}
    for modes, outer in product(((True, True), (False, False), (True, False)), (True, False)):
        model = _Probe().train(modes[0])
        model.part[0].train(modes[1])
        given = f"10 examples in batches of 4, 4 and 2, the model in {names[modes[0]]} mode"
        given += f" and its part in {names[modes[1]]} mode" * (modes[0] != modes[1])
        given += ", called under torch.no_grad()" * (not outer)
        batches = ((x[i : i + 4], y[i : i + 4]) for i in (0, 4, 8))
        with torch.set_grad_enabled(outer):
            got, saved = _saved(lambda model=model, batches=batches: answer(model, batches))
            after = torch.is_grad_enabled()
        if type(got) is not float:
            what = "a tensor" if isinstance(got, torch.Tensor) else f"{got!r} ({type(got).__name__})"
            raise Wrong(f"expected a plain float for {given}, got {what}")
        if model.trained:
            raise Wrong(f"expected the model to compute in evaluation mode for {given}; call model.eval() first")
        expect(got, F.cross_entropy(x @ model.weight.detach(), y).item(), given, rtol=1e-5)
        if saved:
            raise Wrong(f"expected nothing to be recorded for {given}, but a graph put tensors aside")
        if (model.training, model.part.training, model.part[0].training) != (modes[0], modes[0], modes[1]):
            raise Wrong(f"expected every module to be left in the mode in which it came, for {given}")
        if after != outer:
            raise Wrong("expected recording to be as before; use torch.no_grad() by `with` or as a decorator")
        if not model.weight.requires_grad:
            raise Wrong("expected the parameters to require a gradient afterwards, as before")


@torch.no_grad()
def evaluate(model, batches):
    modes, total, count = {module: module.training for module in model.modules()}, 0.0, 0
    model.eval()
    for x, y in batches:
        total += F.cross_entropy(model(x), y, reduction="sum").item()
        count += len(y)
    for module, mode in modes.items():
        module.training = mode
    return total / count


def _still_records(model, batches):
    return evaluate.__wrapped__(model, batches)


@torch.no_grad()
def _one_mode_for_all(model, batches):
    mode = model.training
    result = evaluate(model, batches)
    model.train(mode)
    return result


def _recording_left_off(model, batches):
    torch.set_grad_enabled(False)
    return evaluate(model, batches)


def _recording_switched_on(model, batches):
    torch.set_grad_enabled(False)
    result = evaluate(model, batches)
    torch.set_grad_enabled(True)
    return result


def _a_copy_that_records(model, batches):
    return evaluate.__wrapped__(copy.deepcopy(model), batches)


def _freezes_the_weights(model, batches):
    return evaluate.__wrapped__(model.requires_grad_(False), batches)


@torch.no_grad()
def _one_level_of_modes(model, batches):
    modes = {module: module.training for module in (model, *model.children())}
    result = evaluate(model.eval(), batches)
    for module, mode in modes.items():
        module.training = mode
    return result


@torch.no_grad()
def _mean_of_means(model, batches):
    mode = model.training
    model.eval()
    losses = [F.cross_entropy(model(x), y).item() for x, y in batches]
    model.train(mode)
    return sum(losses) / len(losses)


@torch.no_grad()
def _always_trains_after(model, batches):
    model.eval()
    total = count = 0
    for x, y in batches:
        total += F.cross_entropy(model(x), y).item() * len(y)
        count += len(y)
    model.train()
    return total / count


@torch.no_grad()
def _still_a_tensor(model, batches):
    sums = [(F.cross_entropy(model(x), y, reduction="sum"), len(y)) for x, y in batches]
    return sum(s for s, _ in sums) / sum(n for _, n in sums)


lesson.add(
    4, 2, "Mend the leak", check=_check_evaluate,
    hints=["Add up sums over examples (reduction=\"sum\") and count the examples; divide at the end.",
           "Each of model.modules() has its mode in .training; note them before eval(), and set them again at the end. "
           ".item() makes a float.",
           "Wrap it all in `with torch.no_grad():`, or put @torch.no_grad() above the function."],
    solution=evaluate,
    wrong={
        _still_records: "nothing to be recorded", _mean_of_means: "batches of 4, 4 and 2",
        _always_trains_after: "the mode in which it came", _still_a_tensor: "got a tensor",
        _one_mode_for_all: "its part in evaluation mode", _recording_left_off: "recording to be as before",
        _recording_switched_on: "recording to be as before", _a_copy_that_records: "nothing to be recorded",
        _freezes_the_weights: "require a gradient afterwards", _one_level_of_modes: "the mode in which it came",
    },
)  # fmt: skip


def _has_tensor(value):
    """Whether value is a tensor, or a list, tuple or dict with one in it."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return isinstance(value, torch.Tensor) or any(_has_tensor(part) for part in inside)


def _check_swish(answer):
    points = torch.tensor([-1000.0, -1, -0.5, 0, 0.3, 2, 1000], dtype=torch.float64, requires_grad=True)
    given = f"x = {points.tolist()}"
    got = answer(points)
    _equal(got, F.silu(points), given)
    if got.requires_grad:
        (slope,) = torch.autograd.grad(got.sum(), points)
        _equal(slope, torch.autograd.grad(F.silu(points).sum(), points)[0], f"the slope at {given}")
    x = torch.linspace(-2, 2, 500, requires_grad=True) * 1.0
    y, saved = _saved(lambda: answer(x))
    if saved and x.data_ptr() not in saved and sum(saved.values()) == x.nbytes:
        raise Wrong("expected x itself to be put aside, got a copy of it, or another tensor, of 2,000 bytes more")
    node = y.grad_fn
    python = isinstance(node, torch.autograd.function.BackwardCFunction)
    kept = [name for name, value in vars(node).items() if _has_tensor(value)] if python else []
    if kept:
        raise Wrong(f"expected tensors to be put aside by ctx.save_for_backward alone, got one in ctx.{kept[0]}")
    if saved != {x.data_ptr(): x.nbytes}:
        raise Wrong(
            f"expected only x, of 2,000 bytes, to be put aside; got {len(saved)} of {sum(saved.values()):,} bytes"
        )
    if not python:
        raise Wrong(f"expected the result of a torch.autograd.Function of your own, got one of {type(node).__name__}")
    for judge in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        try:
            judge(answer, (points,))
        except RuntimeError as error:
            text = " ".join(str(error).split())
            raise Wrong(f"expected {judge.__name__} to accept it for {given}, got: {text[:160]}") from None


def swish(x):
    class Swish(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * torch.sigmoid(x)

        @staticmethod
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            s = torch.sigmoid(x)
            return gradient * (s + x * s * (1 - s))

    return Swish.apply(x)


def _swish_recorded(x):
    return x * torch.sigmoid(x)


def _swish_of_a_copy(x):
    class Swish(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x.clone())
            return x * torch.sigmoid(x)

        @staticmethod
        def backward(ctx, gradient):
            s = torch.sigmoid(ctx.saved_tensors[0])
            return gradient * (s + ctx.saved_tensors[0] * s * (1 - s))

    return Swish.apply(x)


def _swish_on_ctx(x):
    class Swish(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            ctx.sigmoid = torch.sigmoid(x)
            return x * ctx.sigmoid

        @staticmethod
        def backward(ctx, gradient):
            return gradient * (ctx.sigmoid + ctx.saved_tensors[0] * ctx.sigmoid * (1 - ctx.sigmoid))

    return Swish.apply(x)


def _swish_half_a_product_rule(x):
    class Swish(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * torch.sigmoid(x)

        @staticmethod
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            return gradient * torch.sigmoid(x)

    return Swish.apply(x)


def _swish_overflows(x):
    return x * torch.exp(x) / (1 + torch.exp(x))


def _swish_slope_overflows(x):
    class Swish(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x / (1 + torch.exp(-x))

        @staticmethod
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            e = torch.exp(-x)
            return gradient * (1 + e + x * e) / (1 + e) ** 2

    return Swish.apply(x)


def _swish_once(x):
    class Swish(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * torch.sigmoid(x)

        @staticmethod
        def backward(ctx, gradient):
            x = ctx.saved_tensors[0].detach()  # cut off: no second derivative
            s = torch.sigmoid(x)
            return gradient * (s + x * s * (1 - s))

    return Swish.apply(x)


lesson.add(
    5, 2, "A thrifty activation", check=_check_swish,
    hints=["forward puts aside its input and nothing else; backward computes the sigmoid again.",
           "The product rule: (x σ)' = σ + x σ (1 − σ). Multiply by the incoming gradient."],
    solution=swish,
    wrong={
        _swish_recorded: "only x, of 2,000 bytes", _swish_half_a_product_rule: "the slope at",
        _swish_overflows: "x = [-1000.0", _swish_slope_overflows: "the slope at",
        _swish_once: "expected gradgradcheck to accept", F.silu: "of your own",
        _swish_of_a_copy: "got a copy of it", _swish_on_ctx: "got one in ctx.sigmoid",
    },
)  # fmt: skip


def _view_cases():
    """(tensor, new shape) pairs: a few chosen ones, then random views of random shapes."""
    x = torch.arange(24.0)
    yield x.view(2, 3, 4), (6, 4)
    yield x.view(4, 6).T, (24,)
    yield x.view(4, 6).T, (2, 3, 4)
    yield x.view(4, 6)[:, :3], (2, 2, 3)
    yield x.view(4, 6)[:, :3], (12,)
    yield x.view(2, 3, 4).transpose(0, 1), (3, 2, 2, 2)
    yield x.view(2, 1, 12)[:, :, ::2], (2, 1, 6)
    yield x[:1].expand(6), (2, 3)
    yield x[:6].view(6, 1).expand(6, 4), (6, 2, 2)
    yield x[:1].view(1, 1), ()
    yield x[:1].view(1, 1).expand(3, 4), (12,)
    yield x[:1].view(1, 1).expand(3, 4), (2, 6)
    rng = random.Random(0)
    for _ in range(400):
        sizes = [rng.choice((1, 2, 2, 3, 4)) for _ in range(rng.randint(1, 4))]
        t = torch.arange(float(math.prod(sizes))).view(sizes)
        for _ in range(rng.randint(0, 2)):
            a, b = rng.randrange(t.dim()), rng.randrange(t.dim())
            t = t.transpose(a, b)
            if rng.random() < 0.3:
                t = t.narrow(a, 0, max(1, t.shape[a] - 1))
        factors = [rng.choice((1, t.shape[0]))] if t.dim() else []
        rest = t.numel()
        new = []
        for f in [*factors, *(rng.choice((1, 2, 3, 4)) for _ in range(3))]:
            if rest % f == 0:
                new.append(f)
                rest //= f
        yield t, (*new, rest)


class _NoTorch(TorchFunctionMode):
    """Refuses every function of PyTorch, and remembers that one was asked for."""

    asked = False

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.asked = True
        raise Wrong("expected plain Python on tuples, got a call of PyTorch, which knows the answer")


def _check_view_stride(answer):
    for t, new in _view_cases():
        shape, stride = tuple(t.shape), t.stride()
        given = f"shape {shape}, stride {stride}, new shape {new}"
        try:
            want = t.view(new).stride()
        except RuntimeError:
            want = None
        with _NoTorch() as guard:
            got = answer(shape, stride, new)
        if guard.asked:
            raise Wrong("expected plain Python on tuples, got a call of PyTorch, which knows the answer")
        if want is None:
            if got is not None:
                raise Wrong(f"expected None for {given}, since .view refuses; got {got}")
            continue
        if not isinstance(got, tuple | list) or len(got) != len(new):
            raise Wrong(f"expected {len(new)} strides, as {want}, for {given}, got {got!r}")
        if any(n > 1 and a != b for n, a, b in zip(new, got, want, strict=True)):
            raise Wrong(f"expected {want} for {given}, got {tuple(got)}")


def view_stride(shape, stride, new_shape):
    groups = []  # [elements, stride of the last axis], from the first axis to the last
    for n, s in zip(shape, stride, strict=True):
        if n == 1:
            continue
        if groups and groups[-1][1] == n * s:  # the rule: stride₀ = n₁ · stride₁
            groups[-1] = [groups[-1][0] * n, s]
        else:
            groups.append([n, s])
    new_stride = []
    for n in reversed(new_shape):
        if n == 1:
            new_stride.append(1)
            continue
        left, s = groups[-1]
        if left % n:
            return None  # this axis would cross a border
        new_stride.append(s)
        groups[-1] = [left // n, s * n]
        if groups[-1][0] == 1:
            groups.pop()
    return tuple(reversed(new_stride))


def _always_contiguous(shape, stride, new_shape):
    return tuple(math.prod(new_shape[k + 1 :]) for k in range(len(new_shape)))


def _asks_torch(shape, stride, new_shape):
    try:
        return torch.empty_strided(shape, stride).view(new_shape).stride()
    except Exception:
        return None


def _only_if_contiguous(shape, stride, new_shape):
    if tuple(stride) != _always_contiguous(None, None, shape):
        return None
    return _always_contiguous(None, None, new_shape)


def _ones_are_borders(shape, stride, new_shape):
    groups = []
    for n, s in zip(shape, stride, strict=True):
        if groups and groups[-1][1] == n * s:
            groups[-1] = [groups[-1][0] * n, s]
        else:
            groups.append([n, s])
    new_stride = []
    for n in reversed(new_shape):
        left, s = groups[-1] if groups else (1, 1)
        if left % n:
            return None
        new_stride.append(s)
        if groups:
            groups[-1] = [left // n, s * n]
            if groups[-1][0] == 1:
                groups.pop()
    return tuple(reversed(new_stride))


def _stretched_are_borders(shape, stride, new_shape):
    if sum(s == 0 and n > 1 for n, s in zip(shape, stride, strict=True)) > 1:
        return None
    return view_stride(shape, stride, new_shape)


lesson.add(
    6, 3, "When is a view possible?", check=_check_view_stride,
    hints=["First pass, over the old axes: keep a list of groups, each with its number of elements and the stride of "
           "its last axis. A next axis (n, s) joins the group when the group's stride equals n · s; then the group's "
           "stride becomes s.",
           "Second pass, over the new axes from the last: the axis takes the current stride of the last group, which "
           "then has n times fewer elements and an n times larger stride. An empty group is dropped.",
           "If the group's elements are not divisible by n, the axis crosses a border: None. Skip all sizes of 1."],
    solution=view_stride,
    wrong={
        _always_contiguous: "since .view refuses", _only_if_contiguous: "expected", _ones_are_borders: "new shape",
        _asks_torch: "plain Python", _stretched_are_borders: "stride (0, 0)",
    },
)  # fmt: skip
