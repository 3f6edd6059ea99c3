"""What 4S 15 claims: its speed beside peft's, and what the training on tool calls brings."""

import copy
import functools
import json
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from llmscratch.kit import Race, fast_bf16, race
from llmscratch.scientist.lora import add_lora
from llmscratch.scientist.tool_calls import main, smollm2
from tests.bench import against, row


@row("4S15: a LoRA step on SmolLM2-135M, rank 8, 8 × 72 tokens; theirs: peft's", at_most=1.05)
def beside_peft() -> Race:
    model, _ = smollm2()
    theirs = get_peft_model(copy.deepcopy(model), LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    add_lora(model, 8, 16.0, generator=torch.Generator().manual_seed(0))
    tokens = torch.randint(0, 49152, (8, 72), generator=torch.Generator().manual_seed(0))

    def make_step(made):
        optimizer = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], lr=1e-4, fused=True)

        def step():
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=fast_bf16()):
                loss = made(input_ids=tokens, use_cache=False, logits_to_keep=20).logits.float().square().mean()
            loss.backward()
            optimizer.step()

        return step

    return race("a LoRA step", make_step(model), make_step(theirs), repeats=10)


@functools.cache
def trained(seed: int) -> dict:
    """The notes of the command with this seed and half of its usual steps, on one thread."""
    with tempfile.TemporaryDirectory() as folder:
        main(["--out", folder, "--seed", str(seed), "--threads", "1", "--steps", "72", "--lr", "0.002"])
        return json.loads((Path(folder) / "notes.json").read_text(encoding="utf-8"))


def share(notes: dict, split: str) -> float:
    right, of = notes["right"][split].split(" of ")
    return int(right) / int(of)


@row("4S15: processor time of 72 steps on tool calls; theirs: the goal", at_most=1)
def seconds() -> Race:
    return against([trained(seed)["cpu_seconds"] for seed in range(2)], [85.0] * 2)


@row("4S15: tool calls exactly right after 72 steps, unseen entities; theirs: the goal", at_least=1, unit="of 1")
def entities() -> Race:
    return against([share(trained(seed), "entities") for seed in range(2)], [0.95] * 2)


@row("4S15: tool calls exactly right after 72 steps, unseen phrasings; theirs: the goal", at_least=1, unit="of 1")
def phrasings() -> Race:
    return against([share(trained(seed), "phrasings") for seed in range(2)], [0.6] * 2)
