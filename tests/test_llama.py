"""Parity of `scientist.llama` and `scientist.gguf` with transformers, gguf and tokenizers; their errors; their size."""

import re
import struct
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from anatomy import code_cells, read
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers
from transformers import LlamaConfig as TheirConfig
from transformers import LlamaForCausalLM

from llmscratch.kit import smollm2_file
from llmscratch.scientist.gguf import BLOCKS, GGUF, ChatTokenizer, unpack
from llmscratch.scientist.llama import KVCache, Llama, LlamaConfig, load, rotate, rotation
from llmscratch.scientist.tokenizer import merge_piece

ROOT = Path(__file__).resolve().parent.parent
SMALL = LlamaConfig(50, 64, n_layer=2, n_head=4, n_kv_head=2, d_model=32, d_ff=48)


def randomised(model, seed=0):
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=draw) * 0.2 + (p.ndim == 1))
    return model.eval()


def pair(c, seed=0):
    """transformers' Llama, every parameter random, and ours with its weights."""
    theirs = randomised(LlamaForCausalLM(TheirConfig(
        vocab_size=c.vocab_size, max_position_embeddings=c.context, num_hidden_layers=c.n_layer, hidden_size=c.d_model,
        intermediate_size=c.d_ff, num_attention_heads=c.n_head, num_key_value_heads=c.n_kv_head, rms_norm_eps=c.eps,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_base}, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=None)), seed)  # fmt: skip
    names = {"model.": "", "embed_tokens": "embed", "self_attn": "attn", "_proj": "", "input_layernorm": "attn_norm",
             "post_attention_layernorm": "mlp_norm"}  # fmt: skip
    weights = {}
    for name, w in theirs.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        weights[name] = w
    del weights["lm_head.weight"]
    ours = Llama(c).eval()
    ours.load_state_dict(weights)
    return ours, theirs


def ids(c, B, T, seed=0):
    return torch.randint(0, c.vocab_size, (B, T), generator=torch.Generator().manual_seed(seed))


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=2e-5 * b.abs().max().item() + 1e-7)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 3), st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 2), (6, 1)]), st.sampled_from([2, 8, 10]),
    st.integers(1, 40), st.integers(1, 30), st.integers(1, 3), st.sampled_from([100.0, 1e4, 1e6]), st.integers(0, 99),
)  # fmt: skip
def test_logits_and_gradients_are_those_of_transformers(n_layer, heads, d_head, d_ff, T, B, base, seed):
    c = LlamaConfig(37, 30, n_layer, *heads, heads[0] * d_head, d_ff, base, 1e-5)
    ours, theirs = pair(c, seed)
    tokens = ids(c, B, T, seed)
    mine, other = ours(tokens), theirs(tokens).logits
    close(mine, other)
    mine.square().mean().backward(), other.square().mean().backward()
    close(ours.layers[0].attn.k.weight.grad, theirs.model.layers[0].self_attn.k_proj.weight.grad)
    close(ours.layers[-1].mlp.gate.weight.grad, theirs.model.layers[-1].mlp.gate_proj.weight.grad)
    close(ours.embed.weight.grad, theirs.model.embed_tokens.weight.grad)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=8).filter(lambda sizes: sum(sizes) <= 64), st.integers(1, 3))
@torch.no_grad()
def test_reading_in_pieces_with_a_cache_changes_nothing(sizes, B):
    model, tokens = randomised(Llama(SMALL)), ids(SMALL, B, sum(sizes))
    cache, found = KVCache(SMALL, batch=B), []
    for piece in tokens.split(sizes, dim=1):
        found.append(model(piece, cache))
    close(torch.cat(found, 1), model(tokens))
    assert cache.length == sum(sizes)


@torch.no_grad()
def test_a_cache_forgets_and_selects_rows():
    model, tokens = randomised(Llama(SMALL)), ids(SMALL, 3, 20)
    cache = KVCache(SMALL, batch=3)
    model(tokens, cache)
    cache.length = 8
    close(model(tokens[:, 8:], cache, last=True), model(tokens)[:, -1:])
    cache.select([2, 0, 0, 1])
    more, whole = ids(SMALL, 4, 5, seed=1), tokens[[2, 0, 0, 1]]
    close(model(more, cache), model(torch.cat([whole, more], 1))[:, 20:])
    assert cache.batch == 4 and cache.length == 25


@torch.no_grad()
def test_a_cache_grows_to_the_context_and_not_past_it():
    model, cache = randomised(Llama(SMALL)), KVCache(SMALL)
    tokens = ids(SMALL, 1, 64)
    for token in tokens[0]:
        last = model(token[None, None], cache)
    close(last, model(tokens)[:, -1:])
    assert max(kept.shape[3] for kept in cache._kept) == 64
    with pytest.raises(ValueError, match=r"64 \+ 1 tokens are more than the context, 64"):
        model(tokens[:, :1], cache)
    assert cache.length == 64


@torch.no_grad()
def test_a_cache_follows_the_models_type():
    model, tokens = randomised(Llama(SMALL)).bfloat16(), ids(SMALL, 1, 9)
    cache = KVCache(SMALL)
    model(tokens[:, :4], cache)
    assert model(tokens[:, 4:], cache).dtype == cache._kept[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(1, 65, dtype=torch.long), r"0 \+ 65 tokens are more than the context, 64"),
        (torch.tensor([[1, 50]]), "token ids must be from 0 to 49, got 1 to 50"),
        (torch.tensor([[-1, 3]]), "token ids must be from 0 to 49, got -1 to 3"),
        (torch.tensor([1, 2]), r"tokens must be integers \(B, T\).*got torch.int64 \(2,\)"),
        (torch.ones(1, 2), r"tokens must be integers.*got torch.float32 \(1, 2\)"),
        (torch.zeros(2, 0, dtype=torch.long), r"B and T > 0, got torch.int64 \(2, 0\)"),
    ],
)
def test_impossible_tokens_are_refused(tokens, message):
    with pytest.raises(ValueError, match=message):
        Llama(SMALL)(tokens)


def test_a_cache_for_another_batch_is_refused():
    with pytest.raises(ValueError, match="the cache is for 3 sequences, the tokens are 2"):
        Llama(SMALL)(ids(SMALL, 2, 4), KVCache(SMALL, batch=3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_layer": 0}, "sizes must be whole numbers above 0"), ({"d_ff": 2.5}, "sizes must be whole numbers above 0"),
        ({"n_kv_head": 3}, "n_kv_head a divisor of n_head"), ({"d_model": 36}, "each head must be of even width"),
        ({"vocab_size": None}, "sizes must be whole numbers"), ({"rope_base": None}, "base and ε above 0"),
        ({"rope_base": -1.0}, "base and ε above 0"), ({"eps": 0.0}, "base and ε above 0"),
    ],
)  # fmt: skip
def test_impossible_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        LlamaConfig(**(vars(SMALL) | change))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 5000), st.integers(0, 5000), st.integers(0, 3000), st.sampled_from([2, 8, 64]))
def test_scores_depend_on_the_distance_alone(m, n, shift, d):
    draw = torch.Generator().manual_seed(m)
    q, k = torch.randn(2, 1, d, generator=draw, dtype=torch.float64)

    def at(x, position):
        return rotate(x, *rotation(torch.tensor([float(position)]).double(), d))

    def score(m, n):
        return at(q, m) @ at(k, n).T

    torch.testing.assert_close(score(m, n), score(m + shift, n + shift), rtol=0, atol=1e-9)


# The file format


@cache
def smollm2():
    return load()


@pytest.mark.parametrize("kind", ["F32", "F16", "Q4_1", "Q8_0"])
def test_numbers_are_unpacked_as_the_gguf_package_does(kind):
    code = GGMLQuantizationType[kind]
    numbers = np.random.default_rng(0).normal(size=(6, 64)).astype(np.float32)
    raw = quantize(numbers, code)
    name, _, layout = BLOCKS[code]
    ours = unpack(np.frombuffer(raw.tobytes(), layout))
    assert name == kind and ours.dtype == np.float32
    assert np.array_equal(ours, dequantize(raw, code).astype(np.float32).ravel())


def write(path, config=SMALL, architecture="llama", kind="Q8_0", leave_out=(), turned=None, d_ff=None, **fields):
    """A small Llama as llama.cpp would write it, by the gguf package; returns the weights as they can be read back."""
    model, writer = randomised(Llama(config)), GGUFWriter(path, architecture)
    writer.add_context_length(config.context)
    writer.add_block_count(config.n_layer)
    writer.add_head_count(config.n_head)
    if config.n_kv_head != config.n_head:  # else a file may leave it out
        writer.add_head_count_kv(config.n_kv_head)
    writer.add_embedding_length(config.d_model)
    writer.add_feed_forward_length(d_ff or config.d_ff)
    writer.add_layer_norm_rms_eps(config.eps)
    writer.add_rope_freq_base(config.rope_base)
    if turned:
        writer.add_rope_dimension_count(turned)
    signs = [*(chr(33 + i) for i in range(config.vocab_size - 2)), '!"']
    writer.add_tokenizer_model(fields.pop("model", "gpt2"))
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["<|end|>", *signs])
    writer.add_token_types([3] + [1] * len(signs))
    writer.add_token_merges(['! "'])
    for key, value in fields.items():
        writer.add_string(key.replace("__", "."), value)
    names = {"embed.": "token_embd.", "layers.": "blk.", "attn.q": "attn_q", "attn.k": "attn_k", "attn.v": "attn_v",
             "attn.o": "attn_output", "mlp_norm": "ffn_norm", "mlp.gate": "ffn_gate", "mlp.up": "ffn_up",
             "mlp.down": "ffn_down"}  # fmt: skip
    kept = {}
    for ours, w in model.state_dict().items():
        name = "output_norm.weight" if ours == "norm.weight" else ours
        for old, new in names.items():
            name = name.replace(old, new)
        w = w.numpy()
        if "attn_q." in name or "attn_k." in name:  # llama.cpp: the two rows of a pair side by side
            w = w.reshape(-1, 2, config.d_head // 2, config.d_model).swapaxes(1, 2).reshape(w.shape)
        code = GGMLQuantizationType.F32 if w.ndim == 1 else GGMLQuantizationType[kind]
        raw = quantize(w, code)
        kept[ours] = dequantize(raw, code).astype(np.float32)
        if name not in leave_out:
            writer.add_tensor(name, raw, raw_dtype=code)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return kept


TINY = LlamaConfig(50, 64, n_layer=2, n_head=4, n_kv_head=2, d_model=32, d_ff=64, rope_base=500.0, eps=1e-4)


@pytest.mark.parametrize("kind", ["F32", "F16", "Q4_1", "Q8_0"])
def test_a_file_of_the_gguf_package_is_read(tmp_path, kind):
    kept = write(tmp_path / "tiny.gguf", TINY, kind=kind)
    model, tokenizer = load(tmp_path / "tiny.gguf")
    assert not model.training and all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    for name in ("rope_base", "eps"):
        assert getattr(model.config, name) == pytest.approx(getattr(TINY, name))
    assert [*vars(model.config).values()][:7] == [*vars(TINY).values()][:7]
    for name, w in model.state_dict().items():
        shape = (-1, TINY.d_head // 2, 2, TINY.d_model)
        want = torch.from_numpy(kept[name])
        if name.endswith(("attn.q.weight", "attn.k.weight")):
            want = want.view(shape).transpose(1, 2).reshape(want.shape)
        assert torch.equal(w, want), name
    assert tokenizer.encode('"!"#') == [2, 49, 3] and tokenizer.n_vocab == 50 and tokenizer.special == {"<|end|>": 0}
    with pytest.raises(Exception, match="this_file_has_no_chat_template"):
        tokenizer.chat([{"role": "user", "content": "Hi"}])


def test_a_file_without_a_count_of_key_heads_has_as_many_as_of_queries(tmp_path):
    write(tmp_path / "full.gguf", replace(TINY, n_kv_head=4), turned=8)
    assert load(tmp_path / "full.gguf")[0].config.n_kv_head == 4


def test_a_file_cut_off_anywhere_is_refused(tmp_path):
    whole, cut = tmp_path / "tiny.gguf", tmp_path / "cut.gguf"
    write(whole, TINY)
    data = whole.read_bytes()
    for size in (1, 3, 4, 10, 23, 24, 60, 300, 1500, 3000, len(data) // 2, len(data) - 40):
        cut.write_bytes(data[:size])
        with pytest.raises(ValueError, match="is cut off|is no GGUF file"):
            load(cut)
    cut.write_bytes(b"")
    with pytest.raises(ValueError):
        load(cut)


def _a_list_without_end(data):
    """The merges become 2⁶⁰ lists without entries: read one by one, they would take years."""
    at = data.index(b"tokenizer.ggml.merges") + len(b"tokenizer.ggml.merges")
    return data[: at + 4] + struct.pack("<IQ", 9, 2**60) + bytes(12 * 100)


def _lists_in_lists(data):
    """The merges become 3,000 lists, one in the other."""
    at = data.index(b"tokenizer.ggml.merges") + len(b"tokenizer.ggml.merges")
    return data[: at + 4] + struct.pack("<IQ", 9, 1) * 3000 + bytes(100)


def _too_large(data):
    """A matrix becomes one of 2³² × 2³² numbers."""
    at = data.index(b"blk.0.ffn_up.weight") + len(b"blk.0.ffn_up.weight") + 4  # behind it: the shape
    return data[:at] + struct.pack("<QQ", 2**32, 2**32) + data[at + 16 :]


def _odd_size(data):
    """A packed matrix loses a row of its last block."""
    at = data.index(b"blk.0.ffn_up.weight") + len(b"blk.0.ffn_up.weight") + 4
    return data[:at] + struct.pack("<QQ", 33, 1) + data[at + 16 :]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda b: b"PK\x03\x04" + b[4:], r"is no GGUF file of version 2 or 3: it begins with b'PK"),
        (lambda b: b[:4] + struct.pack("<I", 1) + b[8:], "is no GGUF file of version 2 or 3"),
        (lambda b: b[:24] + struct.pack("<Q", 2**60) + b[32:], "is cut off or damaged"),
        (lambda b: b.replace(b"general.architecture\x08", b"general.architecture\x63"), "no value has the type 99"),
        (_a_list_without_end, "is cut off or damaged"),
        (_lists_in_lists, "is damaged, or nests lists: no value has the type 9"),
        (_too_large, r"is cut off or damaged: blk\.0\.ffn_up\.weight"),
        (_odd_size, r"is cut off or damaged: blk\.0\.ffn_up\.weight, \[1, 33\]"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, spoil, message):
    path = tmp_path / "tiny.gguf"
    write(path, TINY)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        load(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "qwen2"}, "holds a model of the architecture 'qwen2'; only 'llama' can be read"),
        ({"model": "llama"}, "only a 'gpt2' tokenizer with pre 'smollm' can be read, not 'llama'"),
        ({"leave_out": ["blk.1.ffn_up.weight"]}, r"blk\.1\.ffn_up\.weight is missing, has no place or another size"),
        ({"llama__rope__scaling__type": "yarn"}, r"llama\.rope\.scaling\.type is missing, has no place"),
        ({"kind": "Q5_1"}, "is packed in the way 7; only"),
        ({"turned": 4}, r"llama\.rope\.dimension_count is missing, has no place or another size"),
        ({"d_ff": 96}, r"blk\.0\.ffn_down\.weight is missing, has no place or another size"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, options, message):
    path = tmp_path / "other.gguf"
    write(path, TINY, **options)
    with pytest.raises(ValueError, match=message):
        load(path)


def test_an_untied_head_is_refused(tmp_path):
    path = tmp_path / "untied.gguf"
    write(path, TINY)
    data = path.read_bytes().replace(b"output_norm.weight", b"output_form.weight")
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"output_form\.weight is missing, has no place or another size"):
        load(path)


def test_every_array_of_smollm2_is_that_of_the_gguf_package():
    file = GGUF(smollm2_file())
    listed = GGUFReader(smollm2_file()).tensors
    assert {tensor.name for tensor in listed} == set(file.tensors)
    for tensor in listed[::9]:
        assert np.array_equal(file[tensor.name], dequantize(tensor.data, tensor.tensor_type)), tensor.name


# The tokenizer


@cache
def library():
    """The tokenizers library on the same tokens and merges, with the digit rule."""
    fields = GGUF(smollm2_file()).fields
    tokens = {token: i for i, token in enumerate(fields["tokenizer.ggml.tokens"])}
    theirs = Library(models.BPE(tokens, [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]))
    theirs.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return theirs, ChatTokenizer(fields), fields


SIGNS = " \t\n\r\v0123456789abcXYZéß猫ö½²Ⅷ٣٤.,;'!-_(){}\u00a0\u2003\u200b🙂\u0301"
ALPHABET = st.sampled_from([*SIGNS, "'s", "'ll", "  ", "\n\n"])


@settings(max_examples=300, deadline=None)
@given(st.lists(ALPHABET, max_size=30).map("".join) | st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn"])))
def test_ids_are_those_of_the_tokenizers_library(text):
    theirs, ours, _ = library()
    assert ours.encode(text) == theirs.encode(text).ids


@settings(max_examples=100, deadline=None)
@given(st.lists(ALPHABET, max_size=30).map("".join))
def test_text_comes_back(text):
    _, ours, _ = library()
    assert ours.decode(ours.encode(text)) == text


def test_merging_by_rank_is_merging_by_the_files_pairs():
    """For every merged token, encoding by older ranks leaves the very pair of the file, so the two always agree.

    Proof: let ranks join two neighbours a, b within a text. No earlier merge crossed their outer borders, so those
    inside happened as in the token ab on its own, where they leave the file's pair: a, b is that pair.
    """
    _, ours, fields = library()
    ranks = ours._bpe.ranks
    signs = {sign: token for token, sign in zip(list(ranks)[:256], _signs(), strict=True)}
    merges = fields["tokenizer.ggml.merges"]
    tokens = list(ranks)
    for merge in merges[:2000] + merges[2000::23]:
        left, right = (b"".join(signs[c] for c in part) for part in merge.split(" "))
        rank = ranks[left + right]
        parts = merge_piece(left + right, _Older(ranks, rank))
        assert [tokens[i] for i in parts] == [left, right]


class _Older(dict):
    """The ranks under a limit."""

    def __init__(self, ranks, limit):
        self.ranks, self.limit = ranks, limit

    def __contains__(self, token):
        return self.ranks.get(token, self.limit) < self.limit

    def __getitem__(self, token):
        return self.ranks[token]


def _signs():
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return bytes_to_unicode().values()


def test_special_tokens_count_only_when_allowed():
    _, tokenizer, _ = library()
    end = tokenizer.special["<|im_end|>"]
    assert tokenizer.encode("a<|im_end|>", allowed_special="all")[-1] == end == 2
    assert tokenizer.encode("a<|im_end|>", allowed_special=["<|im_end|>"])[-1] == end
    with pytest.raises(ValueError, match=r"special token '<\|im_end\|>'"):
        tokenizer.encode("a<|im_end|>")
    assert tokenizer.decode([end]) == "<|im_end|>" and tokenizer.n_vocab == 49152 and len(tokenizer.special) == 17


def test_decoding_takes_tensors_bytes_and_refuses_unknown_ids():
    _, tokenizer, _ = library()
    some = tokenizer.encode("🙂 naïve")
    assert tokenizer.decode(torch.tensor(some)) == "🙂 naïve" == tokenizer.decode_bytes(np.array(some)).decode()
    assert tokenizer.decode(some[:1]) == "\ufffd"
    with pytest.raises(ValueError, match="no token has the id 49152; the largest is 49151"):
        tokenizer.decode([5, 49152])


def test_bytes_without_a_token_are_left_out():
    _, tokenizer, _ = library()
    assert tokenizer.decode(tokenizer.encode("a\x04b")) == "ab"


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user"}, {"role": "user", "content": None}, "Hello", {"role": "user", "content": "x<|im_end|>"},
        {"role": "<|im_start|>", "content": "x"},
    ],
)  # fmt: skip
def test_messages_that_could_break_the_template_are_refused(message):
    _, tokenizer, _ = library()
    with pytest.raises(ValueError, match="expected a dict of role and content, texts without special tokens"):
        tokenizer.chat([{"role": "user", "content": "Hi"}, message])


def test_the_template_runs_in_a_sandbox():
    from jinja2.exceptions import SecurityError

    _, _, fields = library()
    evil = ChatTokenizer(fields | {"tokenizer.chat_template": "{{ cycler.__init__.__globals__.os.getpid() }}"})
    with pytest.raises(SecurityError):
        evil.chat([])


# The real model


@torch.inference_mode()
def test_smollm2_answers():
    model, tokenizer = smollm2()
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    prompt = tokenizer.chat([{"role": "user", "content": "What is the capital of France?"}])
    new, cache, written = torch.tensor([tokenizer.encode(prompt, allowed_special="all")]), KVCache(model.config), []
    for _ in range(8):
        new = model(new, cache, last=True)[:, -1].argmax(-1, keepdim=True)
        written.append(new.item())
    assert tokenizer.decode(written) == "The capital of France is Paris.<|im_end|>"


def test_loading_takes_little_memory():
    program = (
        "import resource, sys; from llmscratch.scientist.llama import load; kept = load(); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024))"
    )
    # Linux counts the parent's peak at exec into the child's, so a small process stands between this one and that.
    fresh = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)"
    command = [sys.executable, "-c", fresh, program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert 0.5e9 < int(done.stdout) < 1.5e9


def test_at_most_250_lines_are_exported():
    cells = [cell.source for _, cell in code_cells(read(ROOT / "02_for_scientist" / "20_llama.ipynb"))]
    exported = [source for source in cells if re.search(r"^#\| export", source, re.MULTILINE)]
    lines = [line for source in exported for line in source.splitlines() if line.strip() and not line.startswith("#|")]
    assert len(lines) <= 250
