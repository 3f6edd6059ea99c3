"""GPT-2, block by block: the model, its size and its cost by formula, and transformers' weights in it."""

# Made from 02_for_scientist/05_gpt.ipynb by `make export`: change the notebook, not this file.

from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from llmscratch.kit.packages import DataUnavailable
from llmscratch.scientist.attention import MultiHeadAttention

__all__ = ["Block", "GPT", "GPTConfig", "MLP", "from_pretrained", "from_state_dict"]


@dataclass(frozen=True)
class GPTConfig:
    """The sizes of a GPT: vocabulary, longest sequence, blocks, heads a block, width of the stream.

    ValueError when one of them is unfit.
    """

    vocab_size: int
    context: int
    n_layer: int
    n_head: int
    d_model: int
    dropout: float = 0.0

    def __post_init__(self):
        for name in ("vocab_size", "context", "n_layer", "n_head", "d_model"):
            size = getattr(self, name)
            if type(size) is not int or size < 1:
                raise ValueError(f"{name} must be a whole number above 0, got {size!r}")
        if self.d_model % self.n_head:
            raise ValueError(f"d_model {self.d_model} cannot be shared among {self.n_head} heads: not divisible")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is a probability, at least 0 and under 1, got {self.dropout!r}")

    @property
    def n_parameters(self):
        """Numbers to learn: V·C + T·C for the embeddings, 12C² + 13C a block, 2C for the last LayerNorm."""
        C = self.d_model
        return (self.vocab_size + self.context) * C + self.n_layer * (12 * C * C + 13 * C) + 2 * C

    def flops(self, T=None, training=True):
        """Floating-point operations of the matrix products for one sequence of T tokens (default: the context).

        Forward: 24TC² + 4T²C a block, and 2TCV for the head; a multiplication and an addition count as two. Training
        costs three times as much: each product has two more behind it, for the gradients of its two factors.
        """
        T, C = self.context if T is None else T, self.d_model
        return (3 if training else 1) * (self.n_layer * (24 * T * C * C + 4 * T * T * C) + 2 * T * C * self.vocab_size)


class MLP(nn.Module):
    """C → 4C → C with the tanh form of GELU between (Hendrycks and Gimpel 2016), as in GPT-2."""

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.d_model, 4 * config.d_model)
        self.c_proj = nn.Linear(4 * config.d_model, config.d_model)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        return self.dropout(self.c_proj(F.gelu(self.c_fc(x), approximate="tanh")))


class Block(nn.Module):
    """A pre-norm block: attention, then the MLP; each reads a normalised copy of x (B, T, C) and adds to it."""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.d_model)
        self.attn = MultiHeadAttention(config.d_model, config.n_head, dropout=config.dropout)
        self.ln_2 = nn.LayerNorm(config.d_model)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        x = x + self.dropout(self.attn(self.ln_1(x)))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """GPT-2 (Radford et al. 2019): tokens (B, T) to logits (B, T, V); T may be anything up to the context.

    Weights are drawn with `generator`: N(0, std²), and N(0, std²/2L) where a branch joins the residual stream.
    """

    def __init__(self, config, generator=None, std=0.02):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.d_model)  # its transpose is the head, too
        self.wpe = nn.Embedding(config.context, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.d_model)
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif p.ndim == 2:  # LayerNorms start at 1
                joins = name.endswith("proj.weight")
                nn.init.normal_(p, std=std / ((2 * config.n_layer) ** 0.5 if joins else 1), generator=generator)

    def forward(self, tokens):
        """Logits (B, T, V) for token ids (B, T). ValueError for another shape, too many tokens, or unknown ids."""
        if tokens.ndim != 2 or tokens.numel() == 0 or tokens.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"tokens must be integers (B, T), B and T > 0, got {tokens.dtype} {tuple(tokens.shape)}")
        V, context, T = self.config.vocab_size, self.config.context, tokens.shape[1]
        if context < T:
            raise ValueError(f"a sequence of {T} tokens is longer than the context, {context}")
        if tokens.device.type == "cpu" and (tokens.min() < 0 or tokens.max() >= V):  # elsewhere it would wait
            raise ValueError(f"token ids must be from 0 to {V - 1}, got {tokens.min()} to {tokens.max()}")
        x = self.dropout(self.wte(tokens) + self.wpe.weight[:T])  # (B, T, C)
        for block in self.h:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte.weight)

    def loss(self, tokens, targets):
        """Mean cross-entropy in nats a token; targets (B, T): the tokens one step ahead, −100 where none counts."""
        if targets.shape != tokens.shape:
            raise ValueError(f"targets must be shaped like tokens, {tuple(tokens.shape)}, got {tuple(targets.shape)}")
        return F.cross_entropy(self(tokens).flatten(0, 1), targets.flatten())

    @torch.no_grad()
    def generate(self, tokens, n, *, temperature=1.0, top_k=None, generator=None):
        """The ids (B, T) and n more, drawn one by one; the model sees the last `context` of them.

        temperature: logits are divided by it; 0 takes the likeliest token. top_k: only the k likeliest can be drawn.
        """
        if temperature < 0 or (top_k is not None and top_k < 1):
            raise ValueError(f"temperature must be at least 0 and top_k at least 1, got {temperature} and {top_k}")
        modes = {module: module.training for module in self.modules()}
        self.eval()
        try:
            for _ in range(n):
                logits = self(tokens[:, -self.config.context :])[:, -1]  # (B, V)
                if temperature == 0:
                    new = logits.argmax(-1, keepdim=True)
                else:
                    top, ids = logits.topk(min(top_k or logits.shape[-1], logits.shape[-1]))
                    new = ids.gather(1, torch.multinomial((top / temperature).softmax(-1), 1, generator=generator))
                tokens = torch.cat([tokens, new], dim=1)
        finally:
            for module, mode in modes.items():
                module.training = mode
        return tokens


def from_state_dict(weights, n_head):
    """A GPT with the weights (name to tensor) of a GPT-2 of transformers, with or without its language-model head.

    Every size but n_head stands in the shapes; what does not is GPT-2's: tanh GELU, ε = 1e-5, scores over √d.
    ValueError when tensors are missing, left over, or of another shape.
    """
    given = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    if not {"wte.weight", "wpe.weight"} <= given.keys():
        raise ValueError("these are not the weights of a GPT-2, which has wte.weight and wpe.weight among them")
    if not torch.equal(given.pop("lm_head.weight", given["wte.weight"]), given["wte.weight"]):
        raise ValueError("lm_head.weight differs from wte.weight: an untied head does not fit this model")
    (V, C), context = given["wte.weight"].shape, len(given["wpe.weight"])
    n_layer = len({name.split(".")[1] for name in given if name.startswith("h.")})
    model = GPT(GPTConfig(V, context, n_layer, n_head, C))
    ours = {}
    for name, tensor in given.items():
        if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            tensor = tensor.T  # Conv1D keeps (in, out), Linear (out, in)
        if not name.endswith((".attn.bias", ".attn.masked_bias")):  # causal masks, which old files store
            ours[name.replace("attn.c_attn", "attn.qkv").replace("attn.c_proj", "attn.proj")] = tensor
    try:
        model.load_state_dict(ours)
    except RuntimeError as error:
        told = " ".join(str(error).split()[6:])  # without "Error(s) in loading state_dict for GPT:"
        raise ValueError(f"these weights do not fit a GPT-2 of {n_layer} blocks, {C} wide: {told}") from None
    return model


def from_pretrained(name="gpt2"):
    """A GPT-2 from a folder that transformers saved, or by its name on the Hugging Face Hub; safetensors only.

    DataUnavailable when it cannot be had, ValueError when it is another architecture or its weights are not whole.
    """
    from transformers import AutoConfig, GPT2Config, utils  # here: it takes seconds to import

    options = "activation_function layer_norm_epsilon scale_attn_weights scale_attn_by_inverse_layer_idx"
    try:
        about, usual = AutoConfig.from_pretrained(name), GPT2Config()
        for option in ["model_type", *options.split()]:
            if getattr(about, option, None) != getattr(usual, option):
                raise ValueError(f"{name} is no GPT-2 that fits: its {option} is {getattr(about, option, None)!r}")
        weights = load_file(utils.cached_file(name, "model.safetensors"))
    except (OSError, SafetensorError) as error:
        raise DataUnavailable(
            f"asked for the GPT-2 {name!r} from a folder or the Hugging Face Hub; it could not be had ({error}). "
            "Name a folder that transformers saved, or train a GPT of your own: no lesson needs the Hub."
        ) from error
    return from_state_dict(weights, about.n_head)
