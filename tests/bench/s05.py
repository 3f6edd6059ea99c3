"""What 4S 05 claims: its speed beside transformers' GPT-2, and what a minute of Shakespeare brings."""

import functools
import time

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from llmscratch.basis.train import fit
from llmscratch.kit import Race, race, shakespeare
from llmscratch.scientist.gpt import GPT, GPTConfig
from tests.bench import against, row
from tests.bench.lessons import source

NOTEBOOK = "02_for_scientist/05_gpt"


SIZES = {"vocab_size": 2048, "n_layer": 4, "n_head": 4}


def step_beside(**options) -> Race:
    """A training step beside that of a GPT-2 of transformers with these options; both as the lesson makes them."""
    space = {"torch": torch, "GPT2Config": GPT2Config, "GPT2LMHeadModel": GPT2LMHeadModel, "sizes": SIZES}
    exec(source(NOTEBOOK, "make_step", "make_theirs"), space)
    theirs = space["make_theirs"](**options).train()
    ours = GPT(GPTConfig(**SIZES, context=128, d_model=128), torch.Generator().manual_seed(0))
    ids = torch.randint(0, 2048, (16, 129), generator=torch.Generator().manual_seed(0))
    return race(
        "a training step of 2,048 tokens",
        space["make_step"](ours, lambda: ours.loss(ids[:, :-1], ids[:, 1:])),
        space["make_step"](theirs, lambda: theirs(input_ids=ids[:, :-1], labels=ids[:, :-1], use_cache=False).loss),
        repeats=20,
    )


@row("4S05: a training step, context 128, 4 layers, 128 wide, batch 16; theirs: transformers' GPT-2", at_most=1)
def beside_transformers() -> Race:
    return step_beside()


@row("4S05: the same; theirs: transformers' GPT-2 with a fused GELU", at_most=1.15)
def beside_fused_gelu() -> Race:
    return step_beside(activation_function="gelu_pytorch_tanh")


@functools.cache
def bard(seed: int) -> tuple[float, float]:
    """Held-out loss (nats a character) and seconds of the lesson's training, with its own settings."""
    space = {"torch": torch, "np": np}
    exec(source(NOTEBOOK, "RandomWindows", "every_window", "optimizer_and_schedule", "loss_fn"), space)
    works = shakespeare()
    held_out = ("hamlet", "twelfth_night")
    alphabet = {character: i for i, character in enumerate(sorted(set("".join(works.values()))))}
    texts = "".join(t for name, t in works.items() if name not in held_out), "".join(works[name] for name in held_out)
    train, val = (torch.tensor([alphabet[character] for character in text]) for text in texts)
    model = GPT(GPTConfig(len(alphabet), 64, 4, 4, 128), torch.Generator().manual_seed(seed), std=0.05)
    optimizer, scheduler = space["optimizer_and_schedule"](model, lr=4e-3, steps=500)
    batches = space["RandomWindows"](train, 12, 64, 100, torch.Generator().manual_seed(seed + 1))
    start = time.perf_counter()
    history = fit(
        model, batches, optimizer=optimizer, loss_fn=space["loss_fn"], epochs=5, scheduler=scheduler, clip=1.0,
        val_batches=space["every_window"](val, 64, 64, 4), progress=False,
    )  # fmt: skip
    return history.val_loss[-1], time.perf_counter() - start


@row("4S05: held-out loss of the Shakespeare run; theirs: the goal", at_most=1, unit="nats")
def bard_loss() -> Race:
    return against([bard(seed)[0] for seed in range(3)], [2.15] * 3)


@row("4S05: time of that run; theirs: the goal", at_most=1)
def bard_seconds() -> Race:
    return against([bard(seed)[1] for seed in range(3)], [60.0] * 3)
