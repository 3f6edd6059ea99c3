"""Llama, grown from GPT one change at a time, and the real SmolLM2-135M-Instruct in it."""

from dataclasses import dataclass, fields

import torch
from torch import nn
from torch.nn import functional as F

from llmscratch.kit import smollm2_file
from llmscratch.scientist.gguf import GGUF, ChatTokenizer

__all__ = ["Attention", "KVCache", "Layer", "Llama", "LlamaConfig", "MLP", "RMSNorm", "load", "rotate", "rotation"]


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
        for field in fields(self)[:7]:
            size = getattr(self, field.name)
            if type(size) is not int or size < 1:
                raise ValueError(f"{field.name} must be a whole number above 0, got {size!r}")
        if self.d_model % (2 * self.n_head) or self.n_head % self.n_kv_head:
            raise ValueError(
                f"d_model {self.d_model} must be an even number for each of {self.n_head} heads, which must be shared "
                f"evenly by {self.n_kv_head} heads of keys and values"
            )

    @property
    def d_head(self):
        """The width of a head."""
        return self.d_model // self.n_head


class RMSNorm(nn.Module):
    """x / √(mean(x²) + ε) · γ over the last axis (Zhang and Sennrich 2019)."""

    def __init__(self, d_model, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(d_model)), eps

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def rotation(positions, d_head, base=10_000.0):
    """cos and sin, (T, d/2) each, of the angles p · base^(−2i/d) for positions (T,) and pairs i (Su et al. 2021)."""
    speed = base ** -(torch.arange(0, d_head, 2, device=positions.device) / d_head)
    angle = positions[:, None] * speed
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    """Turn each pair (x[i], x[i + d/2]) of x (…, T, d) by its angle; cos, sin (T, d/2) as of `rotation`."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class KVCache:
    """Keys and values of the tokens read so far: for reading on, not for training (what is kept has no gradient).

    length: tokens kept; set it lower to forget the last ones. Room is made as needed.
    """

    def __init__(self, config, batch=1):
        self.config, self.batch, self.length = config, batch, 0
        self._kept = [None] * config.n_layer  # (2, B, n_kv_head, room, d) each: keys, values

    def append(self, layer, k, v):
        """Keep k, v (B, n_kv_head, T, d) after the first `length` of a layer; returns all of that layer's, (…, S, d)."""
        end, old = self.length + k.shape[2], self._kept[layer]
        if old is None or old.shape[3] < end:
            room = min(max(2 * end, 256), max(end, self.config.context))
            self._kept[layer] = k.new_empty(2, *k.shape[:2], room, k.shape[3])
            if old is not None:
                self._kept[layer][:, :, :, : self.length] = old[:, :, :, : self.length]
        kept = self._kept[layer]
        kept[0, :, :, self.length : end], kept[1, :, :, self.length : end] = k.detach(), v.detach()
        return kept[0, :, :, :end], kept[1, :, :, :end]

    def select(self, rows):
        """Keep these rows of the batch, in this order and perhaps repeatedly, as beam search needs it."""
        rows = torch.as_tensor(rows)
        self._kept = [None if kept is None else kept[:, rows] for kept in self._kept]
        self.batch = len(rows)


class Attention(nn.Module):
    """Causal attention with rotary positions; n_head / n_kv_head queries share a key and a value (Ainslie et al. 2023)."""

    def __init__(self, config):
        super().__init__()
        C, d = config.d_model, config.d_head
        self.d_head = d
        self.q = nn.Linear(C, config.n_head * d, bias=False)
        self.k = nn.Linear(C, config.n_kv_head * d, bias=False)
        self.v = nn.Linear(C, config.n_kv_head * d, bias=False)
        self.o = nn.Linear(config.n_head * d, C, bias=False)

    def forward(self, x, cos, sin, keep):
        """x (B, T, C) → (B, T, C); keep(k, v) stores new keys and values and returns all of them."""
        B, T, _ = x.shape
        q, k, v = (linear(x).view(B, T, -1, self.d_head).transpose(1, 2) for linear in (self.q, self.k, self.v))
        k, v = keep(rotate(k, cos, sin), v)  # (B, n_kv_head, S, d)
        q, S = rotate(q, cos, sin), k.shape[2]
        if T == 1:  # one new token sees everything: its heads stand as rows before their shared key
            out = F.scaled_dot_product_attention(q.view(B, k.shape[1], -1, self.d_head), k, v)
        elif T == S:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:  # new token t stands at S − T + t
            seen = torch.ones(T, S, dtype=torch.bool, device=x.device).tril(S - T)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
        return self.o(out.reshape(B, -1, T, self.d_head).transpose(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x)), C → d_ff → C (Shazeer 2020)."""

    def __init__(self, config):
        super().__init__()
        self.gate = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.up = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Layer(nn.Module):
    """A block: attention, then the MLP; each reads a normalised copy of x (B, T, C) and adds to it."""

    def __init__(self, config):
        super().__init__()
        self.attn_norm, self.attn = RMSNorm(config.d_model, config.eps), Attention(config)
        self.mlp_norm, self.mlp = RMSNorm(config.d_model, config.eps), MLP(config)

    def forward(self, x, cos, sin, keep):
        x = x + self.attn(self.attn_norm(x), cos, sin, keep)
        return x + self.mlp(self.mlp_norm(x))


class Llama(nn.Module):
    """Llama (Touvron et al. 2023) with a tied head: tokens (B, T) to logits (B, T, V)."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.d_model)  # its transpose is the head, too
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layer))
        self.norm = RMSNorm(config.d_model, config.eps)

    def forward(self, tokens, cache=None, last=False):
        """Logits (B, T, V) for token ids (B, T), which follow those in the cache; last: of the last only, (B, 1, V).

        ValueError for another shape, unknown ids, too many tokens, or a cache for another batch.
        """
        V, context = self.config.vocab_size, self.config.context
        if tokens.ndim != 2 or tokens.numel() == 0 or tokens.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"tokens must be integers (B, T), B and T > 0, got {tokens.dtype} {tuple(tokens.shape)}")
        if tokens.device.type == "cpu" and (tokens.min() < 0 or tokens.max() >= V):  # elsewhere it would wait
            raise ValueError(f"token ids must be from 0 to {V - 1}, got {tokens.min()} to {tokens.max()}")
        start, (B, T) = cache.length if cache else 0, tokens.shape
        if start + T > context:
            raise ValueError(f"{start} + {T} tokens are more than the context, {context}")
        if cache and cache.batch != B:
            raise ValueError(f"the cache is for a batch of {cache.batch}, the tokens are {B} sequences")
        cos, sin = rotation(torch.arange(start, start + T, device=tokens.device), self.config.d_head, self.config.rope_base)
        x = self.embed(tokens)  # (B, T, C)
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        for i, layer in enumerate(self.layers):
            x = layer(x, cos, sin, (lambda k, v, i=i: cache.append(i, k, v)) if cache else lambda k, v: (k, v))
        if cache:
            cache.length += T
        return F.linear(self.norm(x[:, -1:] if last else x), self.embed.weight)


# Our names for the parts of a block, by those in a GGUF file.
PARTS = {
    "attn_norm": "attn_norm", "ffn_norm": "mlp_norm", "attn_q": "attn.q", "attn_k": "attn.k", "attn_v": "attn.v",
    "attn_output": "attn.o", "ffn_gate": "mlp.gate", "ffn_up": "mlp.up", "ffn_down": "mlp.down",
}  # fmt: skip


def load(path=None):
    """A Llama and its tokenizer out of a GGUF file, by default SmolLM2-135M-Instruct: float32, evaluation mode.

    ValueError for a damaged file, another architecture, or a Llama with parts that ours has not.
    """
    file = GGUF(path or smollm2_file())
    about, arch = file.fields, file.fields.get("general.architecture")
    if arch != "llama":
        raise ValueError(f"{file.path} holds a model of architecture {arch!r}; only 'llama' can be read")
    def size(key):
        return about[f"llama.{key}"]
    n_head = size("attention.head_count")
    config = LlamaConfig(
        len(about["tokenizer.ggml.tokens"]), size("context_length"), size("block_count"), n_head,
        about.get("llama.attention.head_count_kv", n_head), size("embedding_length"), size("feed_forward_length"),
        about.get("llama.rope.freq_base", 10_000.0), size("attention.layer_norm_rms_epsilon"),
    )
    with torch.device("meta"):  # shapes only: the weights come from the file
        model = Llama(config)
    names = {"token_embd.weight": "embed.weight", "output_norm.weight": "norm.weight"}
    for i in range(config.n_layer):
        names |= {f"blk.{i}.{theirs}.weight": f"layers.{i}.{ours}.weight" for theirs, ours in PARTS.items()}
    if odd := set(file.tensors) ^ set(names):
        raise ValueError(f"{file.path} is no Llama of ours: {min(odd)!r} is missing or has no place")
    weights = {}
    for theirs, ours in names.items():
        w = torch.from_numpy(file[theirs])
        if ours.endswith(("attn.q.weight", "attn.k.weight")):  # rows in neighbouring pairs → in halves
            w = w.view(-1, config.d_head // 2, 2, w.shape[1]).transpose(1, 2).reshape(w.shape)
        weights[ours] = w
    model.load_state_dict(weights, assign=True)
    return model.eval(), ChatTokenizer(about)
