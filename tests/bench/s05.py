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


@row("4S05: a training step, context 128, 4 layers, 128 wide, batch 16; theirs: transformers' GPT-2", at_most=1)
def beside_transformers() -> Race:
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=2048, n_positions=128, n_layer=4, n_head=4, n_embd=128, bos_token_id=None, eos_token_id=None,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    ).train()  # fmt: skip
    ours = GPT(GPTConfig(2048, 128, 4, 4, 128), torch.Generator().manual_seed(0))
    ids = torch.randint(0, 2048, (16, 129), generator=torch.Generator().manual_seed(0))
    space = {"torch": torch}
    exec(source(NOTEBOOK, "make_step"), space)
    return race(
        "a training step of 2,048 tokens",
        space["make_step"](ours, lambda: ours.loss(ids[:, :-1], ids[:, 1:])),
        space["make_step"](theirs, lambda: theirs(input_ids=ids[:, :-1], labels=ids[:, :-1], use_cache=False).loss),
        repeats=20,
    )


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
    model = GPT(GPTConfig(len(alphabet), 64, 4, 4, 128), torch.Generator().manual_seed(seed))
    optimizer, scheduler = space["optimizer_and_schedule"](model, lr=4e-3, steps=600)
    batches = space["RandomWindows"](train, 12, 64, 100, torch.Generator().manual_seed(seed + 1))
    start = time.perf_counter()
    history = fit(
        model, batches, optimizer=optimizer, loss_fn=space["loss_fn"], epochs=6, scheduler=scheduler, clip=1.0,
        val_batches=space["every_window"](val, 64, 64, 4), progress=False,
    )  # fmt: skip
    return history.val_loss[-1], time.perf_counter() - start


@row("4S05: held-out loss of the Shakespeare run; theirs: the goal", at_most=1, unit="nats")
def bard_loss() -> Race:
    return against([bard(seed)[0] for seed in range(3)], [2.15] * 3)


@row("4S05: time of that run; theirs: the goal", at_most=1)
def bard_seconds() -> Race:
    return against([bard(seed)[1] for seed in range(3)], [60.0] * 3)
