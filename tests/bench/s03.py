"""What 4S 03 claims: attention's speed beside PyTorch's layer and beside itself unfused, and the model that learns."""

import copy
import functools
import math
import time

import torch
from torch import nn
from torch.nn import functional as F

from llmscratch.kit import Race, race
from llmscratch.scientist.attention import MultiHeadAttention
from tests.bench import row
from tests.bench.cb08 import against
from tests.bench.lessons import source

NOTEBOOK = "02_for_scientist/03_attention"
SEEDS = range(3)


def layers():
    """Our layer, PyTorch's with the same weights, 8 texts of 256 tokens, and the causal mask as PyTorch wants it."""
    ours = MultiHeadAttention(128, 4)
    theirs = nn.MultiheadAttention(128, 4, batch_first=True)
    theirs.load_state_dict({
        "in_proj_weight": ours.qkv.weight, "in_proj_bias": ours.qkv.bias,
        "out_proj.weight": ours.proj.weight, "out_proj.bias": ours.proj.bias,
    })  # fmt: skip
    x = torch.randn(8, 256, 128, generator=torch.Generator().manual_seed(0))
    return ours, theirs, x, torch.ones(256, 256, dtype=torch.bool).triu(1)


@row("4S03: attention layer, forward and backward, 8 × 256 tokens; theirs: nn.MultiheadAttention", at_most=1.1)
def beside_torch() -> Race:
    ours, theirs, x, future = layers()
    return race(
        "one layer",
        lambda: ours(x).sum().backward(),
        lambda: theirs(x, x, x, attn_mask=future, need_weights=False, is_causal=True)[0].sum().backward(),
        repeats=60,
    )


@row("4S03: the same layer through the fused kernel; theirs: step by step, with weights", at_most=0.8)
def beside_explicit() -> Race:
    ours, _, x, _ = layers()
    return race(
        "one layer",
        lambda: ours(x).sum().backward(),
        lambda: ours(x, return_weights=True)[0].sum().backward(),
        repeats=60,
    )


@functools.cache
def learnt(seed: int) -> tuple[float, float]:
    """Percent of right answers of the two-layer model after 600 steps, and seconds; the lesson's own code."""
    space = {"torch": torch, "nn": nn, "F": F, "math": math, "copy": copy, "MultiHeadAttention": MultiHeadAttention}
    space |= {"T": 48, "V": 24}
    exec(source(NOTEBOOK, "recall", "recall_batch", "AttentionOnly", "fit", "share_right"), space)
    space["test_tokens"], space["test_answers"], _ = space["recall"](128, torch.Generator().manual_seed(99))
    space["asked"] = space["test_answers"] >= 0
    torch.manual_seed(seed)
    model = space["AttentionOnly"](2)
    start = time.perf_counter()
    space["fit"](model, space["recall_batch"], 600)
    seconds = time.perf_counter() - start
    with torch.no_grad():
        return 100 * space["share_right"](model(space["test_tokens"])), seconds


@row("4S03: right answers of two layers of attention, three seeds; theirs: the goal", at_least=1, unit="%")
def induction_accuracy() -> Race:
    return against([learnt(seed)[0] for seed in SEEDS], [95.0 for _ in SEEDS])


@row("4S03: time of that training; theirs: the goal", at_most=1)
def induction_seconds() -> Race:
    return against([learnt(seed)[1] for seed in SEEDS], [45.0 for _ in SEEDS])
