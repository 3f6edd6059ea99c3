"""4S 03: attention equals torch's for any shapes and masks, gradients included, and bad input gets a message."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from llmscratch.scientist.attention import MultiHeadAttention, allowed_keys, attention

DTYPES = [(torch.float32, 2e-5), (torch.float64, 1e-10)]
SIZES = st.tuples(*(st.integers(1, 5) for _ in range(6)))


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def results(function, tensors, d_out):
    """The output and the gradients of all tensors, in a list."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    out = function(*leaves)
    (out * d_out).sum().backward()
    return [out.detach(), *(t.grad for t in leaves)]


def twin(ours, dtype):
    """nn.MultiheadAttention with the weights of ours."""
    bias = ours.qkv.bias is not None
    theirs = nn.MultiheadAttention(ours.proj.in_features, ours.n_head, bias=bias, batch_first=True, dtype=dtype)
    state = {"in_proj_weight": ours.qkv.weight, "out_proj.weight": ours.proj.weight}
    if bias:
        state |= {"in_proj_bias": ours.qkv.bias, "out_proj.bias": ours.proj.bias}
    theirs.load_state_dict(state)
    return theirs


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(SIZES, st.sampled_from(["none", "causal", "random", "both"]), st.integers(0, 10_000))
def test_equals_sdpa_with_gradients(dtype, tolerance, sizes, kind, seed):
    B, H, T, S, d, e = sizes
    S = T if kind in ("causal", "both") else S
    q, k = (random(B, H, n, d, seed=seed + n, dtype=dtype) for n in (T, S))
    v, d_out = random(B, H, S, e, seed=seed + 7, dtype=dtype), random(B, H, T, e, seed=seed + 8, dtype=dtype)
    some = torch.rand(B, 1, T, S, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask = some if kind in ("random", "both") else None
    causal = kind in ("causal", "both")
    theirs_mask = mask & torch.ones(T, S, dtype=torch.bool).tril() if kind == "both" else mask
    ours = results(lambda q, k, v: attention(q, k, v, mask=mask, causal=causal)[0], (q, k, v), d_out)
    theirs = results(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=theirs_mask, is_causal=kind == "causal"),
        (q, k, v), d_out,
    )  # fmt: skip
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_equals_multihead_attention_with_gradients(dtype, tolerance, causal, bias, padded):
    ours = MultiHeadAttention(12, 3, causal=causal, bias=bias).to(dtype)
    theirs = twin(ours, dtype)
    keep = torch.arange(7) < torch.tensor([7, 4, 1, 6])[:, None] if padded else torch.ones(4, 7, dtype=torch.bool)
    x, d_out = random(4, 7, 12, seed=1, dtype=dtype), random(4, 7, 12, seed=2, dtype=dtype) * keep[:, :, None]
    future = torch.ones(7, 7, dtype=torch.bool).triu(1) if causal else None
    ours_mask, theirs_mask = (keep[:, None, None], ~keep) if padded else (None, None)
    a = results(lambda x: ours(x, mask=ours_mask), [x], d_out)
    b = results(
        lambda x: theirs(x, x, x, key_padding_mask=theirs_mask, attn_mask=future, need_weights=False)[0], [x], d_out
    )
    a[0], b[0] = a[0][keep], b[0][keep]
    a += [p.grad for p in ours.parameters()]
    b += [theirs.in_proj_weight.grad] + ([theirs.in_proj_bias.grad] if bias else [])
    b += [p.grad for p in theirs.out_proj.parameters()]
    for ours_part, theirs_part in zip(a, b, strict=True):
        torch.testing.assert_close(ours_part, theirs_part, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("mask", [None, "keys", "full"])
@pytest.mark.parametrize("causal", [True, False])
def test_the_fused_way_equals_the_explicit_one(mask, causal):
    layer = MultiHeadAttention(8, 2, causal=causal).double()
    x, generator = random(3, 5, 8), torch.Generator().manual_seed(0)
    shape = {"keys": (3, 1, 1, 5), "full": (3, 1, 5, 5)}.get(mask)
    mask = torch.rand(shape, generator=generator) < 0.6 if shape else None
    fused = layer(x, mask=mask)
    explicit, weights = layer(x, mask=mask, return_weights=True)
    torch.testing.assert_close(fused, explicit, rtol=1e-10, atol=1e-12)
    assert weights.shape == (3, 2, 5, 5)
    sums = weights.sum(dim=-1)
    assert torch.logical_or((sums - 1).abs() < 1e-9, sums == 0).all()
    if causal:
        assert (weights.triu(1) == 0).all()


def test_a_query_without_keys_gets_zeros_and_finite_gradients():
    q, k, v = (random(1, 3, 4, seed=i).requires_grad_() for i in range(3))
    mask = torch.ones(3, 3, dtype=torch.bool)
    mask[1] = False
    out, weights = attention(q, k, v, mask=mask)
    assert (out[:, 1] == 0).all() and (weights[:, 1] == 0).all()
    out.sum().backward()
    assert all(t.grad.isfinite().all() for t in (q, k, v))
    assert (q.grad[:, 1] == 0).all()


def test_the_future_does_not_reach_the_past():
    layer = MultiHeadAttention(8, 4).double()
    x = random(2, 6, 8)
    for place in range(6):
        changed = x.clone()
        changed[:, place] += 1
        moved = ((layer(changed) - layer(x)).abs() > 1e-12).any(dim=-1)
        assert not moved[:, :place].any() and moved[:, place].all()


def test_padding_changes_nothing_for_the_rest():
    layer = MultiHeadAttention(8, 2, causal=False).double()
    x = random(2, 6, 8)
    keep = torch.arange(6) < 4
    torch.testing.assert_close(layer(x, mask=keep[None, None, None])[:, :4], layer(x[:, :4]), rtol=1e-10, atol=1e-12)


def test_large_scores_stay_finite():
    q = torch.tensor([[1e4, 0.0]])
    out, weights = attention(q, torch.tensor([[1e4, 0.0], [-1e4, 0.0]]), torch.tensor([[1.0], [2.0]]))
    assert weights.tolist() == [[1.0, 0.0]] and out.item() == 1.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_equals_sdpa_where_float16_scores_would_overflow(dtype):
    same, opposite = torch.full((3, 64), 33.0, dtype=dtype), torch.full((3, 64), -33.0, dtype=dtype)
    v = torch.tensor([[0.0], [1.0], [2.0]], dtype=dtype)
    for k in (same, opposite, 6 * opposite):
        out, weights = attention(same, k, v, causal=True)
        theirs = F.scaled_dot_product_attention(same[None], k[None], v[None], is_causal=True)[0]
        assert out.dtype == weights.dtype == dtype
        torch.testing.assert_close(out, theirs, rtol=0, atol=0)
        assert (weights.triu(1) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_causal_weights_never_reach_the_future_however_large_the_scores(dtype):
    q = torch.full((3, 4), torch.finfo(dtype).max, dtype=dtype)  # float32: scores beyond its largest number
    _, weights = attention(q, -q, q, causal=True)
    assert not (weights.triu(1) > 0).any()
    changed = q.clone()
    changed[2] = 0
    assert torch.equal(attention(q, -changed, q, causal=True)[1][:2].isnan(), weights[:2].isnan())
    assert not (attention(q, -changed, q, causal=True)[1].triu(1) > 0).any()
    _, masked = attention(q, -q, q, mask=torch.ones(3, 3, dtype=torch.bool).tril())
    assert not (masked.triu(1) > 0).any()


def test_equals_the_attention_of_gpt2():
    gpt2 = pytest.importorskip("transformers.models.gpt2.modeling_gpt2")
    config = gpt2.GPT2Config(n_embd=32, n_head=4, n_positions=16, attn_pdrop=0.0, resid_pdrop=0.0)
    config._attn_implementation = "eager"
    theirs, ours = gpt2.GPT2Attention(config, layer_idx=0), MultiHeadAttention(32, 4)
    with torch.no_grad():
        theirs.c_attn.bias.copy_(random(96, seed=5))
        for mine, conv in ((ours.qkv, theirs.c_attn), (ours.proj, theirs.c_proj)):
            mine.weight.copy_(conv.weight.T)
            mine.bias.copy_(conv.bias)
        x = random(2, 9, 32, dtype=torch.float32)
        future = torch.full((9, 9), -torch.inf).triu(1)[None, None]
        torch.testing.assert_close(ours(x), theirs(x, attention_mask=future)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_nothing_changes_its_dtype(dtype):
    layer = MultiHeadAttention(8, 2).to(dtype)
    x = torch.ones(1, 4, 8, dtype=dtype)
    out, weights = layer(x, return_weights=True)
    masked = layer(x, mask=torch.ones(1, 1, 1, 4, dtype=torch.bool))
    assert {out.dtype, weights.dtype, layer(x).dtype, masked.dtype} == {dtype}


def test_dropout_only_in_training():
    layer = MultiHeadAttention(8, 2, dropout=0.5).double()
    x = random(2, 6, 8)
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    layer.train()
    assert not torch.equal(layer(x), layer(x))
    assert not torch.equal(layer(x, return_weights=True)[0], layer(x, return_weights=True)[0])
    q, k = random(2000, 1, 4), random(2000, 9, 4, seed=1)
    v = torch.ones(2000, 9, 1, dtype=torch.float64)
    out, weights = attention(q, k, v, dropout_p=0.3)  # the mean stays: kept weights are divided by 0.7
    assert abs(out.mean().item() - 1) < 0.05 and out.std() > 0.1
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2000, 1, dtype=torch.float64))


def test_leading_axes_broadcast():
    q, k, v = random(2, 3, 4, 5), random(4, 5, seed=1), random(4, 6, seed=2)
    out, weights = attention(q, k, v, mask=torch.ones(4, dtype=torch.bool), causal=True)
    assert out.shape == (2, 3, 4, 6) and weights.shape == (2, 3, 4, 4)


def test_can_be_copied_saved_and_seen():
    layer = MultiHeadAttention(8, 2)
    x = random(1, 3, 8, dtype=torch.float32)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))
    assert list(layer.state_dict()) == ["qkv.weight", "qkv.bias", "proj.weight", "proj.bias"]
    assert sum(p.numel() for p in layer.parameters()) == 4 * 8 * 8 + 4 * 8
    assert MultiHeadAttention(8, 2, bias=False).qkv.bias is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: attention(t, t[:, :3], t), r"got \(4, 6\), \(4, 3\) and \(4, 6\)"),
        (lambda t: attention(t, t, t[:3]), r"v \(\.\.\., S, e\); got"),
        (lambda t: attention(t[0], t, t), "q must be"),
        (lambda t: attention(t, t.float(), t), "one floating-point dtype; got torch.float64, torch.float32"),
        (lambda t: attention(t.long(), t.long(), t.long()), "one floating-point dtype"),
        (lambda t: attention(t, t, t, dropout_p=1.0), "less than 1; got 1.0"),
        (lambda t: attention(t, t, t, mask=torch.ones(4, 4)), "mask must be a bool tensor"),
        (lambda t: attention(t, t, t, mask=[[True] * 4] * 4), "mask must be a bool tensor.*; got list"),
        (lambda t: attention(t.tolist(), t, t), "must be tensors; got list, Tensor, Tensor"),
        (lambda t: attention(t[:, :0], t[:, :0], t), "at least one entry"),
        (lambda t: attention(t, t, t, mask=torch.ones(4, 3, dtype=torch.bool)), r"broadcast to \(\.\.\., 4, 4\)"),
        (lambda t: attention(t[:2], t, t, causal=True), "as many queries as keys; got 2 and 4"),
        (lambda t: attention(random(2, 4, 6), random(3, 4, 6), random(3, 4, 6)), "leading axes"),
        (lambda t: attention(t, t, t, mask=torch.ones(2, 1, 4, dtype=torch.bool)), None),
        (lambda t: attention(random(2, 4, 6), t, t, mask=torch.ones(3, 4, 4, dtype=torch.bool)), "leading axes"),
    ],
)
def test_bad_arguments_of_attention_are_named(make, message):
    t = random(4, 6)
    if message is None:
        make(t)
        return
    with pytest.raises(ValueError, match=message):
        make(t)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiHeadAttention(10, 3), "a multiple of n_head, both positive integers; got 10 and 3"),
        (lambda: MultiHeadAttention(8, 2.0), "both positive integers; got 8 and 2.0"),
        (lambda: MultiHeadAttention(0, 1), "both positive"),
        (lambda: MultiHeadAttention(8, 0), "both positive"),
        (lambda: MultiHeadAttention(8, 2, dropout=1.0), "dropout must be"),
        (lambda: MultiHeadAttention(8, 2)(torch.ones(2, 8)), r"x must be \(B, T, 8\); got \(2, 8\)"),
        (lambda: MultiHeadAttention(8, 2)(torch.ones(2, 3, 6)), r"x must be \(B, T, 8\)"),
        (lambda: MultiHeadAttention(8, 2)(torch.ones(2, 3, 8), mask=torch.ones(2, 1, 1, 3)), "mask must be a bool"),
        (lambda: MultiHeadAttention(8, 2)(torch.ones(2, 3, 8), mask=[[True] * 3] * 2), "bool tensor.*; got list"),
    ],
)
def test_bad_arguments_of_the_layer_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("shape", [(2, 3), (3, 3), (3, 2), (2, 3, 3), (3, 1, 3, 3), (2, 3, 3, 3), (1, 1, 2, 3), (3,)])
@pytest.mark.parametrize("B", [2, 3])
@pytest.mark.parametrize("weights", [True, False])
def test_masks_of_other_shapes_are_refused_both_ways(shape, B, weights):
    if shape[0] == B == 3 and len(shape) == 4 and shape[1] == 1:
        return  # this one fits
    layer, mask = MultiHeadAttention(8, 2), torch.ones(shape, dtype=torch.bool)
    with pytest.raises(ValueError, match=rf"mask must have 4 axes and broadcast to \({B}, 2, 3, 3\)"):
        layer(torch.ones(B, 3, 8), mask=mask, return_weights=weights)


def test_allowed_keys():
    assert allowed_keys(3, 3) is None
    assert torch.equal(allowed_keys(3, 3, causal=True), torch.ones(3, 3, dtype=torch.bool).tril())
    keep = torch.tensor([[True, True, False]])
    assert allowed_keys(3, 3, mask=keep, causal=True).tolist() == [
        [True, False, False], [True, True, False], [True, True, False],
    ]  # fmt: skip
    assert torch.equal(allowed_keys(2, 3, mask=keep), keep)
