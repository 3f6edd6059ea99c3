"""`scientist.lora` = peft; NF4 against its definition; adapters on disk; the shipped one, measured again."""

import copy
import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from llmscratch.kit import asset_file
from llmscratch.scientist import nf4
from llmscratch.scientist.gpt import GPT, GPTConfig
from llmscratch.scientist.lora import (
    LoRALinear,
    add_lora,
    answer_loss,
    load_adapter,
    lora_layers,
    merge,
    remove_lora,
    save_adapter,
    tune,
    without_lora,
)
from llmscratch.scientist.tool_calls import Example, ToolCalls, chat_prompt, main, replies, smollm2, verdict


def llama(seed=0, bias=False, d=24, layers=2):
    """A small Llama of transformers, every parameter random."""
    config = LlamaConfig(
        vocab_size=60, hidden_size=d, intermediate_size=2 * d, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, attention_bias=bias, mlp_bias=bias, bos_token_id=None, eos_token_id=None,
        use_cache=False,
    )  # fmt: skip
    model, draw = LlamaForCausalLM(config), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=draw) * 0.2 + (p.ndim == 1))
    return model


def tokens(seed=0, B=3, T=9, V=60):
    return torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(seed))


def pair(rank, alpha, *, dropout=0.0, dora=False, bias=False, seed=0, **about):
    """Our model and peft's with the same weights, and a function that reads peft's tensors by our names."""
    ours, draw = llama(seed, bias), torch.Generator().manual_seed(seed + 1)
    names = add_lora(ours, rank, alpha, dropout=dropout, dora=dora, generator=draw)
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, use_dora=dora, target_modules="all-linear", **about
    )
    theirs = get_peft_model(llama(seed, bias), config)
    other = {}
    for name in names:
        mine, part = ours.get_submodule(name), theirs.base_model.model.get_submodule(name)
        other[f"{name}.A"], other[f"{name}.B"] = part.lora_A.default.weight, part.lora_B.default.weight
        if dora:
            other[f"{name}.magnitude"] = part.lora_magnitude_vector.default.weight
        with torch.no_grad():
            mine.B.normal_(0, 0.1, generator=draw)
            other[f"{name}.A"].copy_(mine.A)
            other[f"{name}.B"].copy_(mine.B)
    return ours, theirs, other


def learning(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def loss_of(model, ids):
    return F.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 30), st.floats(1, 64), st.booleans(), st.booleans(), st.integers(0, 1000))
def test_outputs_and_gradients_are_those_of_peft(rank, alpha, dora, bias, seed):
    ours, theirs, other = pair(rank, alpha, dora=dora, bias=bias, seed=seed)
    ids = tokens(seed)
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=1e-3, atol=1e-3)
    loss_of(ours, ids).backward()
    loss_of(theirs, ids).backward()
    assert learning(ours).keys() == other.keys()
    for name, p in learning(ours).items():
        largest = other[name].grad.abs().max().item()
        assert (p.grad - other[name].grad).abs().max().item() <= 2e-3 * largest + 1e-6, name


@pytest.mark.parametrize("dora", [False, True])
def test_ten_steps_are_those_of_peft(dora):
    ours, theirs, other = pair(4, 8.0, dora=dora)
    for model in (ours, theirs):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        for step in range(10):
            optimizer.zero_grad()
            loss_of(model, tokens(step)).backward()
            optimizer.step()
    for name, p in learning(ours).items():
        torch.testing.assert_close(p, other[name], rtol=1e-3, atol=1e-4, msg=name)


def test_dropout_is_that_of_peft_from_the_same_seed_and_off_in_evaluation():
    ours, theirs, _ = pair(4, 8.0, dropout=0.5)
    out = []
    for model in (ours.train(), theirs.train()):
        torch.manual_seed(3)
        out.append(model(tokens()).logits)
    torch.testing.assert_close(*out, rtol=1e-3, atol=1e-3)
    assert not torch.equal(ours(tokens()).logits, ours(tokens()).logits)
    assert torch.equal(ours.eval()(tokens()).logits, ours(tokens()).logits)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_merging_changes_no_output_and_removing_gives_the_old_model_back(dora, bias):
    ours, _, _ = pair(4, 8.0, dora=dora, bias=bias)
    before, ids = llama(bias=bias), tokens()
    with without_lora(ours):
        assert torch.equal(ours(ids).logits, before(ids).logits)
    merged = copy.deepcopy(ours)
    assert merge(merged) == list(lora_layers(ours)) and not lora_layers(merged)
    assert all(type(part) is nn.Linear for name, part in merged.named_modules() if name.endswith("_proj"))
    torch.testing.assert_close(merged(ids).logits, ours(ids).logits, rtol=1e-3, atol=1e-3)
    assert (ours(ids).logits - before(ids).logits).abs().max() > 0.1
    remove_lora(ours)
    assert torch.equal(ours(ids).logits, before(ids).logits)
    for (name, p), q in zip(before.named_parameters(), ours.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_without_lora_is_undone_after_an_error():
    ours, _, _ = pair(2, 4.0)
    with pytest.raises(RuntimeError), without_lora(ours):
        raise RuntimeError
    assert all(layer.enabled for layer in lora_layers(ours).values())


def test_merging_into_bfloat16_rounds_to_it_and_the_layer_keeps_the_models_dtype():
    linear = nn.Linear(16, 8, dtype=torch.bfloat16)
    layer = LoRALinear(linear, 2, generator=torch.Generator().manual_seed(0))
    nn.init.normal_(layer.B, std=0.1, generator=torch.Generator().manual_seed(1))
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(2)).bfloat16()
    assert layer(x).dtype == torch.bfloat16 and layer.A.dtype == torch.float32
    model = nn.Sequential(layer)
    merge(model)
    assert model[0].weight.dtype == torch.bfloat16
    torch.testing.assert_close(model(x), layer(x), rtol=0.05, atol=0.05)


def test_a_new_layer_is_in_the_mode_of_the_model(tmp_path):
    ours = llama().eval()
    add_lora(ours, 2, dropout=0.5, generator=torch.Generator().manual_seed(0))
    assert not any(part.training for part in ours.modules())
    save_adapter(tmp_path, ours)
    again = llama().eval()
    load_adapter(again, tmp_path)
    assert not any(part.training for part in again.modules())


def test_the_default_pattern_takes_the_blocks_and_leaves_the_head():
    ours = llama()
    names = add_lora(ours)
    assert len(names) == 14 and all(name.startswith("model.layers.") for name in names)
    assert set(learning(ours)) == {f"{name}.{part}" for name in names for part in "AB"}
    gpt = GPT(GPTConfig(50, 16, 2, 2, 32), torch.Generator().manual_seed(0))
    out = gpt(tokens(V=50))
    assert add_lora(gpt, pattern="attn") == ["h.0.attn.qkv", "h.0.attn.proj", "h.1.attn.qkv", "h.1.attn.proj"]
    assert torch.equal(gpt(tokens(V=50)), out)


def zero_row():
    linear = nn.Linear(3, 3)
    with torch.no_grad():
        linear.weight[1] = 0
    return linear


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LoRALinear(nn.Linear(3, 3), 0), "rank must be a whole number above 0, got 0"),
        (lambda: LoRALinear(nn.Linear(3, 3), 2.0), "rank must be a whole number above 0, got 2.0"),
        (lambda: LoRALinear(nn.Linear(3, 3), 2, dropout=1.0), "needs 0 ≤ dropout < 1"),
        (lambda: LoRALinear(nn.Linear(3, 3), 2, alpha=0.0), "a finite alpha above 0, got 0.0 and 0.0"),
        (lambda: LoRALinear(nn.Linear(3, 3), 2, alpha=float("nan")), "a finite alpha above 0"),
        (lambda: LoRALinear(zero_row(), 2, dora=True), "a row of zeros has no direction"),
        (lambda: tune(llama(), [([1], [2])] * 8, steps=0), "steps and warmup must be at least 1, got 0 and 5"),
        (lambda: tune(llama(), [([1], [2])] * 8, steps=3, warmup=0), "got 3 and 0"),
        (lambda: answer_loss(nn.Sequential(nn.Embedding(5, 5)), [([1], [2])]), "no norm before its head"),
        (lambda: nf4.use_nf4(llama(), "query"), "no nn.Linear matches 'query'"),
        (lambda: chat_prompt("Hi", "weather(city)"), "tools must be a list of strings"),
        (lambda: add_lora(llama(), pattern="query"), r"no linear layer matches 'query'; there are model\.layers\.0"),
        (lambda: add_lora(pair(2, 4.0)[0]), "has LoRALinears already, such as model.layers.0"),
        (lambda: tune(llama().requires_grad_(False), [([1], [2])] * 8, steps=1), "parameters that learn"),
        (lambda: tune(llama(), [([1], [2])], steps=1), "8 pairs"),
        (lambda: answer_loss(llama(), [([1, 2], [])]), "every pair must have a prompt and an answer"),
        (lambda: answer_loss(llama(), []), "there must be a pair"),
        (lambda: save_adapter("nowhere", llama()), "needs LoRALinears of one rank"),
        (lambda: nf4.quantize(torch.zeros(0)), "must have numbers"),
        (lambda: nf4.quantize(torch.tensor([1.0, float("nan")])), "all of them finite"),
        (lambda: nf4.quantize(torch.ones(4), block=3), "block must be an even number above 0, got 3"),
        (lambda: ToolCalls().examples("test", 1), "split must be train, entities"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Training on answers


@pytest.mark.parametrize("model", [llama(), GPT(GPTConfig(60, 32, 2, 4, 32), torch.Generator().manual_seed(0))])
def test_the_loss_scores_answers_only_whatever_the_padding(model):
    pairs = [([1, 2, 3], [4, 5]), ([6], [7, 8, 9, 10, 11, 12]), ([13] * 9, [14])]
    model.eval()
    total = 0.0
    for prompt, answer in pairs:
        out = model(torch.tensor([prompt + answer]))
        logits = getattr(out, "logits", out)[0, len(prompt) - 1 : -1]
        total = total + F.cross_entropy(logits, torch.tensor(answer), reduction="sum")
    torch.testing.assert_close(answer_loss(model, pairs), total / 9, rtol=1e-4, atol=1e-5)
    assert not any(part._forward_hooks for part in model.modules())


def test_tuning_learns_leaves_the_frozen_weights_and_is_the_same_from_the_same_seed():
    pairs = [([1, 2, i], [30 + i, 3]) for i in range(4, 20)]
    losses = []
    for _ in range(2):
        model = llama()
        frozen = {name: p.clone() for name, p in model.named_parameters()}
        add_lora(model, 4, generator=torch.Generator().manual_seed(0))
        losses.append(tune(model, pairs, steps=40, lr=1e-2, bf16=False, progress=False))
        with without_lora(model):
            assert torch.equal(model(tokens()).logits, llama()(tokens()).logits)
    assert losses[0] == losses[1] and len(losses[0]) == 40
    assert np.mean(losses[0][-5:]) < losses[0][0] / 3
    assert frozen and not model.training


# Adapters on disk


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_goes_to_disk_to_peft_and_back(tmp_path, dora):
    ours, _, _ = pair(4, 8.0, dora=dora)
    save_adapter(tmp_path, ours, base="small", notes={"seed": 0}, dtype=torch.float32)
    again = llama()
    assert load_adapter(again, tmp_path)["seed"] == 0
    assert torch.equal(again(tokens()).logits, ours(tokens()).logits)
    assert not any(p.requires_grad for name, p in again.named_parameters() if name.endswith("base.weight"))
    theirs = PeftModel.from_pretrained(llama(), tmp_path)
    torch.testing.assert_close(theirs(tokens()).logits, ours(tokens()).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_that_peft_wrote_is_read(tmp_path, dora):
    ours, theirs, _ = pair(4, 8.0, dora=dora)
    theirs.save_pretrained(tmp_path)
    again = llama()
    assert load_adapter(again, tmp_path) == {}
    torch.testing.assert_close(again(tokens()).logits, ours(tokens()).logits, rtol=1e-3, atol=1e-3)


class Own(nn.Module):
    """Linear layers under the course's own names."""

    def __init__(self, d=24):
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"attn": nn.Module(), "mlp": nn.Module()}) for _ in range(2))
        for layer in self.layers:
            for part, out in (("q", d), ("k", d // 2), ("v", d // 2), ("o", d)):
                setattr(layer["attn"], part, nn.Linear(d, out, bias=False))
            layer["mlp"].gate, layer["mlp"].up = nn.Linear(d, 2 * d, bias=False), nn.Linear(d, 2 * d, bias=False)
            layer["mlp"].down = nn.Linear(2 * d, d, bias=False)


def test_an_adapter_finds_the_layers_under_the_courses_own_names(tmp_path):
    ours, _, _ = pair(4, 8.0)
    save_adapter(tmp_path, ours, dtype=torch.float32)
    own = Own()
    load_adapter(own, tmp_path)
    assert len(lora_layers(own)) == 14
    assert torch.equal(own.layers[1].attn.q.A, ours.model.layers[1].self_attn.q_proj.A)


def spoiled(folder, how):
    file, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    if how == "bit":
        raw = bytearray(file.read_bytes())
        raw[-5] ^= 1
        file.write_bytes(raw)
    elif how == "cut":
        (folder / "notes.json").unlink()
        file.write_bytes(file.read_bytes()[:3000])
    elif how in ("half", "foreign"):
        (folder / "notes.json").unlink()
        weights = load_file(file)
        lost = weights.pop(next(key for key in weights if key.endswith("lora_B.weight")))
        save_file(weights | ({"base_model.model.head.modules_to_save.weight": lost} if how == "foreign" else {}), file)
    elif how in ("nan", "rank"):
        (folder / "notes.json").unlink()
        weights = load_file(file)
        key = next(key for key in weights if key.endswith("lora_A.weight"))
        save_file(weights | {key: weights[key] * float("nan") if how == "nan" else weights[key][:1].clone()}, file)
    elif how == "lack":
        config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "r"}))
    else:
        changed = {"rs": {"use_rslora": True}, "ia3": {"peft_type": "IA3"}, "dora": {"use_dora": True}}[how]
        config.write_text(json.dumps(json.loads(config.read_text()) | changed))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("bit", "damaged: its checksum"), ("cut", "truncated"), ("rs", "use_rslora"), ("half", "needs an A and a B"),
        ("foreign", "holds base_model.model.head.modules_to_save.weight, which is no part of a LoRALinear"),
        ("nan", "is not finite"), ("rank", "are not of rank 4"), ("lack", "lacks r"), ("ia3", "holds no LoRA, but IA3"),
        ("dora", "use_dora do not agree"),
    ],
)  # fmt: skip
def test_a_damaged_or_foreign_adapter_is_refused_and_the_model_untouched(tmp_path, how, message):
    save_adapter(tmp_path, pair(4, 8.0)[0])
    spoiled(tmp_path, how)
    model = llama()
    with pytest.raises(ValueError, match=message):
        load_adapter(model, tmp_path)
    assert not lora_layers(model) and torch.equal(model(tokens()).logits, llama()(tokens()).logits)


def test_an_adapter_for_another_model_is_refused(tmp_path):
    save_adapter(tmp_path, pair(4, 8.0)[0])
    with pytest.raises(
        ValueError, match=r"the model has no linear layer 'model\.layers\.0\.\S+ from \d+ to \d+ numbers"
    ):
        load_adapter(llama(d=32), tmp_path)
    with pytest.raises(ValueError, match=r"no linear layer 'layers\.1\.\S+ from"):
        load_adapter(llama(layers=1), tmp_path)
    model = pair(4, 8.0)[0]
    with pytest.raises(ValueError, match="has LoRALinears already"):
        load_adapter(model, tmp_path)


def test_a_refused_rank_leaves_the_model_learning():
    model = llama()
    with pytest.raises(ValueError, match="rank must be"):
        add_lora(model, 0)
    assert all(p.requires_grad for p in model.parameters())


def test_an_nf4_layer_learns_nothing():
    layer = nf4.NF4Linear(nn.Linear(64, 8))
    assert layer.bias is not None and not any(p.requires_grad for p in layer.parameters())


# NF4


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([2, 16, 64]), st.booleans(), st.integers(0, 99))
def test_nf4_keeps_the_shape_and_rounds_to_the_nearest_level(out, into, block, double, seed):
    weight = torch.randn(out, into, generator=torch.Generator().manual_seed(seed))
    packed = nf4.quantize(weight, block, double)
    got = nf4.dequantize(packed)
    assert got.shape == weight.shape and packed.codes.dtype == torch.uint8
    if not double:
        flat = F.pad(weight.flatten(), (0, -weight.numel() % block)).view(-1, block)
        levels = nf4.LEVELS * flat.abs().amax(1, keepdim=True)[..., None]  # (blocks, 1, 16)
        nearest = (flat[..., None] - levels).abs().amin(-1).flatten()[: weight.numel()]
        torch.testing.assert_close((got - weight).abs().flatten(), nearest, rtol=1e-4, atol=1e-6)


def test_nf4_by_scipy_and_by_the_published_numbers():
    from scipy.stats import norm

    end = 0.9677083333333333
    up, down = norm.ppf(np.linspace(end, 0.5, 9)[:-1]), -norm.ppf(np.linspace(end, 0.5, 8)[:-1])
    levels = np.sort([*up, 0.0, *down]) / up.max()
    np.testing.assert_allclose(nf4.LEVELS.numpy(), levels, atol=1e-6)
    assert nf4.LEVELS[[1, 7, 8, 14]].tolist() == pytest.approx([-0.6961928, 0.0, 0.0795803, 0.7229568], abs=1e-6)


def test_double_quantisation_costs_the_bits_of_the_paper_and_little_error():
    weight = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    one, two = nf4.quantize(weight, double=False), nf4.quantize(weight)
    assert 8 * one.nbytes / weight.numel() == pytest.approx(4.5, abs=1e-3)
    assert 8 * two.nbytes / weight.numel() == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-3)
    error = [(nf4.dequantize(packed) - weight).norm() / weight.norm() for packed in (one, two)]
    assert 0.05 < error[0] < 0.12 and error[1] < 1.05 * error[0]
    assert not nf4.dequantize(nf4.quantize(torch.zeros(300))).any()


def test_nf4_layers_learn_through_lora_and_keep_no_float_weight():
    model, plain = llama(), llama()
    names = nf4.use_nf4(model)
    assert len(names) == 14 and not any(p.requires_grad for n, p in model.named_parameters() if "_proj" in n)
    for name in names:
        plain.get_submodule(name).weight.data.copy_(model.get_submodule(name).weight)
    for model_ in (model, plain):
        add_lora(model_, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(tokens()).logits, plain(tokens()).logits, rtol=1e-4, atol=1e-4)
    loss_of(model, tokens()).backward()
    loss_of(plain, tokens()).backward()
    for (name, p), q in zip(learning(model).items(), learning(plain).values(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5, msg=name)
    merge(model)
    assert all(type(model.get_submodule(name)) is nn.Linear for name in names)


# Tool calls


def test_examples_are_seeded_balanced_and_kept_apart():
    calls = ToolCalls()
    train = calls.examples("train", 600)
    assert train == calls.examples("train", 600) and train != calls.examples("train", 600, seed=1)
    asked = [example.call["name"] if example.call else None for example in train]
    assert {asked.count(name) for name in set(asked) - {None}} == {50} and asked.count(None) == 100
    values = {str(value) for example in train if example.call for value in example.call["arguments"].values()}
    for split in ("entities", "phrasings", "tools", "words"):
        test = calls.examples(split, 200)
        assert not {example.question for example in test} & {example.question for example in train}
        for example in test:
            assert len(set(example.tools)) == 4 == len(example.tools)
            if example.call:
                assert calls.signature(example.call["name"]) in example.tools
                assert list(example.call["arguments"]) == calls.tools[example.call["name"]]["arguments"]
                new = [value for value in example.call["arguments"].values() if str(value) not in values]
                assert new, example  # at least one value that training never shows
        assert {"{" in example.question for example in test} == {False}
    assert {example.call["name"] for example in calls.examples("tools", 9)} == {"define", "taxi"}


WEATHER = Example("Rain?", ("weather(city)",), {"name": "weather", "arguments": {"city": "Oslo"}})


@pytest.mark.parametrize(
    ("reply", "want"),
    [
        ('{"name": "weather", "arguments": {"city": "Oslo"}}', "right"),
        ('{"arguments": {"city": "Oslo"}, "name": "weather"}', "right"),
        ("It rains.", "words, a call was wanted"),
        ('{"name": "weather", "arguments": {"city": "Oslo"', "broken JSON"),
        ('{"name": "clock", "arguments": {"city": "Oslo"}}', "another tool"),
        ('{"name": "weather", "arguments": {"town": "Oslo"}}', "other arguments"),
        ('{"name": "weather", "arguments": "Oslo"}', "other arguments"),
        ('{"name": "weather", "arguments": {"city": "oslo"}}', "another value"),
        ('{"name": "weather", "arguments": {"city": "Oslo"}, "more": 1}', "another value"),
        ('["weather"]', "words, a call was wanted"),
    ],
)
def test_verdicts(reply, want):
    assert verdict(WEATHER, reply) == want
    if want == "right":
        assert verdict(WEATHER._replace(call=None), reply) == "a call, words were wanted"


@pytest.fixture(scope="module")
def smol():
    return smollm2()


def test_smollm2_is_what_transformers_reads_from_the_same_file(smol):
    """Its next word, its digits one by one, its chat template; 4S 20 compares the weights with transformers'."""
    model, tokenizer = smol
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        assert tokenizer.decode([model(ids).logits[0, -1].argmax()]) == " Paris"
    assert tokenizer("In 1975").input_ids == tokenizer("In ").input_ids + [tokenizer(d).input_ids[0] for d in "1975"]
    text = "Grüße, 你好 — naïve\n\n  two  spaces\t1,024"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    messages = [{"role": "system", "content": "Tools: a(b), c(d). Call one as JSON, or answer in words."}]
    messages += [{"role": "user", "content": "Hi"}]
    want = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert chat_prompt("Hi", ["a(b)", "c(d)"]) == want


def test_the_shipped_adapter_does_what_its_notes_say(smol):
    model, tokenizer = smol
    folder = asset_file("checkpoints/smollm2_tools")
    assert (folder / "adapter_model.safetensors").stat().st_size < 10e6
    model = copy.deepcopy(model)
    notes = load_adapter(model, folder)
    card = asset_file("checkpoints/smollm2_tools.md").read_text(encoding="utf-8")
    assert notes["sha256"] in card
    merge(model)
    for split, n, at_least in (("entities", 20, 0.7), ("phrasings", 12, 0.4), ("words", 8, 0.75)):
        said = notes["right"][split].split(" of ")
        assert int(said[0]) / int(said[1]) >= at_least and notes["right"][split] in card
        test = ToolCalls().examples(split, n, seed=3)
        told = replies(model, tokenizer, [example.prompt for example in test])
        right = sum(verdict(example, reply) == "right" for example, reply in zip(test, told, strict=True))
        assert right >= at_least * n, (split, right, told)


def test_the_command_writes_an_adapter(tmp_path, capsys):
    main(["--out", str(tmp_path), "--steps", "1", "--batch", "1", "--tests", "0", "--rank", "2", "--threads", "1"])
    notes = json.loads((tmp_path / "notes.json").read_text())
    assert (
        notes["settings"]["rank"] == 2 and len(notes["losses"]) == 1 and re.fullmatch("[0-9a-f]{64}", notes["sha256"])
    )
