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
def learnt(seed: int) -> dict[str, float]:
    """The two-layer model after 600 steps, by the lesson's own code: percent right, as it is and operated on.

    Which head of layer 1 does how much is chance and differs between seeds; what the layer looks at does not.
    """
    space = {"torch": torch, "nn": nn, "F": F, "math": math, "copy": copy, "MultiHeadAttention": MultiHeadAttention}
    space |= {"T": 48, "V": 24}
    names = "recall", "recall_batch", "AttentionOnly", "fit", "share_right", "blindfold", "places_back", "cut_out"
    exec(source(NOTEBOOK, *names), space)
    tokens, space["test_answers"], _ = space["recall"](128, torch.Generator().manual_seed(99))
    space["asked"] = space["test_answers"] >= 0
    torch.manual_seed(seed)
    model = space["AttentionOnly"](2)
    start = time.perf_counter()
    space["fit"](model, space["recall_batch"], 600)
    found = {"seconds": time.perf_counter() - start}
    with torch.no_grad():
        logits = {"right": model(tokens), "cut": space["cut_out"](model, 1, 0, 1)(tokens)}
        logits |= {f"blind {n}": space["blindfold"](model, tokens, 0, space["places_back"](n)) for n in (1, 2)}
    return found | {name: 100 * space["share_right"](values) for name, values in logits.items()}


@row("4S03: right answers of two layers of attention, three seeds; theirs: the goal", at_least=1, unit="%")
def induction_accuracy() -> Race:
    return against([learnt(seed)["right"] for seed in SEEDS], [95.0 for _ in SEEDS])


@row("4S03: right answers with layer 1 blind for one place back; theirs: the goal", at_most=1, unit="%")
def blind_for_one_place_back() -> Race:
    return against([learnt(seed)["blind 1"] for seed in SEEDS], [15.0 for _ in SEEDS])


@row("4S03: right answers with layer 1 blind for two places back; theirs: the goal", at_least=1, unit="%")
def blind_for_two_places_back() -> Race:
    return against([learnt(seed)["blind 2"] for seed in SEEDS], [95.0 for _ in SEEDS])


@row("4S03: right answers without both heads of layer 2; theirs: the goal", at_most=1, unit="%")
def without_induction_heads() -> Race:
    return against([learnt(seed)["cut"] for seed in SEEDS], [25.0 for _ in SEEDS])


@row("4S03: time of that training; theirs: the goal", at_most=1)
def induction_seconds() -> Race:
    return against([learnt(seed)["seconds"] for seed in SEEDS], [45.0 for _ in SEEDS])
