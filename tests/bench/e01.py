"""What 4E 01 claims: its loop beside transformers' generate, the cost of a grammar, and what it lets through."""

import functools
import json
import time

import torch

from llmscratch.engineer.generate import Reader, generate, score
from llmscratch.engineer.grammar import Grammar, json_pattern, token_trie
from llmscratch.kit import Race, race
from llmscratch.scientist.llama import load
from tests.bench import against, row
from tests.bench.lessons import source

NOTEBOOK = "03_for_engineer/01_talking_to_llms"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 20},
        "year": {"type": "integer", "minimum": 1, "maximum": 999},
        "tags": {"type": "array", "items": {"enum": ["a", "Öl", None, 3]}, "maxItems": 2}, "ok": {"type": "boolean"},
    },
}  # fmt: skip


@functools.cache
def smollm2():
    return load()


@functools.cache
def in_transformers():
    """SmolLM2 in transformers' class, as the lesson puts it there."""
    from transformers import LlamaConfig, LlamaForCausalLM

    space = {"torch": torch, "TheirConfig": LlamaConfig, "LlamaForCausalLM": LlamaForCausalLM}
    exec(source(NOTEBOOK, "in_transformers"), space)
    return space["in_transformers"](smollm2()[0])


@row("4E01: 32 greedy tokens of SmolLM2; theirs: transformers' generate", at_most=1.1)
def greedy() -> Race:
    (model, tokenizer), theirs = smollm2(), in_transformers()
    ids = tokenizer.encode("I went to the market and bought")
    return race(
        "32 greedy tokens",
        lambda: generate(model, tokenizer, ids, max_tokens=32),
        lambda: theirs.generate(torch.tensor([ids]), max_new_tokens=32, do_sample=False),
        repeats=5,
    )


def inside():
    """A grammar, the pattern and the state inside a string."""
    tokenizer, pattern = smollm2()[1], json_pattern(SCHEMA)
    grammar = Grammar(pattern, tokenizer)
    state = grammar.start
    for token in tokenizer.encode('{"name": "M'):
        state = grammar.step(state, token)
    for byte in b'{"name": "M':
        pattern = pattern.after(byte)
    return grammar, pattern, state


@row(
    "4E01: the mask of a new state inside a string, 49,135 tokens; theirs: each token walked alone",
    at_most=0.05,
)
def mask() -> Race:
    grammar, pattern, state = inside()
    tokens = token_trie(smollm2()[1])[0]

    def fresh():
        grammar._need.clear()
        return grammar.need(state)

    def alone():
        need = torch.full((smollm2()[1].n_vocab,), torch.inf)
        for i, data in tokens.items():
            after = pattern
            for byte in data:
                after = after.after(byte)
            need[i] = after.shortest
        return need

    return race("a new state's mask", fresh, alone, repeats=5)


@row("4E01: a mask in a new state; theirs: SmolLM2's pass for one token", at_most=0.25)
def mask_beside_the_model() -> Race:
    (model, tokenizer), (grammar, _, state) = smollm2(), inside()
    read = Reader(model)
    read(torch.tensor([tokenizer.encode("Once upon a time there was a")]))

    def fresh():
        grammar._need.clear()
        return grammar.allowed(state, 50)

    return race("a mask beside a pass", fresh, lambda: read(torch.tensor([[253]])), repeats=10)


@row(
    "4E01: invalid JSON texts of 1,000 by a model of pure noise; theirs: the limit, less than one",
    at_most=0,
    unit="texts",
)
def invalid() -> Race:
    tokenizer = smollm2()[1]
    grammar, wrong = Grammar(json_pattern(SCHEMA), tokenizer), 0
    for seed in range(1000):
        draw, state, ids = torch.Generator().manual_seed(seed), grammar.start, []
        while not grammar.finished(state):
            allowed = grammar.allowed(state, 80 - len(ids)).nonzero()[:, 0]
            ids.append(allowed[torch.randint(len(allowed), (1,), generator=draw)].item())
            state = grammar.step(state, ids[-1])
        value = json.loads(tokenizer.decode(ids))
        right = (
            list(value) == list(SCHEMA["properties"]) and 1 <= len(value["name"]) <= 20 and 1 <= value["year"] <= 999
        )
        wrong += not (right and len(value["tags"]) <= 2 and isinstance(value["ok"], bool))
    return against([wrong, wrong], [1, 1])


@row("4E01: tokens scored a second; theirs: tokens generated a second", at_least=4, unit="tokens/s")
def scoring() -> Race:
    model, tokenizer = smollm2()
    text = " small town nestled between two mountains in the heart of a valley"
    n, rates = 40, ([], [])
    for _ in range(3):
        start = time.perf_counter()
        score(model, tokenizer, ["Once upon a time there was a"] * n, [text] * n)
        rates[0].append(n * len(tokenizer.encode(text)) / (time.perf_counter() - start))
        start = time.perf_counter()
        generate(model, tokenizer, "Once upon a time there was a", max_tokens=20)
        rates[1].append(20 / (time.perf_counter() - start))
    return against(*rates)
