"""The Storyteller: a trained GPT on disk, the stories that it tells, and the bits that a story costs it."""

# Made from 02_for_scientist/07_pretraining.ipynb by `make export`: change the notebook, not this file.

import argparse
import codecs
import json
import math
import os
import zlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.nn import functional as F

from llmscratch.basis.train import looking
from llmscratch.kit import asset_file
from llmscratch.scientist.gpt import GPT, GPTConfig
from llmscratch.scientist.tokenizer import storyteller as storyteller_tokenizer

__all__ = [
    "command",
    "encode",
    "load_model",
    "nats",
    "rows",
    "save_model",
    "story_bits",
    "storyteller",
    "tell",
    "telling",
]


def encode(texts, tokenizer, context):
    """Each text as a uint16 array that begins and ends with <|endoftext|>; a longer one is cut into several.

    No array is longer than context + 1, and the next one begins with the last id of the one before.
    """
    if context < 1:
        raise ValueError(f"the context must be at least 1, got {context}")
    end, documents = tokenizer.encode("<|endoftext|>", allowed_special={"<|endoftext|>"}), []
    for text in texts:
        ids = np.array(end + tokenizer.encode(text) + end, dtype=np.uint16)
        documents += [ids[at : at + context + 1] for at in range(0, len(ids) - 1, context)]
    return documents


def rows(documents, to="cpu"):
    """(tokens, targets), both (B, T): padded to the longest; the targets of the padding are −100 and count nowhere."""
    T = max(map(len, documents)) - 1
    tokens, targets = torch.zeros(len(documents), T, dtype=torch.long), torch.full((len(documents), T), -100)
    for row, ids in enumerate(documents):
        ids = torch.from_numpy(ids.astype(np.int64))
        tokens[row, : len(ids) - 1], targets[row, : len(ids) - 1] = ids[:-1], ids[1:]
    return tokens.to(to), targets.to(to)


def nats(model, documents, bf16=False):
    """Cross-entropy of each document in nats, (B,): the sum over its tokens, given those before."""
    to = next(model.parameters()).device
    tokens, targets = rows(documents, to)
    with torch.autocast(to.type, torch.bfloat16, enabled=bf16):
        logits = model(tokens)
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view_as(targets).sum(1)


def story_bits(model, documents, batch=32, bf16=False):
    """The bits that a model needs for each document, an array: to hold against −log₂ p of its generator."""
    with looking(model):
        groups = [nats(model, documents[at : at + batch], bf16) for at in range(0, len(documents), batch)]
    return torch.cat([torch.zeros(0), *(group.cpu() for group in groups)]).double().numpy() / math.log(2)


def _read_on(model, tokens, past):
    """Logits (B, V) of what follows tokens (B, n); `past` has keys and values of those before, block by block."""
    B, n = tokens.shape
    before = past[0][0].shape[2] if past else 0
    x = model.wte(tokens) + model.wpe.weight[before : before + n]
    for i, block in enumerate(model.h):
        q, k, v = block.attn.qkv(block.ln_1(x)).view(B, n, 3, block.attn.n_head, -1).permute(2, 0, 3, 1, 4)
        if before:
            k, v = (torch.cat([old, new], dim=2) for old, new in zip(past[i], (k, v)))
        past[i] = k, v  # (B, H, before + n, d) each
        y = F.scaled_dot_product_attention(q, k, v, is_causal=not before)  # later on, n is 1 and sees everything
        x = x + block.attn.proj(y.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.ln_2(x))
    return F.linear(model.ln_f(x[:, -1]), model.wte.weight)


def _beginning(model, tokenizer, prompt, temperature):
    """(<|endoftext|>, the ids that a story begins with), checked: see `tell`."""
    if temperature < 0:
        raise ValueError(f"temperature must be at least 0, got {temperature}")
    (end,) = tokenizer.encode("<|endoftext|>", allowed_special={"<|endoftext|>"})
    ids, context = [end, *tokenizer.encode(prompt)], model.config.context
    if len(ids) > context:
        raise ValueError(f"the prompt and <|endoftext|> are {len(ids)} tokens, the context is {context}")
    return end, ids


def _draw(model, new, past, temperature, generator):
    """The next token of each row, a list: `new` has the ids (B, n) that the model has not read, see `_read_on`."""
    logits = _read_on(model, torch.tensor(new, device=model.wte.weight.device), past).float().cpu()
    if temperature == 0:
        return logits.argmax(-1).tolist()
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0].tolist()


@torch.no_grad()
def tell(model, tokenizer, n=1, *, prompt="", temperature=1.0, generator=None):
    """n stories that begin with `prompt`, as texts; each ends at <|endoftext|> or where the context is full.

    temperature: logits are divided by it; 0 takes the likeliest token. ValueError when it is below 0, or when the
    prompt leaves no room in the context.
    """
    end, ids = _beginning(model, tokenizer, prompt, temperature)
    told, going, past = [ids[:] for _ in range(n)], list(range(n)), {}
    new = told
    with looking(model):
        while going and len(told[going[0]]) <= model.config.context:
            drawn = _draw(model, new, past, temperature, generator)
            for i, token in zip(going, drawn):
                told[i].append(token)
            keep = [row for row, token in enumerate(drawn) if token != end]
            past = {i: (k[keep], v[keep]) for i, (k, v) in past.items()}
            going, new = [going[row] for row in keep], [[drawn[row]] for row in keep]
    return [tokenizer.decode(ids[1:-1] if ids[-1] == end else ids[1:]) for ids in told]


@torch.no_grad()
def telling(model, tokenizer, *, prompt="", temperature=1.0, generator=None):
    """What `tell` adds to `prompt`, yielded in pieces as it is drawn; no piece ends within a character."""
    end, new = _beginning(model, tokenizer, prompt, temperature)
    characters, past, length = codecs.getincrementaldecoder("utf-8")("replace"), {}, len(new)
    with looking(model):
        while length <= model.config.context:
            (token,) = _draw(model, [new], past, temperature, generator)
            if token == end:
                break
            yield characters.decode(tokenizer.decode_bytes([token]))
            new, length = [token], length + 1
    yield characters.decode(b"", final=True)


def save_model(path, model, notes):
    """Write a model's weights and its sizes, with `notes` (a dict for JSON), into one safetensors file, or nothing."""
    weights = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    about = {"config": json.dumps(asdict(model.config)), "notes": json.dumps(notes), "crc32": _checksum(weights)}
    temporary = Path(f"{path}.tmp")
    try:
        save_file(weights, temporary, metadata=about)
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _checksum(weights):
    """CRC-32 of the tensors' bytes, in the order of their names."""
    crc = 0
    for _, tensor in sorted(weights.items()):
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy(), crc)
    return f"{crc:08x}"


def load_model(path):
    """(model, notes) of a file that save_model wrote. ValueError when it is damaged or something else."""
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or damaged: {error}") from None
    if not {"config", "notes"} <= about.keys():
        raise ValueError(f"{path} holds no model of this course: its header has no config and notes")
    if about.get("crc32", "") != _checksum(weights):
        raise ValueError(f"{path} is damaged: its checksum is not that of its weights")
    model = GPT(GPTConfig(**json.loads(about["config"])))
    model.load_state_dict(weights)
    return model.eval(), json.loads(about["notes"])


def storyteller():
    """(model, tokenizer): the Storyteller that the course ships."""
    return load_model(asset_file("checkpoints/storyteller.safetensors"))[0], storyteller_tokenizer()


def command(argv=None):
    """What `llmscratch story` does: print a story as it is drawn. Exit status 2 for words that it does not know."""
    parser = argparse.ArgumentParser(prog="llmscratch story", description="Let the Storyteller tell a story.")
    parser.add_argument("prompt", nargs="?", default="", help="how the story begins (default: as the model likes)")
    parser.add_argument("--temperature", type=float, default=0.5, help="0: always the likeliest (default: 0.5)")
    parser.add_argument("--seed", type=int, help="the same seed, the same story (default: another one every time)")
    asked = parser.parse_args(argv)
    draw = torch.Generator()
    draw.manual_seed(draw.seed() if asked.seed is None else asked.seed)
    try:
        model, tokenizer = storyteller()
        told = telling(model, tokenizer, prompt=asked.prompt, temperature=asked.temperature, generator=draw)
        for number, piece in enumerate(told):
            print(piece if number else asked.prompt + piece, end="", flush=True)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    print()


if __name__ == "__main__" and __spec__:
    command()
