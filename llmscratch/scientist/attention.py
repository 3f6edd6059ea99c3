"""Scaled dot-product attention with masks, and multi-head self-attention."""

# Made from 02_for_scientist/03_attention.ipynb by `make export`: change the notebook, not this file.

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["MultiHeadAttention", "allowed_keys", "attention"]


def allowed_keys(n_queries, n_keys, *, mask=None, causal=False, device=None):
    """Which query may attend to which key: bool, broadcastable to (..., T, S), or None when all may.

    mask: bool, True = may be attended. causal: query t sees keys 0..t, and T must be S (with cached keys, pass a mask).
    Raises ValueError when the mask is no bool tensor or does not fit, or causal is asked for and T is not S.
    """
    if mask is not None:
        if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, torch.Tensor) else type(mask).__name__
            raise ValueError(f"mask must be a bool tensor, True where attention is allowed; got {got}")
        fits = zip(reversed(mask.shape), (n_keys, n_queries))
        if any(size not in (1, full) for size, full in fits):
            raise ValueError(f"mask must broadcast to (..., {n_queries}, {n_keys}); got {tuple(mask.shape)}")
    if not causal:
        return mask
    if n_queries != n_keys:
        raise ValueError(
            f"causal needs as many queries as keys; got {n_queries} and {n_keys}: pass a mask instead"
        )
    triangle = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device).tril()
    return triangle if mask is None else mask & triangle


def attention(q, k, v, *, mask=None, causal=False, dropout_p=0.0):
    """Scaled dot-product attention, step by step: softmax(q kᵀ / √d) v (Vaswani et al. 2017, equation 1).

    q (..., T, d), k (..., S, d), v (..., S, e), leading axes broadcast; mask, causal: as in allowed_keys; dropout_p:
    the share of weights set to 0 at random. Returns the output (..., T, e) and the weights (..., T, S) before dropout.
    A query that may attend to no key gets weights 0 and output 0, as in F.scaled_dot_product_attention.
    Scores are computed in float32 at least. Raises ValueError when types, shapes, the mask or dropout_p do not fit.
    """
    if not all(isinstance(t, torch.Tensor) for t in (q, k, v)):
        raise ValueError(f"q, k and v must be tensors; got {', '.join(type(t).__name__ for t in (q, k, v))}")
    shapes = f"got {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
    if min(q.ndim, k.ndim, v.ndim) < 2 or q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise ValueError(f"q must be (..., T, d), k (..., S, d) and v (..., S, e); {shapes}")
    if q.shape[-1] == 0:
        raise ValueError(f"q and k must have at least one entry, d >= 1; {shapes}")
    if not q.dtype == k.dtype == v.dtype or not q.is_floating_point():
        raise ValueError(
            f"q, k and v must have one floating-point dtype; got {q.dtype}, {k.dtype} and {v.dtype}"
        )
    allowed = allowed_keys(q.shape[-2], k.shape[-2], mask=mask, causal=causal, device=q.device)
    try:
        torch.broadcast_shapes(*(t.shape[:-2] for t in (q, k, v, mask) if t is not None))
    except RuntimeError as error:
        raise ValueError(f"the leading axes of q, k, v and mask must broadcast: {error}") from None
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p must be at least 0 and less than 1; got {dropout_p}")
    wide = torch.promote_types(q.dtype, torch.float32)  # float16 ends at 65,504
    scores = (q.to(wide) / q.shape[-1] ** 0.5) @ k.to(wide).mT  # (..., T, S)
    if allowed is not None:
        forbidden = ~allowed
        fill = -torch.inf if mask is None else torch.finfo(scores.dtype).min  # a causal row is never empty
        scores = scores.masked_fill(forbidden, fill)
    weights = scores.softmax(dim=-1).to(q.dtype)
    if mask is not None:
        weights = weights.masked_fill(forbidden, 0.0)  # a row without any key: the softmax gave each the same
    return F.dropout(weights, dropout_p) @ v, weights


class MultiHeadAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2.2), causal unless told otherwise.

    d_model: width C of the input and output. n_head: number of heads H, a divisor of d_model. dropout: the share of
    attention weights dropped in training. qkv.weight (3C, C) holds all rows of q, then of k, then of v, as GPT-2's
    c_attn does (transposed) and nn.MultiheadAttention's in_proj_weight; weights start as nn.Linear's.
    """

    def __init__(self, d_model, n_head, *, causal=True, bias=True, dropout=0.0):
        super().__init__()
        whole = isinstance(d_model, int) and isinstance(n_head, int)
        if not whole or d_model < 1 or n_head < 1 or d_model % n_head:
            raise ValueError(
                f"d_model must be a multiple of n_head, both positive integers; got {d_model} and {n_head}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and less than 1; got {dropout}")
        self.n_head, self.causal, self.dropout = n_head, causal, dropout
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=bias)
        self.proj = nn.Linear(d_model, d_model, bias=bias)

    def forward(self, x, mask=None, return_weights=False):
        """x (B, T, C) → (B, T, C); with return_weights also the weights (B, H, T, T), by way of `attention`.

        mask: bool, True = may be attended, 4 axes that broadcast to (B, H, T, T): keep[:, None, None] for a padding
        mask (B, T), allowed[None, None] for queries by keys (T, T). A query without any key contributes 0 before the
        projection. Raises ValueError for an x or a mask of other shapes.
        """
        if x.ndim != 3 or x.shape[-1] != self.proj.in_features:
            raise ValueError(f"x must be (B, T, {self.proj.in_features}); got {tuple(x.shape)}")
        B, T, C = x.shape
        full = (B, self.n_head, T, T)
        shape = tuple(mask.shape) if isinstance(mask, torch.Tensor) else full  # allowed_keys refuses other types
        if len(shape) != 4 or any(n not in (1, whole) for n, whole in zip(shape, full)):
            how = "keep[:, None, None] for a padding mask (B, T), allowed[None, None] for queries by keys (T, T)"
            raise ValueError(f"mask must have 4 axes and broadcast to {full}, as {how}; got {shape}")
        qkv = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, d) each
        dropout_p = self.dropout if self.training else 0.0
        if return_weights:
            out, weights = attention(q, k, v, mask=mask, causal=self.causal, dropout_p=dropout_p)
        elif mask is None:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, dropout_p=dropout_p)
        else:
            allowed = allowed_keys(T, T, mask=mask, causal=self.causal, device=x.device)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout_p)
        out = self.proj(out.transpose(1, 2).reshape(B, T, C))  # heads side by side
        return (out, weights) if return_weights else out
