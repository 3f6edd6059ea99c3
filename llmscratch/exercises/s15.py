"""Exercises of 4S 15, LoRA."""

import copy
import re

import numpy as np
import torch
from torch import nn

from llmscratch.exercises.lesson import Lesson, Wrong, expect
from llmscratch.scientist.gpt import GPT, GPTConfig
from llmscratch.scientist.lora import LoRALinear, add_lora, remove_lora
from llmscratch.scientist.nf4 import NF4, dequantize, quantize

lesson = Lesson("4S15")
check, hint, solution = lesson.check, lesson.hint, lesson.solution


def _tensor(value, shape, given):
    """The tensor without its graph; Wrong when it is none, of another shape, or not finite."""
    if not isinstance(value, torch.Tensor):
        raise Wrong(f"expected a tensor for {given}, got {type(value).__name__}")
    expect(list(value.shape), list(shape), f"the shape of {given}")
    if not value.isfinite().all():
        raise Wrong(f"expected finite numbers in {given}")
    return value.detach().float()


def _near(got, want, given, within=1e-3):
    """Wrong when two matrices differ by more than a part `within` of the second."""
    off = ((got - want).norm() / want.norm().clamp_min(1e-12)).item()
    if not off <= within:
        raise Wrong(f"expected another matrix for {given}: yours differs from it by {off:.0%} of its size")


def _two(value, given):
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise Wrong(f"expected two tensors, A and B, for {given}, got {type(value).__name__}")
    return value


# 1


def _budget_models():
    yield GPT(GPTConfig(50, 16, 2, 2, 32)), r"\.\d+\.", "a GPT of 2 blocks, 32 wide, all layers in blocks"
    yield GPT(GPTConfig(70, 16, 3, 2, 48)), r"attn", "a GPT of 3 blocks, 48 wide, pattern 'attn'"
    yield GPT(GPTConfig(70, 16, 3, 2, 48)), r"h\.1\.mlp\.c_fc", "a GPT of 3 blocks, 48 wide, one layer"
    yield GPT(GPTConfig(70, 16, 3, 2, 48)), r"^\.h\.1\.", "a GPT of 3 blocks, 48 wide, one block"


def _learning(model):
    return [p.requires_grad for p in model.parameters()]


def _check_largest_rank(answer):
    for model, pattern, what in _budget_models():
        tried = copy.deepcopy(model)
        add_lora(tried, 1, pattern=pattern)
        one, learnt = 2 * sum(p.numel() for p in tried.parameters() if p.requires_grad), _learning(model)
        for budget, want in ((one, 1), (one - 1, 0), (12 * one + 5, 12), (12 * one - 1, 11), (0, 0)):
            given = f"a budget of {budget:,} bytes and {what}"
            got = answer(model, budget, pattern)
            expect(got, want, given)
            if isinstance(got, bool) or not isinstance(got, int | np.integer):
                raise Wrong(f"expected a whole number, {want}, for {given}, got {got!r}: divide with //")
        if any(isinstance(part, LoRALinear) for part in model.modules()) or _learning(model) != learnt:
            raise Wrong(f"expected the model to be as before, {what}: count, or work on a copy")


def largest_rank(model, budget, pattern=r"\.\d+\."):
    numbers = sum(
        part.in_features + part.out_features
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear) and re.search(pattern, f".{name}")
    )
    return budget // (2 * numbers)


def _four_bytes(model, budget, pattern):
    return largest_rank(model, budget // 2, pattern)


def _all_layers(model, budget, pattern):
    return largest_rank(model, budget)


def _counts_weights(model, budget, pattern):
    chosen = [p for n, p in model.named_modules() if isinstance(p, nn.Linear) and re.search(pattern, f".{n}")]
    return budget // (2 * sum(part.weight.numel() for part in chosen))


def _wraps_the_model(model, budget, pattern):
    rank = largest_rank(model, budget, pattern)
    if not any(isinstance(part, LoRALinear) for part in model.modules()):
        add_lora(model, 1, pattern=pattern)
    return rank


def _freezes_the_model(model, budget, pattern):
    add_lora(model, 1, pattern=pattern)
    remove_lora(model)
    return largest_rank(model, budget, pattern)


def _without_the_dot(model, budget, pattern):
    chosen = [p for n, p in model.named_modules() if isinstance(p, nn.Linear) and re.search(pattern, n)]
    return budget // (2 * max(sum(part.in_features + part.out_features for part in chosen), 1))


lesson.add(
    1, 1, "A rank for a budget", check=_check_largest_rank,
    hints=["A layer's A and B have rank · (in + out) numbers, of 2 bytes each.",
           "Add in_features + out_features over the chosen layers, as add_lora chooses them; then one //."],
    solution=largest_rank,
    wrong={
        _four_bytes: "expected 1 for a budget", _all_layers: "pattern 'attn'", _counts_weights: "a budget of",
        _wraps_the_model: "as before", _freezes_the_model: "as before", _without_the_dot: "one block",
    },
)  # fmt: skip


# 2


def _matrices():
    draw = torch.Generator().manual_seed(0)
    for out, into, rank in ((20, 30, 4), (30, 20, 1), (16, 16, 16)):
        old = torch.randn(out, into, generator=draw)
        yield old, old + 0.1 * torch.randn(out, into, generator=draw), rank


def _check_extract(answer):
    for old, new, rank in _matrices():
        given = f"two matrices {tuple(old.shape)} and rank {rank}"
        A, B = _two(answer(old.clone(), new.clone(), rank), given)
        A, B = _tensor(A, (rank, old.shape[1]), f"A for {given}"), _tensor(B, (old.shape[0], rank), f"B for {given}")
        u, s, vh = torch.linalg.svd(new - old, full_matrices=False)
        _near(B @ A, u[:, :rank] * s[:rank] @ vh[:rank], f"B @ A, {given}")


def extract(old, new, rank):
    u, s, vh = torch.linalg.svd(new - old, full_matrices=False)
    return vh[:rank], u[:, :rank] * s[:rank]


def _without_values(old, new, rank):
    u, _, vh = torch.linalg.svd(new - old, full_matrices=False)
    return vh[:rank], u[:, :rank]


def _of_the_new(old, new, rank):
    return extract(torch.zeros_like(old), new, rank)


def _smallest(old, new, rank):
    u, s, vh = torch.linalg.svd(new - old, full_matrices=False)
    return vh[-rank:], u[:, -rank:] * s[-rank:]


def _swapped(old, new, rank):
    return extract(old, new, rank)[::-1]


lesson.add(
    2, 2, "Out of a finished model", check=_check_extract,
    hints=["torch.linalg.svd(new - old, full_matrices=False) gives u, s and vh with new − old = u · diag(s) · vh.",
           "A is the first `rank` rows of vh; B the first `rank` columns of u, each times its singular value."],
    solution=extract,
    wrong={
        _without_values: "another matrix", _of_the_new: "another matrix", _smallest: "another matrix",
        _swapped: "the shape of A",
    },
)  # fmt: skip


# 3


def _two_adapters():
    draw = torch.Generator().manual_seed(1)
    base = nn.Linear(24, 18)
    for (r1, a1), (r2, a2), w1, w2 in (((4, 8.0), (4, 8.0), 1.0, 1.0), ((2, 16.0), (5, 4.0), 0.5, -1.0)):
        first, second = LoRALinear(base, r1, a1, generator=draw), LoRALinear(base, r2, a2, generator=draw)
        for layer in (first, second):
            nn.init.normal_(layer.B, generator=draw)
        yield first, second, w1, w2


def _check_combine(answer):
    for first, second, w1, w2 in _two_adapters():
        given = (
            f"ranks {first.rank} and {second.rank}, alphas {first.alpha:g} and {second.alpha:g}, weights {w1:g}, {w2:g}"
        )
        kept = [p.detach().clone() for layer in (first, second) for p in (layer.A, layer.B)]
        want = (w1 * first.update() + w2 * second.update()).detach()
        A, B = _two(answer(first, second, w1, w2), given)
        if not all(map(torch.equal, kept, (p for layer in (first, second) for p in (layer.A, layer.B)))):
            raise Wrong(f"expected the two adapters to be as before, {given}")
        rank = first.rank + second.rank
        A, B = _tensor(A, (rank, 24), f"A for {given}"), _tensor(B, (18, rank), f"B for {given}")
        _near(B @ A, want, f"B @ A, {given}")


def combine(first, second, w1=1.0, w2=1.0):
    A = torch.cat([first.A, second.A])
    B = torch.cat([w1 * first.scale * first.B, w2 * second.scale * second.B], dim=1)
    return A.detach(), B.detach()


def _adds_parts(first, second, w1, w2):
    if first.rank != second.rank:
        return combine(first, second, w1, w2)
    pad = torch.zeros
    A, B = w1 * first.A + w2 * second.A, first.scale * (w1 * first.B + w2 * second.B)
    return torch.cat([A, pad(first.rank, 24)]), torch.cat([B, pad(18, first.rank)], dim=1)


def _forgets_scales(first, second, w1, w2):
    return torch.cat([first.A, second.A]), torch.cat([w1 * first.B, w2 * second.B], dim=1)


def _weights_both(first, second, w1, w2):
    A = torch.cat([w1 * first.A, w2 * second.A])
    return A, torch.cat([w1 * first.scale * first.B, w2 * second.scale * second.B], dim=1)


def _scales_in_place(first, second, w1, w2):
    with torch.no_grad():
        first.B *= w1 * first.scale
    return torch.cat([first.A, second.A]), torch.cat([first.B, w2 * second.scale * second.B], dim=1)


def _one_rank(first, second, w1, w2):
    return w1 * first.A + w2 * second.A[: first.rank], first.B


lesson.add(
    3, 2, "Two adapters in one", check=_check_combine,
    hints=["(B₁ + B₂)(A₁ + A₂) has four products, and you want two of them.",
           "Put the rows of both A's below each other, and the columns of both B's beside each other: torch.cat."],
    solution=combine,
    wrong={
        _adds_parts: "another matrix", _forgets_scales: "another matrix", _weights_both: "another matrix",
        _one_rank: "the shape of A", _scales_in_place: "as before",
    },
)  # fmt: skip


# 4


def _check_mend(answer):
    draw = torch.Generator().manual_seed(2)
    for out, into, rank in ((64, 48, 8), (64, 64, 16)):
        weight = torch.randn(out, into, generator=draw)
        plain = (weight - dequantize(quantize(weight))).norm()
        for steps in (1, 2, 3):
            given = f"a matrix {tuple(weight.shape)}, rank {rank}, steps {steps}"
            result = answer(weight.clone(), rank, steps)
            if not isinstance(result, tuple) or len(result) != 3 or not isinstance(result[0], NF4):
                raise Wrong(f"expected (an NF4, A, B) for {given}")
            packed, A, B = result
            A, B = _tensor(A, (rank, into), f"A for {given}"), _tensor(B, (out, rank), f"B for {given}")
            left = (weight - dequantize(packed) - B @ A).norm() / plain
            packed, A, B = mend(weight, rank, steps)
            want = (weight - dequantize(packed) - B @ A).norm() / plain
            if not abs(left - want) < 0.015:
                raise Wrong(f"expected {want:.2f} of plain NF4's error to be left for {given}, got {left:.2f} of it")


def mend(weight, rank, steps=5):
    A, B = torch.zeros(rank, weight.shape[1]), torch.zeros(weight.shape[0], rank)
    for _ in range(steps):
        packed = quantize(weight - B @ A)
        u, s, vh = torch.linalg.svd(weight - dequantize(packed), full_matrices=False)
        A, B = vh[:rank], u[:, :rank] * s[:rank]
    return packed, A, B


def _same_rounding(weight, rank, steps):
    return mend(weight, rank, 1)


def _one_too_many(weight, rank, steps):
    return mend(weight, rank, steps + 1)


def _of_the_weight(weight, rank, steps):
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    return quantize(weight), vh[:rank], u[:, :rank] * s[:rank]


def _no_mending(weight, rank, steps):
    return quantize(weight), torch.zeros(rank, weight.shape[1]), torch.zeros(weight.shape[0], rank)


def _keeps_float(weight, rank, steps):
    return weight, torch.zeros(rank, weight.shape[1]), torch.zeros(weight.shape[0], rank)


lesson.add(
    4, 3, "Mend the rounding", check=_check_mend,
    hints=["One step: round W − BA to NF4, then take the best BA of rank `rank` for what the rounding left, W − NF4.",
           "Start with BA = 0. The best BA is the first terms of the SVD, as in exercise 2. Repeat `steps` times."],
    solution=mend,
    wrong={
        _same_rounding: "steps 2", _of_the_weight: "of plain NF4's error", _no_mending: "to be left",
        _one_too_many: "steps 1",
        _keeps_float: "expected (an NF4, A, B)",
    },
)  # fmt: skip
