"""Exercises of 4S 03, attention."""

from unittest import mock

import numpy as np
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from llmscratch.exercises.lesson import Lesson, Wrong, expect
from llmscratch.scientist.attention import MultiHeadAttention, attention

lesson = Lesson("4S03")
check, hint, solution = lesson.check, lesson.hint, lesson.solution


def _expect(got, want, given, **tolerance):
    """As `expect`, for a tensor that may still want a gradient."""
    if not isinstance(got, torch.Tensor):
        expect(got, want.numpy(), given)  # nothing, or something that is not even an array
        raise Wrong(f"expected a tensor for {given}, got {type(got).__name__}")
    if got.dtype != want.dtype:
        raise Wrong(f"expected a tensor of dtype {want.dtype} for {given}, got {got.dtype}")
    expect(got.detach().numpy(), want.detach().numpy(), given, **tolerance)


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _check_window(answer):
    for n_tokens, width in [(4, 2), (5, 1), (6, 3), (3, 10)]:
        given = f"n_tokens = {n_tokens}, width = {width}"
        mask = answer(n_tokens, width)
        want = torch.tensor([[t - width < s <= t for s in range(n_tokens)] for t in range(n_tokens)])
        if isinstance(mask, torch.Tensor) and mask.dtype == torch.bool and mask.shape == want.shape:
            for t, s in (mask != want).nonzero().tolist():
                may = "to see" if want[t, s] else "not to see"
                raise Wrong(f"expected token {t} {may} token {s} for {given}, got {mask[t, s].item()}")
        _expect(mask, want, given)


def sliding_window(n_tokens, width):
    distance = torch.arange(n_tokens)[:, None] - torch.arange(n_tokens)  # (T, T): t − s
    return (distance >= 0) & (distance < width)


lesson.add(
    1, 1, "A sliding window", check=_check_window,
    hints=["torch.arange(T)[:, None] - torch.arange(T) is the table of distances t − s.",
           "Allowed are the distances 0, 1, …, width − 1: two comparisons, joined by &."],
    solution=sliding_window,
    wrong={
        (lambda n, w: torch.ones(n, n, dtype=torch.bool).tril().triu(-w)): "token 2 not to see token 0",
        (lambda n, w: torch.ones(n, n, dtype=torch.bool).triu(1 - w)): "token 0 not to see token 1",
        (lambda n, w: torch.ones(n, n).tril().triu(1 - w)): "torch.bool",
        (lambda n, w: torch.ones(n, n, dtype=torch.bool).triu().tril(w - 1)): "token 0 not to see token 1",
    },
)  # fmt: skip


def _alibi(q, k, v, *, first=1, sign=-1.0, scale=1.0, causal=True, step=None):
    H, T, d = q.shape[1:]
    slopes = 2.0 ** -((step or 8 / H) * torch.arange(first, H + first, dtype=torch.float64))
    distance = torch.arange(T)[:, None] - torch.arange(T)
    scores = q @ k.mT / d**0.5 + sign * scale * slopes[:, None, None] * distance
    if causal:
        scores = scores.masked_fill(distance < 0, -torch.inf)
    return scores.softmax(dim=-1) @ v


def _check_alibi(answer):
    for H in (1, 4, 8, 3):  # with 3 heads the slopes are no powers of two
        q, k, v = (_random(2, H, 6, 3, seed=seed) for seed in range(3))
        given = f"random q, k, v of shape (2, {H}, 6, 3)"
        got, want = answer(q, k, v), _alibi(q, k, v)
        comparable = isinstance(got, torch.Tensor) and got.shape == want.shape and got.dtype == want.dtype
        if comparable and not torch.allclose(got[:, :, 0], v[:, :, 0]):
            raise Wrong(f"expected place 0 to see only itself for {given}: its output must be its own value")
        _expect(got, want, given, atol=1e-6)  # slopes computed in float32 are good enough


def alibi_attention(q, k, v):
    H, T, d = q.shape[1:]
    slopes = 2.0 ** (-8 * torch.arange(1, H + 1) / H)  # (H,)
    distance = torch.arange(T)[:, None] - torch.arange(T)  # (T, T): t − s
    scores = q @ k.mT / d**0.5 - slopes[:, None, None] * distance  # (B, H, T, T)
    return scores.masked_fill(distance < 0, -torch.inf).softmax(dim=-1) @ v


lesson.add(
    2, 2, "Places as a penalty", check=_check_alibi,
    hints=["The slopes are (H,), the distances (T, T): slopes[:, None, None] * distance is (H, T, T).",
           "Only the dot products are divided by √d, the penalty is not. Then the causal mask, then softmax.",
           "Heads count from 1: with H = 8 the slopes are 1/2, 1/4, …, 1/256."],
    solution=alibi_attention,
    wrong={
        (lambda q, k, v: _alibi(q, k, v, sign=1.0)): "shape (2, 1, 6, 3)",
        (lambda q, k, v: _alibi(q, k, v, first=0)): "shape (2, 1, 6, 3)",
        (lambda q, k, v: _alibi(q, k, v, scale=q.shape[-1] ** -0.5)): "shape (2, 1, 6, 3)",
        (lambda q, k, v: _alibi(q, k, v, causal=False)): "place 0 to see only itself",
        (lambda q, k, v: attention(q, k, v, causal=True)[0]): "shape (2, 1, 6, 3)",
        (lambda q, k, v: _alibi(q, k, v, step=8 // q.shape[1])): "shape (2, 3, 6, 3)",
        (lambda q, k, v: _alibi(q, k, v).float()): "dtype torch.float64",
    },
)  # fmt: skip


def _cross(layer, x, memory, memory_keep, *, order=(0, 1, 2), values_from=None):
    parts = [layer.qkv.weight.chunk(3)[i] for i in order], [layer.qkv.bias.chunk(3)[i] for i in order]
    sources = (x, memory, memory if values_from is None else values_from)
    q, k, v = (
        (source @ w.T + b).unflatten(-1, (layer.n_head, -1)).transpose(1, 2)
        for source, w, b in zip(sources, *parts, strict=True)
    )
    out, _ = attention(q, k, v, mask=memory_keep[:, None, None, :])
    return layer.proj(out.transpose(1, 2).flatten(2))


def _check_cross(answer):
    torch_state = torch.random.get_rng_state()  # the layers' first weights must not disturb the reader's
    torch.manual_seed(0)
    layer = MultiHeadAttention(12, 3).double()
    theirs = nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64)
    torch.random.set_rng_state(torch_state)
    with torch.no_grad():
        layer.qkv.bias.copy_(_random(36, seed=7))
        names = [("in_proj_weight", "qkv.weight"), ("in_proj_bias", "qkv.bias")]
        names += [("out_proj.weight", "proj.weight"), ("out_proj.bias", "proj.bias")]
        theirs.load_state_dict({name: layer.state_dict()[ours] for name, ours in names})
        x, memory = _random(2, 4, 12, seed=1), _random(2, 7, 12, seed=2)
        for lengths in ((7, 7), (7, 3)):
            keep = torch.arange(7) < torch.tensor(lengths)[:, None]
            given = f"x (2, 4, 12) and memory (2, 7, 12), of which {lengths[0]} and {lengths[1]} places are no padding"
            want, _ = theirs(x, memory, memory, key_padding_mask=~keep)
            _expect(answer(layer, x, memory, keep), want, given)


def cross_attention(layer, x, memory, memory_keep):
    C = x.shape[-1]
    q = x @ layer.qkv.weight[:C].T + layer.qkv.bias[:C]  # (B, T, C)
    k, v = (memory @ layer.qkv.weight[C:].T + layer.qkv.bias[C:]).chunk(2, dim=-1)  # (B, S, C) each
    q, k, v = (t.unflatten(-1, (layer.n_head, -1)).transpose(1, 2) for t in (q, k, v))  # (B, H, T or S, d)
    out, _ = attention(q, k, v, mask=memory_keep[:, None, None, :])
    return layer.proj(out.transpose(1, 2).flatten(2))


lesson.add(
    3, 2, "Reading another text", check=_check_cross,
    hints=["The first C rows of layer.qkv.weight make queries, the next C keys, the last C values; so for the bias.",
           "t.unflatten(-1, (n_head, -1)).transpose(1, 2) turns (B, T, C) into (B, H, T, d).",
           "memory_keep[:, None, None, :] fits (B, H, T, S). Do not forget layer.proj at the end."],
    solution=cross_attention,
    wrong={
        (lambda layer, x, memory, keep: _cross(layer, x, memory, torch.ones_like(keep))): "7 and 3 places",
        (lambda layer, x, memory, keep: _cross(layer, x, memory, keep, order=(1, 0, 2))): "7 and 7 places",
        (lambda layer, x, memory, keep: _cross(layer, memory, x, keep[:, :4])): "expected shape (2, 4, 12)",
        (lambda layer, x, memory, keep: layer(x)): "7 and 7 places",
    },
)  # fmt: skip


class _Watch(TorchDispatchMode):
    """Raises Wrong when an operation makes scores of more than one block of keys, or leaves PyTorch.

    A tensor with d or d + 1 entries in a row is rows of q, k or v (padded, or with a 1); all others count as scores.
    """

    def __init__(self, T, S, d, block):
        super().__init__()
        self.T, self.S, self.d, self.block, self.alive = T, S, d, block, {}
        self.given = f"q ({T}, {d}), k ({S}, {d}), block = {block}"

    def refuse(self, what):
        raise Wrong(f"expected no operation to see more than one block of keys for {self.given}, but {what}")

    def leaves(self, *args, **kwargs):
        raise Wrong(f"expected operations of PyTorch only for {self.given}, but a tensor became an array of NumPy")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "scaled_dot_product" in str(function):
            self.refuse(f"{function} does all at once")
        out = function(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else [out]:
            if isinstance(t, torch.Tensor) and t.is_floating_point() and self.too_large(t):
                self.refuse(f"{function} made a tensor of shape {tuple(t.shape)}")
            if isinstance(t, torch.Tensor) and t.numel() > self.T and not {self.d, self.d + 1} & set(t.shape):
                storage = StorageWeakRef(t.untyped_storage())
                self.alive[storage.cdata] = storage, t.numel()
        self.alive = {data: kept for data, kept in self.alive.items() if not kept[0].expired()}
        if sum(numel for _, numel in self.alive.values()) > 8 * self.T * self.block:
            self.refuse("several blocks of scores are kept at once")
        return out

    def too_large(self, t):
        sides = [n for n in t.shape if n > 1]
        if t.numel() >= self.T * self.S:
            return True
        if self.d in sides or self.d + 1 in sides:
            return False
        if t.numel() > self.T * (max(self.block, self.d) + 1) or self.S in sides:
            return True
        return len(sides) == 1 and sides[0] > self.block and sides[0] != self.T


def _check_blockwise(answer):
    T, S, d = 37, 41, 7
    q, k, v = _random(T, d, seed=1), _random(S, d, seed=2), _random(S, d, seed=3)
    rising = torch.arange(S, dtype=torch.float64)[:, None] / S  # later keys score higher: every block rescales
    cases = [(q, k, "random q, k, v"), (q.abs(), k + 3 * rising, "scores that rise from block to block")]
    cases += [(40 * q, 40 * k, "scores in the thousands")]
    for queries, keys, kind in cases:
        want, _ = attention(queries, keys, v)
        for block in (8, 41, 1, 100):
            given = f"{kind}, T = {T}, S = {S}, d = {d}, block = {block}"
            _expect(answer(queries.clone(), keys.clone(), v.clone(), block), want, given, atol=1e-8)
    watch, k, v = _Watch(T, 200, d, block=9), _random(200, d, seed=2), _random(200, d, seed=3)
    with mock.patch.multiple(torch.Tensor, numpy=watch.leaves, __array__=watch.leaves), watch:
        answer(q, k, v, watch.block)


def blockwise_attention(q, k, v, block):
    largest = q.new_full((len(q), 1), -torch.inf)  # m
    total = q.new_zeros(len(q), 1)  # Σ exp(s − m)
    mixed = q.new_zeros(len(q), v.shape[1])  # Σ exp(s − m) v
    for start in range(0, len(k), block):
        scores = q @ k[start : start + block].T / q.shape[1] ** 0.5  # (T, block)
        new = torch.maximum(largest, scores.amax(dim=1, keepdim=True))
        rescale, weights = (largest - new).exp(), (scores - new).exp()
        total = total * rescale + weights.sum(dim=1, keepdim=True)
        mixed = mixed * rescale + weights @ v[start : start + block]
        largest = new
    return mixed / total


def _without_maximum(q, k, v, block):
    total, mixed = 0.0, 0.0
    for start in range(0, len(k), block):
        weights = (q @ k[start : start + block].T / q.shape[1] ** 0.5).exp()
        total = total + weights.sum(dim=1, keepdim=True)
        mixed = mixed + weights @ v[start : start + block]
    return mixed / total


def _without_rescaling(q, k, v, block):
    largest, total, mixed = q.new_full((len(q), 1), -torch.inf), 0.0, 0.0
    for start in range(0, len(k), block):
        scores = q @ k[start : start + block].T / q.shape[1] ** 0.5
        largest = torch.maximum(largest, scores.amax(dim=1, keepdim=True))
        weights = (scores - largest).exp()
        total = total + weights.sum(dim=1, keepdim=True)
        mixed = mixed + weights @ v[start : start + block]
    return mixed / total


def _loses_the_rest(q, k, v, block):
    n = max(len(k) // block, 1) * block
    return blockwise_attention(q, k[:n], v[:n], block)


def _two_passes(q, k, v, block):
    scores = [q @ keys.T / q.shape[1] ** 0.5 for keys in k.split(block)]
    largest = torch.stack([part.amax(dim=1) for part in scores]).amax(dim=0)[:, None]
    weights = [(part - largest).exp() for part in scores]
    mixed = sum(part @ values for part, values in zip(weights, v.split(block), strict=True))
    return mixed / sum(part.sum(dim=1, keepdim=True) for part in weights)


def _column_by_column(q, k, v, block):
    return torch.stack([((k @ row[:, None] / len(row) ** 0.5).softmax(dim=0) * v).sum(dim=0) for row in q])


def _in_numpy(q, k, v, block):
    scores = q.numpy() @ k.numpy().T / q.shape[1] ** 0.5
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return torch.from_numpy(weights / weights.sum(axis=1, keepdims=True) @ v.numpy())


lesson.add(
    4, 3, "Softmax without seeing the row", check=_check_blockwise,
    hints=["Start with m = −∞ (T, 1), and zeros for both sums. Slicing takes care of a shorter last block.",
           "In each block: new = maximum(m, the block's row maximum); multiply both sums by exp(m − new), then add.",
           "At the end, divide the sum of weighted values by the sum of weights."],
    solution=blockwise_attention,
    wrong={
        _without_maximum: "scores in the thousands",
        _without_rescaling: "block = 8",
        _loses_the_rest: "block = 8",
        (lambda q, k, v, block: attention(q, k, v)[0]): "expected no operation to see more than one block",
        (lambda q, k, v, block: torch.cat([attention(row[None], k, v)[0] for row in q])): "more than one block",
        (lambda q, k, v, block: blockwise_attention(q, k, v, 20)): "made a tensor of shape (37, 20)",
        _column_by_column: "made a tensor of shape (200, 1)",
        _two_passes: "several blocks of scores are kept",
        (lambda q, k, v, block: F.scaled_dot_product_attention(q, k, v)): "more than one block",
        (lambda q, k, v, block: F.scaled_dot_product_attention(q[None, None], k[None, None], v[None, None])[0, 0]): (
            "more than one block"
        ),
        _in_numpy: "operations of PyTorch only",
    },
)  # fmt: skip
