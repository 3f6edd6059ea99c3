"""Exercises of 4S 20, Llama."""

from contextlib import contextmanager

import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from torch import nn

from llmscratch.exercises.lesson import Lesson, Wrong, expect
from llmscratch.scientist.llama import KVCache, Llama, LlamaConfig, rotate, rotation

lesson = Lesson("4S20")
check, hint, solution = lesson.check, lesson.hint, lesson.solution


def _check_longest(answer):
    shared = LlamaConfig(49152, 8192, n_layer=30, n_head=9, n_kv_head=3, d_model=576, d_ff=1536)
    full = LlamaConfig(100, 512, n_layer=2, n_head=4, n_kv_head=4, d_model=64, d_ff=64)
    for config, budget, users, size, want in (
        (full, 1024 * 100, 1, 4, 100), (full, 1024 * 100 - 1, 1, 4, 99), (full, 10**9, 1, 4, 512),
        (shared, 46_080 * 1000, 1, 4, 1000), (shared, 23_040 * 1000, 1, 2, 1000), (shared, 46_080 * 1000, 8, 4, 125),
        (shared, 46_079, 1, 4, 0), (shared, 46_080 * 8192 * 8, 8, 4, 8192),
    ):  # fmt: skip
        given = (
            f"a budget of {budget:,} bytes, users={users}, size={size} and n_layer, n_head, n_kv_head, d_model = "
            f"{(config.n_layer, config.n_head, config.n_kv_head, config.d_model)}, context {config.context}"
        )
        got = answer(config, budget, users, size)
        expect(got, want, given)
        if type(got) is not int:
            raise Wrong(f"expected a whole number, {want}, for {given}, got {got!r}: divide with //")


def longest(config, budget, users=1, size=4):
    token = 2 * config.n_layer * config.n_kv_head * config.d_head * size
    return min(budget // (users * token), config.context)


def _keys_only(config, budget, users=1, size=4):
    return min(longest(config, 2 * budget, users, size), config.context)


def _all_heads(config, budget, users=1, size=4):
    return min(budget // (users * 2 * config.n_layer * config.d_model * size), config.context)


def _past_the_context(config, budget, users=1, size=4):
    return budget // (users * 2 * config.n_layer * config.n_kv_head * config.d_head * size)


def _context_for_all_users(config, budget, users=1, size=4):
    return min(budget // (2 * config.n_layer * config.n_kv_head * config.d_head * size), config.context) // users


lesson.add(
    1, 1, "How long may the talk be?", check=_check_longest,
    hints=["Each token leaves a key and a value, d_head numbers each, in n_kv_head heads of n_layer blocks.",
           "Divide the budget by users · bytes a token, with //, and take the smaller of that and config.context."],
    solution=longest,
    wrong={
        _keys_only: "expected 100 for a budget", _all_heads: "expected 1000 for a budget",
        _past_the_context: "expected 512 for a budget", _context_for_all_users: "expected 8192 for a budget",
    },
)  # fmt: skip


def _raw(n, seed):
    """n random blocks of Q5_1, with scales and least values that are ordinary numbers."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (n, 24), dtype=np.uint8)
    raw[:, :4] = rng.normal(size=(n, 2)).astype(np.float16).view(np.uint8)
    return raw


def _check_q5_1(answer):
    for n, seed in ((1, 0), (1, 1), (50, 2)):
        raw = _raw(n, seed)
        want = dequantize(raw, GGMLQuantizationType.Q5_1).ravel()
        given = f"{n} random block{'s' if n > 1 else ''} (seed {seed})"
        got = answer(raw.copy())
        if not isinstance(got, np.ndarray):
            raise Wrong(f"expected an array for {given}, got {type(got).__name__}")
        if got.shape != want.shape:
            raise Wrong(f"expected shape {want.shape} for {given}, got shape {got.shape}")
        if got.dtype != np.float32:
            raise Wrong(f"expected float32 for {given}, got {got.dtype}")
        off = ~(np.abs(got - want) <= 1e-5 * (1 + np.abs(want)))  # NaN is off, too
        if off.any():
            at = int(off.argmax())
            raise Wrong(f"expected {want[at]:.4g} for weight {at % 32} of a block, {given}, got {got[at]:.4g}")


def unpack_q5_1(raw):
    scale, least = raw[:, :4].copy().view("<f2").astype(np.float32).T[..., None]  # (n, 1) each
    fifth = np.unpackbits(raw[:, 4:8], axis=1, bitorder="little")  # (n, 32)
    low = np.concatenate([raw[:, 8:] & 15, raw[:, 8:] >> 4], axis=1)
    return (scale * (low + 16 * fifth) + least).ravel()


def _without_fifth(raw):
    scale, least = raw[:, :4].copy().view("<f2").astype(np.float32).T[..., None]
    return (scale * np.concatenate([raw[:, 8:] & 15, raw[:, 8:] >> 4], axis=1) + least).ravel()


def _big_endian_bits(raw):
    scale, least = raw[:, :4].copy().view("<f2").astype(np.float32).T[..., None]
    fifth = np.unpackbits(raw[:, 4:8], axis=1)
    low = np.concatenate([raw[:, 8:] & 15, raw[:, 8:] >> 4], axis=1)
    return (scale * (low + 16 * fifth) + least).ravel()


def _neighbours(raw):
    scale, least = raw[:, :4].copy().view("<f2").astype(np.float32).T[..., None]
    fifth = np.unpackbits(raw[:, 4:8], axis=1, bitorder="little")
    low = np.stack([raw[:, 8:] & 15, raw[:, 8:] >> 4], axis=2).reshape(len(raw), 32)
    return (scale * (low + 16 * fifth) + least).ravel()


def _not_numbers(raw):
    return np.full(32 * len(raw), np.nan, np.float32)


def _float64(raw):
    return unpack_q5_1(raw).astype(np.float64)


lesson.add(
    2, 2, "One bit more: Q5_1", check=_check_q5_1,
    hints=["raw[:, :4].copy().view('<f2') are the two float16; np.unpackbits with bitorder='little' begins with bit 0.",
           "A code is its low four bits, as in Q4_1, plus 16 times its fifth bit; then scale · code + least."],
    solution=unpack_q5_1,
    wrong={
        _without_fifth: "of a block", _big_endian_bits: "of a block", _neighbours: "of a block",
        _float64: "expected float32", _not_numbers: "got nan",
    },
)  # fmt: skip


def _model(n_layer=2, seed=0):
    """A small Llama in which every parameter is random."""
    draw = torch.Generator().manual_seed(seed)
    model = Llama(LlamaConfig(50, 64, n_layer, n_head=4, n_kv_head=2, d_model=32, d_ff=48)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=draw) * 0.3 + (p.ndim == 1))
    return model


@contextmanager
def _counting(model):
    """Within it, a list of the number of tokens in each call of the model."""
    read = []

    def count(module, args, kwargs):
        read.append((args[0] if args else kwargs["tokens"]).numel())

    hook = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield read
    finally:
        hook.remove()


def _check_log_likelihoods(answer):
    model = _model()
    for prompt, answers in (
        ([3, 14, 15, 9, 2, 6], [[5, 35], [8, 9, 7, 9]]), ([7], [[1], [2], [3]]), (list(range(30)), [[40, 41, 42]] * 2),
        ([11, 12], [[4, 4], [4, 4, 4, 4, 4, 4], [30], [31, 0]]),
    ):  # fmt: skip
        given = f"a prompt of {len(prompt)} tokens and answers of {[len(a) for a in answers]} tokens"
        want = []
        with torch.no_grad():
            for a in answers:
                logp = model(torch.tensor([prompt + a]))[0].log_softmax(-1)
                want.append(sum(logp[len(prompt) - 1 + j, i].item() for j, i in enumerate(a)))
        with _counting(model) as read:
            got = answer(model, list(prompt), [list(a) for a in answers])
        if not isinstance(got, list) or len(got) != len(answers):
            raise Wrong(f"expected a list of {len(answers)} numbers for {given}, got {got!r}")
        expect([float(value) for value in got], want, f"the log-probabilities for {given}", atol=1e-3)
        most = len(prompt) + len(answers) * max(map(len, answers))
        if sum(read) > most:
            raise Wrong(f"expected at most {most} tokens to be read for {given}, got {sum(read)}: read the prompt once")


@torch.no_grad()
def log_likelihoods(model, prompt, answers):
    cache = KVCache(model.config)
    first = model(torch.tensor([prompt]), cache, last=True)[0]  # (1, V): what comes after the prompt
    found = []
    for answer in answers:
        cache.length = len(prompt)  # forget the answer before
        rest = model(torch.tensor([answer]), cache)[0, :-1]  # (n − 1, V)
        logp = torch.cat([first, rest]).log_softmax(-1)
        found.append(logp.gather(1, torch.tensor(answer)[:, None]).sum().item())
    return found


@torch.no_grad()
def _reads_again(model, prompt, answers):
    found = []
    for answer in answers:
        logp = model(torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1].log_softmax(-1)
        found.append(logp.gather(1, torch.tensor(answer)[:, None]).sum().item())
    return found


@torch.no_grad()
def _keeps_the_last_answer(model, prompt, answers):
    cache = KVCache(model.config)
    first = model(torch.tensor([prompt]), cache, last=True)[0]
    found = []
    for answer in answers:
        rest = model(torch.tensor([answer]), cache)[0, :-1]
        logp = torch.cat([first, rest]).log_softmax(-1)
        found.append(logp.gather(1, torch.tensor(answer)[:, None]).sum().item())
    return found


@torch.no_grad()
def _without_the_first(model, prompt, answers):
    cache, found = KVCache(model.config), []
    model(torch.tensor([prompt]), cache)
    for answer in answers:
        cache.length = len(prompt)
        logp = model(torch.tensor([answer]), cache)[0, :-1].log_softmax(-1)
        found.append(logp.gather(1, torch.tensor(answer)[1:, None]).sum().item())
    return found


lesson.add(
    3, 2, "Which answer does it expect?", check=_check_log_likelihoods,
    hints=["Read the prompt into a KVCache and keep the last logits: they score the first token of every answer.",
           "Lower the cache's length to the prompt's before each answer; its last logits score nothing."],
    solution=log_likelihoods,
    wrong={
        _reads_again: "read the prompt once", _keeps_the_last_answer: "the log-probabilities for",
        _without_the_first: "the log-probabilities for",
    },
)  # fmt: skip


def _check_forget(answer):
    draw = torch.Generator().manual_seed(0)
    for B, H, S, d, n, base in (
        (1, 1, 5, 4, 2, 100.0), (2, 3, 40, 16, 7, 1e4), (1, 2, 300, 8, 299, 1e5), (1, 1, 6, 4, 0, 1e4)
    ):  # fmt: skip
        plain = torch.randn(B, H, S, d, generator=draw)
        given = f"keys of shape {(B, H, S, d)}, n = {n} and base {base:g}"
        got = answer(rotate(plain, *rotation(torch.arange(S), d, base)), n, base)
        want = rotate(plain[:, :, n:], *rotation(torch.arange(S - n), d, base))
        if not isinstance(got, torch.Tensor):
            raise Wrong(f"expected a tensor for {given}, got {type(got).__name__}")
        expect(got.detach().numpy(), want.numpy(), given, atol=1e-3)
    model = _model(n_layer=1)
    ids = torch.randint(0, 50, (1, 20), generator=draw)
    seen = nn.functional.linear(model.layers[0].attn_norm(model.embed(ids)), model.layers[0].attn.k.weight).detach()
    keys = rotate(seen.view(1, 20, 2, 8).transpose(1, 2), *rotation(torch.arange(20), 8))
    want = rotate(seen[:, 6:].view(1, 14, 2, 8).transpose(1, 2), *rotation(torch.arange(14), 8))
    given = "the keys of a one-layer Llama for 20 tokens, n = 6: as if only the last 14 had been read"
    expect(answer(keys, 6, 10_000.0).numpy(), want.numpy(), given, atol=1e-3)


def forget(keys, n, base):
    d = keys.shape[-1]
    cos, sin = rotation(torch.tensor([n]), d, base)  # (1, d/2)
    # A turn back by n positions. In one layer the cache is now as if the first n had never been read. In two it is not:
    # the keys of the second were made from a stream that had seen them.
    return rotate(keys[:, :, n:], cos, -sin)


def _only_drops(keys, n, base):
    return keys[:, :, n:]


def _turns_on(keys, n, base):
    return rotate(keys[:, :, n:], *rotation(torch.tensor([n]), keys.shape[-1], base))


def _each_by_its_own(keys, n, base):
    cos, sin = rotation(torch.arange(n, keys.shape[2]), keys.shape[-1], base)
    return rotate(keys[:, :, n:], cos, -sin)


def _drops_the_end(keys, n, base):
    return keys[:, :, : keys.shape[2] - n]


lesson.add(
    4, 3, "Forget the beginning", check=_check_forget,
    hints=["A key at position p was turned by p · θ; it should be turned by (p − n) · θ. All lack the same turn.",
           "rotation(torch.tensor([n]), d, base) gives cos and sin of n · θ. A turn back has the same cos, and −sin."],
    solution=forget,
    wrong={
        _only_drops: "n = 2 and base", _turns_on: "n = 2 and base", _each_by_its_own: "n = 2 and base",
        _drops_the_end: "n = 2 and base",
    },
)  # fmt: skip
