"""`engineer.generate` and `engineer.grammar` beside transformers, Python's re and json; streams, scores, errors."""

import functools
import inspect
import itertools
import json
import math
import random
import re
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaConfig as TheirConfig
from transformers import LlamaForCausalLM, LogitsProcessorList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llmscratch.engineer import grammar as grammar_module
from llmscratch.engineer.generate import (
    Reader,
    Sampling,
    Stream,
    TextFlow,
    beam_search,
    generate,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise,
    prompt_ids,
    score,
)
from llmscratch.engineer.grammar import (
    CHARACTER,
    EMPTY,
    NOTHING,
    Grammar,
    OneByte,
    Text,
    either,
    integers,
    json_pattern,
    then,
    times,
    token_trie,
)
from llmscratch.exercises import e01 as exercises
from llmscratch.kit import smollm2_file
from llmscratch.scientist.gguf import GGUF, ChatTokenizer
from llmscratch.scientist.gpt import GPT, GPTConfig
from llmscratch.scientist.llama import Llama, LlamaConfig
from llmscratch.scientist.tokenizer import storyteller as storyteller_tokenizer

V, END, OTHER_END = 60, 0, 1


pytestmark = pytest.mark.usefixtures("one_thread")


class Letters:
    """A tokenizer of V ids: two ends, then two letters each."""

    special = {"<|im_end|>": END, "<|endoftext|>": OTHER_END}
    n_vocab = V

    def encode(self, text, *, allowed_special=()):
        return [2 + ord(sign) - 65 for sign in text]

    def decode_bytes(self, ids):
        return b"".join(bytes([65 + i - 2]) if i > 1 else b"<>" for i in ids)


def random_(model, seed=0):
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=draw) * 0.5 + (p.ndim == 1))
    return model.eval()


@pytest.fixture(scope="module")
def small():
    return random_(Llama(LlamaConfig(V, 64, 2, 4, 2, 32, 64)))


@pytest.fixture(scope="module")
def theirs(small):
    c, names = (
        small.config,
        {"embed.": "embed_tokens.", "attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"},
    )
    names |= {f"attn.{x}.": f"self_attn.{x}_proj." for x in "qkvo"}
    weights = {}
    for name, tensor in small.state_dict().items():
        for ours, other in (names | {f"mlp.{x}.": f"mlp.{x}_proj." for x in ("gate", "up", "down")}).items():
            name = name.replace(ours, other)
        weights["model." + name] = tensor
    model = LlamaForCausalLM(TheirConfig(
        vocab_size=V, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=c.eps,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_base},
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=None, pad_token_id=END,
    ))  # fmt: skip
    model.load_state_dict(weights | {"lm_head.weight": weights["model.embed_tokens.weight"]})
    return model.eval()


@pytest.fixture(scope="module")
def smollm2():
    return ChatTokenizer(GGUF(smollm2_file()).fields)


# The choice of a token


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.booleans(), st.sampled_from([1, 7, 50, 80]),
       st.floats(0.01, 1), st.floats(0, 1), st.floats(0.3, 3))  # fmt: skip
def test_each_rule_is_that_of_transformers_ties_and_cut_tokens_too(seed, ties, cut, k, p, m, penalty):
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 50, generator=draw) * 3
    logits = logits.round() if ties else logits
    if cut:
        logits[:, 5:20] = -math.inf
    seen = torch.randint(0, 50, (3, 12), generator=draw)
    assert torch.equal(keep_top_k(logits, k), TopKLogitsWarper(k)(seen, logits))
    assert torch.equal(keep_top_p(logits, p), TopPLogitsWarper(p)(seen, logits))
    assert torch.equal(keep_min_p(logits, m), MinPLogitsWarper(m)(seen, logits))
    assert torch.equal(penalise(logits, seen, penalty), RepetitionPenaltyLogitsProcessor(penalty)(seen, logits))
    ours = Sampling(temperature=0.7, top_k=k, top_p=p, min_p=m, repetition_penalty=penalty).reshape(logits, seen)
    chain = [RepetitionPenaltyLogitsProcessor(penalty), TemperatureLogitsWarper(0.7), TopKLogitsWarper(k),
             TopPLogitsWarper(p), MinPLogitsWarper(m)]  # fmt: skip
    assert torch.equal(ours, LogitsProcessorList(chain)(seen, logits))


def test_temperature_0_takes_the_first_of_the_likeliest_and_the_rest_is_drawn_as_softmax_says():
    logits, seen = torch.tensor([[1.0, 3.0, 3.0, -math.inf]]), torch.tensor([[0]])
    assert Sampling().draw(logits, seen).tolist() == [1]
    assert Sampling().reshape(logits, seen).softmax(-1).tolist() == [[0, 1, 0, 0]]
    assert Sampling(repetition_penalty=2.0).draw(logits, torch.tensor([[1]])).tolist() == [2]
    many = Sampling(temperature=2.0).draw(logits.expand(40_000, -1), seen, torch.Generator().manual_seed(0))
    share, p = many.bincount(minlength=4) / 40_000, (logits[0] / 2).softmax(-1)
    assert ((share - p).abs() <= 4 * (p * (1 - p) / 40_000).sqrt()).all() and share[3] == 0


@pytest.mark.parametrize(("wrong", "message"), [
    ({"temperature": -0.1}, "temperature must be a number from 0 up, got -0.1"),
    ({"temperature": math.nan}, "temperature must be"), ({"temperature": math.inf}, "temperature must be"),
    ({"temperature": None}, "temperature must be a number from 0 up, got None"), ({"temperature": "1"}, "temperature"),
    ({"top_p": "0.9"}, "top_p must be"), ({"min_p": math.nan}, "min_p must be"), ({"top_k": True}, "top_k must be"),
    ({"top_k": 0}, "top_k must be a whole number above 0, got 0"), ({"top_k": 2.0}, "top_k must be"),
    ({"top_p": 0}, "top_p must be above 0 and at most 1, got 0"), ({"top_p": 1.1}, "top_p must be"),
    ({"min_p": -0.1}, "min_p must be from 0 to 1"), ({"repetition_penalty": 0}, "repetition_penalty must be above 0"),
    ({"max_tokens": 0}, "max_tokens must be a whole number above 0"), ({"max_tokens": 1.5}, "max_tokens must be"),
    ({"stop": ["a", ""]}, "a stop string is a text of at least one character"),
    ({"stop": [3]}, "a stop string is a text"),
    ({"prompt": []}, "the prompt is empty"), ({"prompt": ""}, "the prompt is empty"),
    ({"prompt": [2] * 65}, "the prompt has 65 tokens, the context is 64"),
])  # fmt: skip
def test_bad_values_are_refused_when_the_stream_is_made(small, wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Stream(small, Letters(), **{"prompt": [2, 3]} | wrong)


def test_an_unknown_setting_is_refused(small):
    with pytest.raises(TypeError, match="topk"):
        Stream(small, Letters(), [2], topk=3)


# Text as it comes

few = st.text("ab猫🙂", max_size=10)


def left_of_stops(data: bytes, stops: list[str]) -> bytes:
    ends = [(data.find(s.encode()) + len(s.encode()), data.find(s.encode())) for s in stops if s.encode() in data]
    return data[: min(ends)[1]] if ends else data


@settings(max_examples=500, deadline=None)
@given(few, st.lists(st.text("ab猫🙂", min_size=1, max_size=4), max_size=3), st.randoms(use_true_random=False))
@example("abab", ["abc", "b"], random.Random(0))
def test_however_the_bytes_are_cut_the_text_is_what_the_stop_strings_leave(text, stops, dice):
    data = text.encode()
    cuts = sorted(dice.choices(range(len(data) + 1), k=5))
    flow, shown, truth = TextFlow(stops), "", left_of_stops(data, stops).decode()
    for a, b in itertools.pairwise([0, *cuts, len(data)]):
        shown += flow.push(data[a:b])
        assert truth.startswith(shown)  # nothing is ever taken back
    assert shown + flow.finish() == truth
    assert flow.stopped == any(s in text for s in stops)
    assert flow.push(b"more") == ("" if flow.stopped else "more")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=30))
def test_any_bytes_become_text_as_decode_does_it(data):
    flow = TextFlow()
    shown = "".join(flow.push(bytes([byte])) for byte in data) + flow.finish()
    assert shown == data.decode("utf-8", "replace")


def test_only_what_may_become_a_stop_string_is_held_back():
    flow = TextFlow(["\n\nUser:"])
    assert [flow.push(piece) for piece in (b"Hi\n", b"there", b"\n\nUs", b"e it", b"\n\nUser")] == [
        "Hi",
        "\nthere",
        "",
        "\n\nUse it",
        "",
    ]
    assert flow.finish() == "\n\nUser" and not flow.stopped


def test_one_stop_string_is_a_text_not_its_letters():
    flow = TextFlow("stop")
    assert flow.push(b"to and sto") == "to and " and flow.push(b"p it") == "" and flow.stopped
    for wrong in ("", [""], ["a", 3], [b"a"]):
        with pytest.raises(ValueError, match="a stop string is a text of at least one character"):
            TextFlow(wrong)


# The loop


@pytest.mark.parametrize("options", [
    {}, {"repetition_penalty": 1.3}, {"temperature": 0.8, "top_k": 10},
    {"temperature": 1.5, "top_p": 0.8, "repetition_penalty": 1.2},
    {"temperature": 1.0, "min_p": 0.1, "top_k": 50},
])  # fmt: skip
def test_tokens_are_those_of_transformers_generate_drawn_ones_too(small, theirs, options):
    for seed in range(10):
        prompt = torch.randint(2, V, (1, 5), generator=torch.Generator().manual_seed(seed))
        stream = Stream(
            small,
            Letters(),
            prompt[0].tolist(),
            max_tokens=15,
            generator=torch.Generator().manual_seed(seed),
            **options,
        )
        text = "".join(stream)
        torch.manual_seed(seed)
        drawn = (
            {"do_sample": True, "top_k": options.get("top_k", 0)} if "temperature" in options else {"do_sample": False}
        )
        out = theirs.generate(prompt, max_new_tokens=15, eos_token_id=[END, OTHER_END], **options | drawn)[
            0, 5:
        ].tolist()
        assert stream.ids == [i for i in out if i > 1]
        assert stream.reason == ("end" if out[-1] in (END, OTHER_END) else "length")
        assert text == Letters().decode_bytes(stream.ids).decode()
        again = Stream(
            small, Letters(), prompt[0], max_tokens=15, generator=torch.Generator().manual_seed(seed), **options
        )
        assert "".join(again) == text


def test_a_stream_says_why_it_ended_and_can_be_left(small):
    prompt = [5, 9, 20]
    whole = Stream(small, Letters(), prompt, max_tokens=12)
    text = "".join(whole)
    assert len(text) > 6 and generate(small, Letters(), prompt, max_tokens=12) == text
    stop = text[3:5]
    cut = Stream(small, Letters(), prompt, max_tokens=12, stop=stop)
    assert "".join(cut) == text[: text.find(stop)] and cut.reason == "stop"
    left = Stream(small, Letters(), prompt, max_tokens=12)
    for piece in left:
        assert piece == text[0]
        break
    assert left.reason is None and "".join(left) == text  # from the start again
    full = Stream(small, Letters(), [5] * 64, max_tokens=12)
    list(full)
    assert len(full.ids) <= 1  # one more token can be drawn where the context is full, none read


def test_a_model_without_cache_gives_the_same_and_keeps_its_mode():
    gpt = random_(GPT(GPTConfig(V, 64, 2, 2, 16, dropout=0.5))).train()
    prompt, ids = [7, 8, 9], [7, 8, 9]
    stream = Stream(gpt, Letters(), prompt, max_tokens=8)
    list(stream)
    assert gpt.training
    gpt.eval()
    while len(ids) < 3 + len(stream.ids):
        with torch.no_grad():
            ids.append(int(gpt(torch.tensor([ids]))[0, -1].argmax()))
    assert stream.ids == ids[3:]


def test_a_reader_goes_on_with_chosen_rows(small):
    tokens = torch.tensor([[3, 4, 5], [6, 7, 8]])
    for model in (small, random_(GPT(GPTConfig(V, 64, 2, 2, 16)))):
        read = Reader(model, 2)
        read(tokens)
        read.select([1, 1, 0])
        with torch.no_grad():
            want = model(torch.tensor([[6, 7, 8, 9], [6, 7, 8, 10], [3, 4, 5, 11]]))[:, -1]
        torch.testing.assert_close(read(torch.tensor([[9], [10], [11]])), want, atol=1e-4, rtol=1e-4)


def test_prompts_are_texts_chats_and_ids(smollm2):
    chat = [{"role": "user", "content": "Hi"}]
    special = set(smollm2.special)
    assert prompt_ids(smollm2, chat) == smollm2.encode(smollm2.chat(chat), allowed_special=special)
    assert (
        prompt_ids(smollm2, "Hi")
        == smollm2.encode("Hi")
        == prompt_ids(smollm2, torch.tensor(smollm2.encode("Hi")).tolist())
    )
    for evil in ("<|im_end|>", [{"role": "user", "content": "a<|im_end|>b"}]):
        with pytest.raises(ValueError, match="special token"):
            prompt_ids(smollm2, evil)


# Beams and scores


@pytest.mark.parametrize(("beams", "alpha"), [(1, 1.0), (2, 1.0), (3, 0.0), (4, 2.0), (5, -1.0)])
def test_beams_are_those_of_transformers(small, theirs, beams, alpha):
    for seed in range(12):
        prompt = torch.randint(2, V, (1, 4), generator=torch.Generator().manual_seed(seed))
        ours = beam_search(
            small, prompt[0].tolist(), beams=beams, max_tokens=7, ends=(END, OTHER_END), length_penalty=alpha
        )
        many = {"num_return_sequences": beams, "length_penalty": alpha} if beams > 1 else {}
        out = theirs.generate(prompt, max_new_tokens=7, num_beams=beams, do_sample=False, eos_token_id=[END, OTHER_END],
                              return_dict_in_generate=True, output_scores=True, **many)  # fmt: skip
        assert len(ours) == beams
        for (_, ids), row in zip(ours, out.sequences[:, 4:].tolist(), strict=True):
            assert ids == row[: len(ids)] and not any(row[len(ids) :])
        if beams > 1:
            torch.testing.assert_close(torch.tensor([s for s, _ in ours]), out.sequences_scores, atol=1e-4, rtol=1e-4)
    for wrong in ({"beams": 0}, {"max_tokens": 0}):
        with pytest.raises(ValueError, match="expected beams and max_tokens above 0"):
            beam_search(small, [3], **wrong)
    with pytest.raises(ValueError, match="and a prompt"):
        beam_search(small, [])


def test_a_score_is_the_sum_of_log_probabilities_in_any_batch(small):
    tokenizer, dice = Letters(), random.Random(0)
    prompts = ["".join(dice.choices("ABCDEFGH", k=dice.randint(1, 9))) for _ in range(25)]
    said = ["".join(dice.choices("ABCDEFGH", k=dice.randint(1, 5))) for _ in range(25)]
    nats, n = score(small, tokenizer, prompts, said)
    assert n.tolist() == [len(s) for s in said]
    for k in range(25):
        ids = tokenizer.encode(prompts[k] + said[k])
        with torch.no_grad():
            logp = small(torch.tensor([ids]))[0].log_softmax(-1)
        want = sum(logp[t - 1, ids[t]] for t in range(len(prompts[k]), len(ids)))
        assert abs(nats[k] - want) < 1e-3
    for at_once in (1, 40):
        torch.testing.assert_close(
            score(small, tokenizer, prompts, said, at_once=at_once)[0], nats, atol=1e-3, rtol=1e-4
        )
    with pytest.raises(ValueError, match="a continuation is empty"):
        score(small, tokenizer, ["A"], [""])
    with pytest.raises(ValueError):
        score(small, tokenizer, ["A"], ["B", "C"])


# Patterns


def matches(pattern, data):
    for byte in data:
        pattern = pattern.after(byte)
    return pattern.ends


trees = st.recursive(
    st.sampled_from([("a", Text(b"a")), ("b", Text(b"b")), ("[ab]", OneByte(b"ab")), ("", EMPTY), ("ab", Text(b"ab"))]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda p: (f"(?:{p[0][0]}|{p[1][0]})", either(p[0][1], p[1][1]))),
        st.tuples(inner, inner).map(lambda p: (p[0][0] + p[1][0], then(p[0][1], p[1][1]))),
        st.tuples(inner, st.integers(0, 2), st.integers(0, 2)).map(
            lambda p: (f"(?:{p[0][0]}){{{p[1]},{p[1] + p[2]}}}", times(p[0][1], p[1], p[1] + p[2]))
        ),
    ),
    max_leaves=8,
)
STRINGS = ["".join(s) for n in range(7) for s in itertools.product("ab", repeat=n)]


@settings(max_examples=150, deadline=None)
@given(trees)
def test_a_pattern_is_what_re_says_and_knows_its_shortest(tree):
    regex, pattern = tree
    found = [s for s in STRINGS if matches(pattern, s.encode())]
    assert found == [s for s in STRINGS if re.fullmatch(regex, s)]
    if found:
        assert pattern.shortest == min(map(len, found))


@settings(max_examples=200, deadline=None)
@given(st.integers(-2500, 2500), st.integers(0, 1500))
@example(-1, 1)
@example(0, 0)
@example(-1000, 1500)
def test_whole_numbers_from_a_range_and_no_others(low, more):
    pattern = integers(low, low + more)
    dice = random.Random(low * 7 + more)
    for n in {
        low - 1,
        low,
        low + 1,
        low + more - 1,
        low + more,
        low + more + 1,
        0,
        -1,
        *(dice.randint(-4500, 4500) for _ in range(60)),
    }:
        assert matches(pattern, str(n).encode()) == (low <= n <= low + more), n
    for text in (b"", b"-", b"-0", b"00", b"01", b"+1", b"1.0", b"1e2", b" 1"):
        assert not matches(pattern, text)


def test_a_character_is_any_but_control_quote_and_backslash():
    for c in itertools.chain(range(0xD800), range(0xE000, 0x110000, 3)):
        assert matches(CHARACTER, chr(c).encode()) == (c >= 0x20 and chr(c) not in '"\\'), hex(c)
    for data in (
        b"\xc3",
        b"\xed\xa0\x80",
        b"\xc0\xaf",
        b"\xe0\x80\xaf",
        b"\xf0\x80\x80\x80",
        b"\xf4\x90\x80\x80",
        b"\xf5",
        b"\xff",
        b"ab",
    ):
        assert not matches(CHARACTER, data)
    for data in (rb"\"", rb"\\", rb"\/", rb"\b", rb"\f", rb"\n", rb"\r", rb"\t"):
        assert matches(CHARACTER, data) and len(json.loads(b'"' + data + b'"')) == 1


@pytest.mark.parametrize(
    ("schema", "texts"),
    [
        ({"type": "integer", "enum": ["a", 3, True, None]}, ["3"]),
        ({"type": ["string", "null"], "enum": ["a", 3, None]}, ['"a"', "null"]),
        ({"type": "number", "enum": ["a", 1, 2.5]}, ["1", "2.5"]),
        ({"enum": ["a", 2.5]}, ['"a"', "2.5"]),
        ({"type": "string", "enum": [1]}, []),
    ],
)
def test_an_enum_with_a_type_has_the_values_of_the_type(schema, texts):
    pattern = json_pattern(schema)
    assert [t for t in ('"a"', "1", "2.5", "3", "true", "null") if matches(pattern, t.encode())] == texts


def test_an_enum_of_an_unknown_type_is_refused():
    with pytest.raises(ValueError, match="the types of an enum's values are some of .*; got \\['strng'\\]"):
        json_pattern({"type": "strng", "enum": ["a"]})


values = st.recursive(
    st.one_of(
        st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"enum": ["a", "Öl", None, 3, {"x": [1]}]}]),
        st.tuples(st.integers(-50, 50), st.integers(0, 80)).map(
            lambda r: {"type": "integer", "minimum": r[0], "maximum": r[0] + r[1]}
        ),
        st.tuples(st.integers(0, 2), st.integers(0, 3)).map(
            lambda r: {"type": "string", "minLength": r[0], "maxLength": r[0] + r[1]}
        ),
    ),
    lambda inner: st.one_of(
        st.dictionaries(st.sampled_from(["a", "be", 'q"', "ü"]), inner, max_size=3).map(
            lambda p: {"type": "object", "properties": p}
        ),
        st.tuples(inner, st.integers(0, 2), st.integers(0, 2)).map(
            lambda a: {"type": "array", "items": a[0], "minItems": a[1], "maxItems": a[1] + a[2]}
        ),
    ),
    max_leaves=4,
)


def fits(value, schema):
    """The schema read plainly."""
    if "enum" in schema:
        return any(value == e and type(value) is type(e) for e in schema["enum"])
    kind = schema["type"]
    if kind == "object":
        return (
            isinstance(value, dict)
            and list(value) == list(schema["properties"])
            and all(map(fits, value.values(), schema["properties"].values()))
        )
    if kind == "array":
        return (
            isinstance(value, list)
            and schema["minItems"] <= len(value) <= schema["maxItems"]
            and all(fits(v, schema["items"]) for v in value)
        )
    if kind == "string":
        return isinstance(value, str) and schema["minLength"] <= len(value) <= schema["maxLength"]
    if kind == "integer":
        return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
    return value is None if kind == "null" else isinstance(value, bool)


def example_of(schema, dice):
    """A value that fits."""
    if "enum" in schema:
        return dice.choice(schema["enum"])
    kind = schema["type"]
    if kind == "object":
        return {key: example_of(part, dice) for key, part in schema["properties"].items()}
    if kind == "array":
        return [example_of(schema["items"], dice) for _ in range(dice.randint(schema["minItems"], schema["maxItems"]))]
    if kind == "string":
        return "".join(dice.choices('a"\\\n猫🙂 é', k=dice.randint(schema["minLength"], schema["maxLength"])))
    if kind == "integer":
        return dice.randint(schema["minimum"], schema["maximum"])
    return None if kind == "null" else dice.random() < 0.5


@settings(max_examples=150, deadline=None)
@given(values, st.randoms(use_true_random=False))
def test_a_schema_takes_just_the_values_that_fit(schema, dice):
    pattern = json_pattern(schema)
    for _ in range(5):
        value = example_of(schema, dice)
        text = json.dumps(value, ensure_ascii=False)
        assert fits(value, schema) and matches(pattern, text.encode())
        k = dice.randrange(len(text))
        broken = dice.choice(
            [text[:k] + text[k + 1 :], text[:k] + dice.choice('",:[]{}0a -') + text[k:], text[:-1], text + " "]
        )
        try:
            good = fits(json.loads(broken), schema)
        except ValueError:
            good = False
        if matches(pattern, broken.encode()):
            assert good, broken
    grammar = Grammar(pattern, bard())
    text = written(grammar, bard(), dice.randrange(10**6), grammar.least + dice.randrange(9))
    assert fits(json.loads(text), schema), text


@pytest.mark.parametrize(("schema", "message"), [
    ({}, "a schema has an enum, or a type of"), ({"type": "number"}, "a schema has an enum, or a type of"),
    ({"type": ["string", "null"]}, "a schema"),
    ({"type": "string", "pattern": "a"}, "'pattern' is not supported for 'string'"),
    ({"type": "object", "properties": {}, "patternProperties": {}}, "'patternProperties' is not supported"),
    ({"type": "object", "properties": {}, "required": ["a"]}, r"\['a'\] are required, but are no properties"),
    ({"type": "array"}, "a schema has an enum, or a type of"),
    ({"enum": [1], "minimum": 2}, "'minimum' is not supported for 'enum'"),
    ({"type": "integer", "minimum": 5, "maximum": 4}, "there is no range of whole numbers from 5 to 4"),
    ({"type": "integer", "minimum": 1.5, "maximum": 4}, "there is no range of whole numbers from 1.5 to 4"),
    ({"type": "array", "items": {"type": "null"}, "minItems": 1, "maxItems": 0}, "at least 1 and at most 0 times"),
    ({"type": "string", "minLength": 5, "maxLength": 4}, "at least 5 and at most 4 times is impossible"),
    ({"type": "array", "items": {"enum": []}, "minItems": 1}, "no text fits"),
])  # fmt: skip
def test_a_schema_that_is_not_understood_is_refused(schema, message):
    with pytest.raises(ValueError, match=message):
        Grammar(json_pattern(schema), bard())


def test_what_other_programs_write_into_a_schema_is_taken_where_it_is_kept():
    part = {"title": "N", "type": "integer", "minimum": 0, "maximum": 9}
    schema = {"type": "object", "properties": {"n": part}, "required": ["n"], "additionalProperties": False}
    assert matches(json_pattern(schema), b'{"n": 7}') and not matches(json_pattern(schema), b"{}")


def test_many_properties_do_not_reach_the_recursion_limit():
    schema = {"type": "object", "properties": {f"key{i}": {"type": "boolean"} for i in range(150)}}
    pattern = json_pattern({"type": "array", "items": schema, "minItems": 1, "maxItems": 2})
    value = [{f"key{i}": i % 3 == 0 for i in range(150)}] * 2
    assert matches(pattern, json.dumps(value).encode())


def test_the_exercises_take_patterns_of_the_readers_own_classes():
    """In the notebook the reader's `Text`, `either`, … are not the module's."""
    own: dict[str, object] = {"__name__": "own"}
    exec(compile(Path(grammar_module.__file__).read_text(), "own", "exec"), own)
    exec(textwrap.dedent(inspect.getsource(exercises.dates)), own)
    assert exercises.lesson.verdict(3, own["dates"])[0] == "right"
    assert exercises.lesson.verdict(3, lambda: own["integers"](1, 2))[0] == "wrong"
    assert exercises.lesson.verdict(3, lambda: "2024-02-29")[0] == "wrong"


# Tokens

SCHEMA = {
    "type": "object",
    "properties": {
        "note": {"type": "string", "minLength": 0, "maxLength": 8},
        "n": {"type": "integer", "minimum": -50, "maximum": 1200},
        "tags": {"type": "array", "items": {"enum": ["a", "Öl", None, 3]}, "minItems": 0, "maxItems": 2},
        "ok": {"type": "boolean"},
    },
}  # fmt: skip


@functools.cache
def bard():
    """The Storyteller's tokenizer."""
    return storyteller_tokenizer()


class Noise(nn.Module):
    """Every token is equally likely."""

    def __init__(self, size):
        super().__init__()
        self.z, self.config = nn.Parameter(torch.zeros(1, 1, size)), SimpleNamespace(context=1000)

    def forward(self, tokens):
        return self.z


def written(grammar, tokenizer, seed, most):
    stream = Stream(Noise(tokenizer.n_vocab), tokenizer, [0], max_tokens=most, grammar=grammar, temperature=1.0,
                    generator=torch.Generator().manual_seed(seed))  # fmt: skip
    text = "".join(stream)
    assert len(stream.ids) <= most  # whatever the reason is: a text that could go on fits, too
    return text


def test_1000_seeds_of_noise_over_the_storytellers_vocabulary_are_all_valid_by_generate():
    tokenizer = bard()
    grammar, most = Grammar(json_pattern(SCHEMA), tokenizer), random.Random(0)
    texts = [written(grammar, tokenizer, seed, grammar.least + most.randrange(15)) for seed in range(1000)]
    assert all(fits(json.loads(text), SCHEMA) for text in texts) and len(set(texts)) > 900


def test_noise_over_smollm2s_vocabulary_is_valid(smollm2):
    grammar = Grammar(json_pattern(SCHEMA), smollm2)
    for seed in range(1000, 1300):  # the lesson takes the first 1,000
        draw, state, ids = torch.Generator().manual_seed(seed), grammar.start, []
        while not grammar.finished(state):
            allowed = grammar.allowed(state, 60 - len(ids)).nonzero()[:, 0]
            ids.append(allowed[torch.randint(len(allowed), (1,), generator=draw)].item())
            state = grammar.step(state, ids[-1])
        assert fits(json.loads(smollm2.decode(ids)), SCHEMA)
    for seed in range(10):
        assert fits(json.loads(written(grammar, smollm2, seed, 60)), SCHEMA)


def test_a_mask_is_what_walking_each_token_alone_gives(smollm2):
    for tokenizer, n_states in ((bard(), 40), (smollm2, 3)):
        pattern, tokens = json_pattern(SCHEMA), token_trie(tokenizer)[0]
        grammar, dice = Grammar(pattern, tokenizer), random.Random(0)
        state, ends = grammar.start, set()
        for _ in range(n_states):
            want = torch.full((tokenizer.n_vocab,), math.inf)
            for i, data in tokens.items():
                after = pattern
                for byte in data:
                    after = after.after(byte)
                want[i] = after.shortest
            assert torch.equal(grammar.need(state), want)
            token = dice.choice((want < math.inf).nonzero()[:, 0].tolist())
            state = grammar.step(state, token)
            for byte in tokens[token]:
                pattern = pattern.after(byte)
            ends.add(grammar.finished(state))
            if grammar.finished(state):
                assert pattern == EMPTY
                state, pattern = grammar.start, json_pattern(SCHEMA)
        special = (tokenizer.special if hasattr(tokenizer, "special") else tokenizer.specials).values()
        assert all(grammar.need(state)[i] == math.inf for i in special)


def test_where_a_text_may_end_the_model_may_end_it_and_elsewhere_not():
    tokenizer = bard()
    end = tokenizer.specials["<|endoftext|>"]
    grammar = Grammar(integers(1, 99), tokenizer)
    assert not grammar.allowed(grammar.start, 5, [end])[end]
    one = grammar.step(grammar.start, tokenizer.encode("1")[0])
    assert grammar.allowed(one, 5, [end])[end] and not grammar.finished(one)
    found = {written(grammar, tokenizer, seed, 5) for seed in range(300)}
    assert {len(text) for text in found} == {1, 2} and all(1 <= int(text) <= 99 for text in found)


def test_where_the_length_ends_a_text_that_could_go_on_it_fits():
    tokenizer, grammar = bard(), Grammar(integers(1, 999), bard())
    for seed in range(30):
        draw = torch.Generator().manual_seed(seed)
        stream = Stream(Noise(tokenizer.n_vocab), tokenizer, [0], max_tokens=1, grammar=grammar, generator=draw,
                        temperature=1.0)  # fmt: skip
        text = "".join(stream)
        assert 1 <= int(text) <= 999 and stream.reason == ("grammar" if len(text) == 3 else "length")


def test_a_grammar_that_cannot_be_written_is_refused(smollm2, small):
    with pytest.raises(ValueError, match="no text fits this pattern"):
        Grammar(NOTHING, smollm2)
    grammar = Grammar(Text(b"\x04"), smollm2)  # a byte that its vocabulary has not
    with pytest.raises(ValueError, match="no token of the vocabulary fits here"):
        grammar.allowed(grammar.start, 5)
    tokenizer = bard()
    grammar = Grammar(json_pattern(SCHEMA), tokenizer)
    with pytest.raises(ValueError, match=rf"the grammar may need {grammar.least} tokens, and there is room for 9"):
        Stream(Noise(tokenizer.n_vocab), tokenizer, [0], max_tokens=9, grammar=grammar)
