"""Llama, grown from GPT one change at a time, and the real SmolLM2-135M-Instruct in it."""

# Made from 02_for_scientist/20_llama.ipynb by `make export`: change the notebook, not this file.

from dataclasses import astuple, dataclass

import torch
from torch import nn
from torch.nn import functional as F

from llmscratch.kit import smollm2_file
from llmscratch.scientist.gguf import GGUF, ChatTokenizer

__all__ = ["Attention", "KVCache", "Layer", "Llama", "LlamaConfig", "PARTS", "SwiGLU", "load", "rotate", "rotation"]


def rotation(positions, d_head, base=10_000.0):
    """cos and sin, (T, d/2) each, of the angles p · base^(−2i/d) for positions p (T,) and pairs i (Su et al. 2021)."""
    speed = 1.0 / base ** (torch.arange(0, d_head, 2, device=positions.device) / d_head)
    angle = positions[:, None] * speed
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    """x (…, T, d) with each pair (x[i], x[i + d/2]) turned by its angle; cos, sin: (T, d/2), from `rotation`."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


@dataclass(frozen=True)
class LlamaConfig:
    """The sizes of a Llama, the base of its rotary positions and the ε of its norms. ValueError when they are unfit."""

    vocab_size: int
    context: int
    n_layer: int
    n_head: int
    n_kv_head: int
    d_model: int
    d_ff: int
    rope_base: float = 10_000.0
    eps: float = 1e-5

    def __post_init__(self):
        if any(type(n) is not int or n < 1 for n in astuple(self)[:7]) or min(self.rope_base or 0, self.eps or 0) <= 0:
            raise ValueError(f"sizes must be whole numbers above 0, base and ε above 0: {self}")
        if self.d_model % (2 * self.n_head) or self.n_head % self.n_kv_head:
            raise ValueError(f"each head must be of even width, and n_kv_head a divisor of n_head: {self}")

    @property
    def d_head(self):
        """The width of a head."""
        return self.d_model // self.n_head


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)), C → d_ff → C (Shazeer 2020)."""

    def __init__(self, config):
        super().__init__()
        self.gate, self.up = (nn.Linear(config.d_model, config.d_ff, bias=False) for _ in range(2))
        self.down = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class KVCache:
    """Keys and values of `length` tokens read so far; lower it to forget the last ones. They carry no gradient."""

    def __init__(self, config, batch=1):
        self.batch, self.length, self._context = batch, 0, config.context
        self._kept = [torch.empty(2, batch, config.n_kv_head, 0, config.d_head)] * config.n_layer

    def append(self, layer, k, v):
        """Keep k, v (B, n_kv_head, T, d) after a layer's first `length`; returns (2, B, n_kv_head, length + T, d)."""
        kept, end = self._kept[layer], self.length + k.shape[2]
        if kept.shape[3] < end:  # double the room
            more = k.new_empty(2, *k.shape[:2], min(end, self._context - self.length), k.shape[3])
            self._kept[layer] = kept = torch.cat([kept[:, :, :, : self.length].to(more), more], dim=3)
        kept[0, :, :, self.length : end], kept[1, :, :, self.length : end] = k.detach(), v.detach()
        return kept[:, :, :, :end]

    def select(self, rows):
        """Keep these rows of the batch (their numbers, perhaps repeated), in this order, as beam search needs it."""
        self._kept, self.batch = [kept[:, rows] for kept in self._kept], len(rows)


class Attention(nn.Module):
    """Causal attention, rotary positions; n_head / n_kv_head queries share a key and a value (Ainslie et al. 2023)."""

    def __init__(self, config):
        super().__init__()
        self.d_head, wide, narrow = config.d_head, config.d_model, config.n_kv_head * config.d_head
        self.q, self.o = nn.Linear(wide, wide, bias=False), nn.Linear(wide, wide, bias=False)
        self.k, self.v = nn.Linear(wide, narrow, bias=False), nn.Linear(wide, narrow, bias=False)

    def forward(self, x, cos, sin, cache=None, layer=0):
        """x (B, T, C) → (B, T, C); cos, sin: of the positions of x; the cache has the keys and values before them."""
        B, T, C = x.shape
        q, k, v = (linear(x).view(B, T, -1, self.d_head).transpose(1, 2) for linear in (self.q, self.k, self.v))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)  # (B, n_head, T, d), (B, n_kv_head, T, d)
        if cache is not None:
            k, v = cache.append(layer, k, v)  # (B, n_kv_head, S, d)
        S = k.shape[2]  # the new token t stands at S − T + t
        seen = torch.ones(T, S, dtype=torch.bool, device=x.device).tril(S - T) if 1 < T < S else None
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=T == S, enable_gqa=True)
        return self.o(out.transpose(1, 2).reshape(B, T, C))


class Layer(nn.Module):
    """Attention, then SwiGLU; each reads a copy of x (B, T, C) divided by its root mean square, and adds to x."""

    def __init__(self, config):
        super().__init__()
        self.attn_norm, self.attn = nn.RMSNorm(config.d_model, config.eps), Attention(config)
        self.mlp_norm, self.mlp = nn.RMSNorm(config.d_model, config.eps), SwiGLU(config)

    def forward(self, x, cos, sin, cache=None, layer=0):
        x = x + self.attn(self.attn_norm(x), cos, sin, cache, layer)
        return x + self.mlp(self.mlp_norm(x))


class Llama(nn.Module):
    """Llama (Touvron et al. 2023) with a tied head."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.d_model)  # its transpose is the head, too
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layer))
        self.norm = nn.RMSNorm(config.d_model, config.eps)

    def forward(self, tokens, cache=None, last=False):
        """Logits (B, T, V) for token ids (B, T), which follow those in the cache; last: of the last, (B, 1, V).

        ValueError for another shape, unknown ids, too many tokens, or a cache for another batch.
        """
        if tokens.ndim != 2 or tokens.numel() == 0 or tokens.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"tokens must be integers (B, T), B and T > 0, got {tokens.dtype} {tuple(tokens.shape)}")
        c, start, (B, T) = self.config, 0 if cache is None else cache.length, tokens.shape
        if tokens.device.type == "cpu" and (tokens.min() < 0 or tokens.max() >= c.vocab_size):
            raise ValueError(f"token ids must be from 0 to {c.vocab_size - 1}, got {tokens.min()} to {tokens.max()}")
        if start + T > c.context:
            raise ValueError(f"{start} + {T} tokens are more than the context, {c.context}")
        if cache is not None and cache.batch != B:
            raise ValueError(f"the cache is for {cache.batch} sequences, the tokens are {B}")
        x = self.embed(tokens)  # (B, T, C)
        at = torch.arange(start, start + T, device=x.device)  # the positions
        cos, sin = (table.to(x.dtype) for table in rotation(at, c.d_head, c.rope_base))
        for i, layer in enumerate(self.layers):
            x = layer(x, cos, sin, cache, i)
        if cache is not None:
            cache.length += T
        return F.linear(self.norm(x[:, -1:] if last else x), self.embed.weight)


PARTS = {"attn_norm": "attn_norm", "attn_q": "attn.q", "attn_k": "attn.k", "attn_v": "attn.v", "attn_output": "attn.o",
         "ffn_norm": "mlp_norm", "ffn_gate": "mlp.gate", "ffn_up": "mlp.up", "ffn_down": "mlp.down"}  # fmt: skip


def load(path=None):
    """A Llama and its tokenizer from a GGUF file, by default SmolLM2-135M-Instruct's: float32, evaluation mode.

    ValueError for a damaged file, another architecture, or a Llama with parts that ours has not.
    """
    file = GGUF(path or smollm2_file())
    about = {"llama.rope.freq_base": 10_000.0} | file.fields
    about.setdefault("llama.attention.head_count_kv", about.get("llama.attention.head_count"))
    if (arch := about.get("general.architecture")) != "llama":
        raise ValueError(f"{file.path} holds a model of the architecture {arch!r}; only 'llama' can be read")
    tokenizer = ChatTokenizer(about)
    keys = ("context_length", "block_count", "attention.head_count", "attention.head_count_kv", "embedding_length",
            "feed_forward_length", "rope.freq_base", "attention.layer_norm_rms_epsilon")  # fmt: skip
    config = LlamaConfig(tokenizer.n_vocab, *(about.get(f"llama.{key}") for key in keys))
    with torch.device("meta"):  # shapes without numbers: those come from the file
        model = Llama(config).eval()
    names = {"token_embd.weight": "embed.weight", "output_norm.weight": "norm.weight"}
    for i in range(config.n_layer):
        names |= {f"blk.{i}.{theirs}.weight": f"layers.{i}.{ours}.weight" for theirs, ours in PARTS.items()}
    odd = {(theirs, model.get_parameter(ours).shape) for theirs, ours in names.items()}
    odd ^= {(name, tuple(shape)) for name, (shape, *_) in file.tensors.items()}
    if odd := odd | {(k, v) for k, v in about.items() if "rope.scaling" in k or "rope.dim" in k and v != config.d_head}:
        raise ValueError(f"{file.path} does not fit this Llama: {min(odd)[0]} is missing, has no place or another size")
    weights = {}
    for theirs, ours in names.items():
        w = weights[ours] = torch.from_numpy(file[theirs])
        if ours.endswith(("attn.q.weight", "attn.k.weight")):  # the file has a pair's two rows side by side
            weights[ours] = w.view(-1, config.d_head // 2, 2, config.d_model).transpose(1, 2).reshape(w.shape)
    model.load_state_dict(weights, assign=True)
    return model, tokenizer
