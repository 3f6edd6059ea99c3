"""Parity of `scientist.gpt` with transformers' GPT-2, on random weights of random shapes; its formulas; its errors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from llmscratch.kit.packages import DataUnavailable
from llmscratch.scientist.gpt import GPT, GPTConfig, from_pretrained, from_state_dict

ROOT = Path(__file__).resolve().parent.parent


def transformers_gpt2(config: GPTConfig, seed=0, kind=GPT2LMHeadModel, **options):
    """transformers' model with the same sizes, every parameter random."""
    about = GPT2Config(
        vocab_size=config.vocab_size, n_positions=config.context, n_embd=config.d_model, n_layer=config.n_layer,
        n_head=config.n_head, bos_token_id=None, eos_token_id=None, **options,
    )  # fmt: skip
    theirs, draw = kind(about).eval(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            scale = p.ndim == 1 and name.endswith("weight")
            p.copy_(torch.randn(p.shape, generator=draw) * 0.2 + scale)
    return theirs


def ids(config, B, T, seed=0):
    return torch.randint(0, config.vocab_size, (B, T), generator=torch.Generator().manual_seed(seed))


SMALL = GPTConfig(vocab_size=50, context=16, n_layer=2, n_head=4, d_model=32)

sizes = st.builds(
    lambda V, context, L, H, d: GPTConfig(V, context, L, H, H * d),
    st.integers(2, 200), st.integers(1, 40), st.integers(1, 4), st.integers(1, 6), st.integers(1, 16),
)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(sizes, st.integers(0, 1000))
def test_logits_loss_and_gradients_are_those_of_transformers(config, seed):
    theirs = transformers_gpt2(config, seed)
    ours = from_state_dict(theirs.state_dict(), config.n_head)
    assert ours.config == config
    tokens = ids(config, 2, config.context, seed)
    our_logits, their_logits = ours(tokens), theirs(tokens).logits
    scale = their_logits.abs().max()
    torch.testing.assert_close(our_logits / scale, their_logits / scale, rtol=0, atol=1e-4)
    targets = ids(config, 2, config.context, seed + 1)
    loss = F.cross_entropy(their_logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(ours.loss(tokens, targets), loss, rtol=1e-4, atol=1e-5)
    ours.loss(tokens, targets).backward()
    loss.backward()
    expected = from_state_dict(  # the gradients take the same way as the weights
        {name: p.grad for name, p in theirs.named_parameters()}, config.n_head
    )
    for (name, p), q in zip(ours.named_parameters(), expected.parameters(), strict=True):
        largest = q.abs().max().item()
        assert (p.grad - q).abs().max().item() <= 1e-3 * largest + 1e-5, name


@settings(max_examples=25, deadline=None)
@given(sizes)
def test_parameters_by_formula_are_those_counted(config):
    assert sum(p.numel() for p in GPT(config).parameters()) == config.n_parameters


@pytest.mark.parametrize("T", [1, 7, 16])
def test_operations_by_formula_are_those_counted(T):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    model, tokens = GPT(SMALL), ids(SMALL, 3, T)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward, torch.no_grad():
        model(tokens)
    assert forward.get_total_flops() == 3 * SMALL.flops(T, training=False)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as both:
        model.loss(tokens, tokens).backward()
    assert both.get_total_flops() == 3 * SMALL.flops(T)
    assert SMALL.flops() == SMALL.flops(16)


@pytest.mark.parametrize("seed", range(5))
def test_greedy_text_is_that_of_transformers(seed):
    theirs = transformers_gpt2(SMALL, seed)
    ours = from_state_dict(theirs.state_dict(), 4)
    start = ids(SMALL, 3, 2, seed)
    expected = theirs.generate(start, max_new_tokens=14, do_sample=False, pad_token_id=0)
    assert torch.equal(ours.generate(start, 14, temperature=0), expected)


def test_weights_with_and_without_a_head_and_with_stored_masks():
    headed = transformers_gpt2(SMALL)
    bare = transformers_gpt2(SMALL, kind=GPT2Model)
    want = from_state_dict(headed.state_dict(), 4)(ids(SMALL, 1, 9))
    assert torch.equal(from_state_dict(bare.state_dict(), 4)(ids(SMALL, 1, 9)), want)
    old = dict(headed.state_dict())
    old |= {
        "transformer.h.0.attn.bias": torch.ones(1, 1, 16, 16).tril(),
        "transformer.h.0.attn.masked_bias": torch.ones(()),
    }
    assert torch.equal(from_state_dict(old, 4)(ids(SMALL, 1, 9)), want)


def test_weights_that_do_not_fit_are_refused():
    weights = transformers_gpt2(SMALL).state_dict()
    without = {name: t for name, t in weights.items() if not name.endswith("h.1.mlp.c_fc.bias")}
    with pytest.raises(
        ValueError, match=r"do not fit a GPT-2 of 2 blocks, 32 wide: .*Missing key.*h\.1\.mlp\.c_fc\.bias"
    ):
        from_state_dict(without, 4)
    with pytest.raises(ValueError, match=r"Unexpected key.*score\.weight"):
        from_state_dict(weights | {"score.weight": torch.ones(2, 32)}, 4)
    with pytest.raises(ValueError, match="untied head"):
        from_state_dict(weights | {"lm_head.weight": weights["lm_head.weight"] + 1}, 4)
    with pytest.raises(ValueError, match="not the weights of a GPT-2, which has wte.weight"):
        from_state_dict({"a": torch.ones(1)}, 4)
    with pytest.raises(ValueError, match="32 cannot be shared among 5 heads"):
        from_state_dict(weights, 5)


def test_a_folder_of_transformers_is_read(tmp_path):
    theirs = transformers_gpt2(SMALL)
    theirs.save_pretrained(tmp_path)
    tokens = ids(SMALL, 2, 16)
    assert torch.equal(from_pretrained(tmp_path)(tokens), from_state_dict(theirs.state_dict(), 4)(tokens))


@pytest.mark.parametrize(
    "option", [{"activation_function": "relu"}, {"scale_attn_by_inverse_layer_idx": True}, {"layer_norm_epsilon": 1e-3}]
)
def test_a_gpt2_with_other_options_is_refused(tmp_path, option):
    transformers_gpt2(SMALL, **option).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is no GPT-2 that fits: its "):
        from_pretrained(tmp_path)


def test_another_architecture_is_refused(tmp_path):
    from transformers import BertConfig

    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is no GPT-2 that fits: its model_type is 'bert'"):
        from_pretrained(tmp_path)


def spoil(weights, how):
    name = "transformer.h.1.mlp.c_fc.weight"
    if how == "missing":
        return {key: tensor for key, tensor in weights.items() if key != name}
    if how == "foreign":
        return {"x": torch.zeros(3)}
    return weights | ({name: torch.zeros(3, 3)} if how == "shape" else {"score.weight": torch.zeros(2, 32)})


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"Missing key.*h\.1\.mlp\.c_fc\.weight"),
        ("shape", r"size mismatch for h\.1\.mlp\.c_fc\.weight"),
        ("foreign", "not the weights of a GPT-2"),
        ("more", r"Unexpected key.*score\.weight"),
    ],
)
def test_a_folder_whose_weights_are_not_whole_is_refused_not_filled_up(tmp_path, how, message):
    transformers_gpt2(SMALL).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(spoil(load_file(file), how), file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        from_pretrained(tmp_path)


def test_a_folder_without_weights_or_with_broken_ones_says_so(tmp_path):
    theirs = transformers_gpt2(SMALL)
    theirs.config.save_pretrained(tmp_path)
    with pytest.raises(DataUnavailable, match="could not be had .*safetensors"):
        from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(DataUnavailable, match="could not be had"):
        from_pretrained(tmp_path)


HUB = """
import time
time.sleep = lambda seconds: None  # the Hub's client waits between its tries
from llmscratch.kit.packages import DataUnavailable
from llmscratch.scientist.gpt import from_pretrained
try:
    from_pretrained("gpt2")
except DataUnavailable as error:
    print(error)
"""


def test_the_hub_without_a_network_says_what_why_and_what_instead(tmp_path):
    env = os.environ | {"HF_HOME": str(tmp_path), "PYTHONPATH": f"{ROOT / 'tests' / 'offline'}:{ROOT}"}
    done = subprocess.run([sys.executable, "-c", HUB], env=env, capture_output=True, text=True, check=True)
    assert "asked for the GPT-2 'gpt2' from a folder or the Hugging Face Hub; it could not be had" in done.stdout
    assert "We couldn't connect" in done.stdout and "no lesson needs the Hub" in done.stdout
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 30}, "d_model 30 cannot be shared among 4 heads"),
        ({"n_layer": 0}, "n_layer must be a whole number above 0, got 0"),
        ({"n_layer": True}, "n_layer must be a whole number above 0, got True"),
        ({"context": 2.5}, "context must be a whole number above 0, got 2.5"),
        ({"vocab_size": "50"}, "vocab_size must be a whole number above 0, got '50'"),
        ({"dropout": 1.0}, "dropout is a probability"),
    ],
)
def test_impossible_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**({"vocab_size": 50, "context": 16, "n_layer": 2, "n_head": 4, "d_model": 32} | change))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(1, 17, dtype=torch.long), "a sequence of 17 tokens is longer than the context, 16"),
        (torch.tensor([[1, 50]]), "token ids must be from 0 to 49, got 1 to 50"),
        (torch.tensor([[-1, 3]]), "token ids must be from 0 to 49, got -1 to 3"),
        (torch.tensor([1, 2]), r"tokens must be integers \(B, T\).*got torch.int64 \(2,\)"),
        (torch.ones(1, 2), r"tokens must be integers.*got torch.float32 \(1, 2\)"),
        (torch.zeros(2, 0, dtype=torch.long), r"B and T > 0, got torch.int64 \(2, 0\)"),
    ],
)
def test_impossible_tokens_are_refused(tokens, message):
    with pytest.raises(ValueError, match=message):
        GPT(SMALL)(tokens)


def test_generation_is_seeded_keeps_the_mode_and_slides_its_window():
    model = GPT(GPTConfig(50, 16, 2, 4, 32, dropout=0.5), torch.Generator().manual_seed(0)).train()
    start = ids(SMALL, 2, 3)
    first, again = (model.generate(start, 20, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again) and first.shape == (2, 23) and torch.equal(first[:, :3], start)
    assert model.training and not any(p.grad is not None for p in model.parameters())
    assert torch.equal(model.generate(start, 4, top_k=1), model.generate(start, 4, temperature=0))
    model.h[0].eval()
    with pytest.raises(ValueError, match="token ids"):
        model.generate(torch.tensor([[99]]), 1)
    assert model.training and model.h[1].training and not model.h[0].training
    for wrong in ({"temperature": -1}, {"top_k": 0}):
        with pytest.raises(ValueError, match="temperature must be at least 0 and top_k at least 1"):
            model.generate(start, 1, **wrong)


def test_top_k_draws_from_the_k_likeliest_only():
    model = GPT(SMALL, torch.Generator().manual_seed(0)).eval()
    start = ids(SMALL, 1, 5)
    with torch.no_grad():
        likeliest = set(model(start)[0, -1].topk(3).indices.tolist())
    drawn = model.generate(
        start.expand(300, -1), 1, temperature=5.0, top_k=3, generator=torch.Generator().manual_seed(0)
    )
    assert set(drawn[:, -1].tolist()) == likeliest


def test_generated_frequencies_follow_the_tempered_distribution():
    model = GPT(GPTConfig(5, 4, 1, 1, 8), torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        model.wte.weight.mul_(40)
        p = (model(torch.tensor([[1, 2]]))[0, -1] / 1.5).softmax(0)
    drawn = model.generate(
        torch.tensor([[1, 2]]).expand(20_000, -1), 1, temperature=1.5, generator=torch.Generator().manual_seed(0)
    )
    share = torch.bincount(drawn[:, -1], minlength=5) / 20_000
    assert (share - p).abs().max() < 0.02  # more than five standard errors


def test_the_start_is_seeded_and_scaled():
    config = GPTConfig(100, 64, 8, 2, 128)
    one, two = (GPT(config, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert one.h[0].mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.05)
    for weight in (one.h[3].mlp.c_proj.weight, one.h[3].attn.proj.weight):
        assert weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert not one.h[0].attn.qkv.bias.any()


def test_dropout_acts_in_training_only():
    model = GPT(GPTConfig(50, 16, 2, 4, 32, dropout=0.5), torch.Generator().manual_seed(0))
    tokens = ids(SMALL, 1, 8)
    assert not torch.equal(model.train()(tokens), model(tokens))
    assert torch.equal(model.eval()(tokens), model(tokens))


def test_targets_of_another_shape_are_refused():
    tokens = ids(SMALL, 2, 8)
    with pytest.raises(ValueError, match=r"shaped like tokens, \(2, 8\), got \(8, 2\)"):
        GPT(SMALL).loss(tokens, tokens.T)


def test_targets_of_minus_100_do_not_count():
    model, tokens = GPT(SMALL, torch.Generator().manual_seed(0)), ids(SMALL, 2, 8)
    targets = ids(SMALL, 2, 8, seed=1)
    targets[:, :5] = -100
    torch.testing.assert_close(
        model.loss(tokens, targets), F.cross_entropy(model(tokens)[:, 5:].flatten(0, 1), targets[:, 5:].flatten())
    )
