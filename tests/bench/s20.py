"""What 4S 20 claims: writing beside transformers' generate, loading and memory against the goals, the tokenizer."""

import functools
import subprocess
import sys

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from transformers import LlamaConfig as TheirConfig
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llmscratch.kit import Race, race, shakespeare, smollm2_file
from llmscratch.scientist.llama import KVCache, load
from tests.bench import against, row
from tests.bench.lessons import source

NOTEBOOK = "02_for_scientist/20_llama"


@functools.cache
def models():
    """Our SmolLM2, its tokenizer and transformers' model with the same weights, as the lesson makes it."""
    model, tokenizer = load()
    space = {"np": np, "torch": torch, "dequantize": dequantize, "TheirConfig": TheirConfig,
             "LlamaForCausalLM": LlamaForCausalLM, "LlamaRotaryEmbedding": LlamaRotaryEmbedding}  # fmt: skip
    exec(source(NOTEBOOK, "their_config", "their_smollm2"), space)
    return model, tokenizer, space["their_smollm2"](model.config, GGUFReader(smollm2_file()).tensors)


@functools.cache
def beside_generate(n_prompt: int, n: int) -> Race:
    model, tokenizer, theirs = models()
    space = {"torch": torch, "KVCache": KVCache}
    exec(source(NOTEBOOK, "greedy"), space)
    prompt = tokenizer.encode(shakespeare()["hamlet"][:8000])[:n_prompt]
    ids, options = torch.tensor([prompt]), {"do_sample": False, "max_new_tokens": n, "min_new_tokens": n}
    with torch.inference_mode():
        return race(
            "writing",
            lambda: space["greedy"](model, prompt, n),
            lambda: theirs.generate(ids, attention_mask=torch.ones_like(ids), **options),
            repeats=7,
        )


@row("4S20: SmolLM2 writes 24 tokens after 40; theirs: transformers' generate", at_most=1)
def writing() -> Race:
    return beside_generate(40, 24)


@row("4S20: the same after 500 tokens, which it reads first", at_most=1)
def writing_after_a_long_text() -> Race:
    return beside_generate(500, 24)


MEASURE = """
import resource, sys, time
from llmscratch.scientist.llama import load
start = time.perf_counter()
load()
unit = 1 if sys.platform == "darwin" else 1024
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
"""


FRESH = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)"


@functools.cache
def loads() -> list[tuple[float, float]]:
    """Seconds to load and peak bytes of memory, of three fresh processes.

    Linux counts the peak of the parent at exec into that of the child, so a small process stands in between.
    """
    program = [sys.executable, "-c", FRESH, MEASURE]
    done = [subprocess.run(program, capture_output=True, text=True, check=True).stdout.split() for _ in range(3)]
    return [(float(seconds), float(peak)) for seconds, peak in done]


@row("4S20: loading SmolLM2 from its GGUF; theirs: the goal, 6 s", at_most=1)
def loading() -> Race:
    return against([seconds for seconds, _ in loads()], [6.0] * 3)


@row("4S20: the most memory that takes, PyTorch included; theirs: the goal, 1.5 GB", at_most=1, unit="GB")
def memory() -> Race:
    return against([peak / 1e9 for _, peak in loads()], [1.5] * 3)


@row("4S20: reading 300,000 characters, an empty cache of pieces; theirs: tokenizers, one thread", at_most=2)
def tokenizing() -> Race:
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers import models as kinds

    from llmscratch.scientist.gguf import GGUF, ChatTokenizer

    fields, text = GGUF(smollm2_file()).fields, "\n".join(shakespeare().values())[:300_000]
    ids = {token: i for i, token in enumerate(fields["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    theirs = Tokenizer(kinds.BPE(ids, merges))
    theirs.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    ours = [ChatTokenizer(fields) for _ in range(6)]
    return race("reading", lambda: ours.pop().encode(text), lambda: theirs.encode(text), repeats=5)
