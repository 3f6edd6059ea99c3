"""The Storyteller: a trained GPT on disk, and the stories that it tells."""

# Generated from 02_for_scientist/07_pretraining.ipynb by `make export`: change the notebook, not this file.

import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from llmscratch.basis.train import looking
from llmscratch.kit import asset_file
from llmscratch.scientist.gpt import GPT, GPTConfig
from llmscratch.scientist.tokenizer import storyteller as storyteller_tokenizer

__all__ = ["load_model", "save_model", "storyteller", "tell"]


@torch.no_grad()
def tell(model, tokenizer, n=1, *, prompt="", temperature=1.0, generator=None):
    """n stories that begin with `prompt`, as texts; each ends at <|endoftext|> or where the context is full.

    temperature: logits are divided by it; 0 takes the likeliest token. ValueError when it is below 0.
    """
    if temperature < 0:
        raise ValueError(f"temperature must be at least 0, got {temperature}")
    (end,) = tokenizer.encode("<|endoftext|>", allowed_special={"<|endoftext|>"})
    told, going = [[end, *tokenizer.encode(prompt)] for _ in range(n)], list(range(n))
    with looking(model):
        while going and len(told[going[0]]) <= model.config.context:
            tokens = torch.tensor([told[i] for i in going], device=next(model.parameters()).device)
            logits = model(tokens)[:, -1].float().cpu()
            if temperature == 0:
                new = logits.argmax(-1)
            else:
                new = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]
            for i, token in zip(going, new.tolist()):
                told[i].append(token)
            going = [i for i in going if told[i][-1] != end]
    return [tokenizer.decode(ids[1:-1] if ids[-1] == end else ids[1:]) for ids in told]


def save_model(path, model, notes):
    """Write a model's weights and its sizes, with `notes` (a dict for JSON), into one safetensors file, or nothing."""
    about = {"config": json.dumps(asdict(model.config)), "notes": json.dumps(notes)}
    weights = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    temporary = Path(f"{path}.tmp")
    try:
        save_file(weights, temporary, metadata=about)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_model(path):
    """(model, notes) of a file that save_model wrote. ValueError when it is damaged or something else."""
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or damaged: {error}") from None
    if "config" not in about:
        raise ValueError(f"{path} holds no model of this course: its header has no config")
    model = GPT(GPTConfig(**json.loads(about["config"])))
    model.load_state_dict(weights)
    return model.eval(), json.loads(about["notes"])


def storyteller():
    """(model, tokenizer): the Storyteller that the course ships."""
    return load_model(asset_file("checkpoints/storyteller.safetensors"))[0], storyteller_tokenizer()
