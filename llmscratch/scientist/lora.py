"""LoRA and DoRA by hand, adapters that peft reads, and a training that scores answers only."""

# Made from 02_for_scientist/15_lora.ipynb by `make export`: change the notebook, not this file.

import hashlib
import json
import re
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import trange

from llmscratch.kit import fast_bf16

__all__ = [
    "LoRALinear",
    "add_lora",
    "answer_logits",
    "answer_loss",
    "load_adapter",
    "lora_layers",
    "merge",
    "remove_lora",
    "save_adapter",
    "tune",
    "without_lora",
]


class LoRALinear(nn.Module):
    """y = W x + b + (alpha/rank) B A x: W and b, those of `base`, are frozen; A and B learn (Hu et al. 2021, eq. 3).

    base: an nn.Linear, or what looks like one. dropout: on the way to A only. dora: learn the length of every row, too
    (Liu et al. 2024, eq. 5). A is uniform within ±1/√in, drawn with `generator`; B is zero: at first nothing changes.
    """

    def __init__(self, base, rank=8, alpha=16.0, dropout=0.0, dora=False, generator=None):
        super().__init__()
        if type(rank) is not int or rank < 1:
            raise ValueError(f"rank must be a whole number above 0, got {rank!r}")
        if not (0 <= dropout < 1 and 0 < alpha < float("inf")):
            raise ValueError(f"needs 0 ≤ dropout < 1 and a finite alpha above 0, got {dropout!r} and {alpha!r}")
        if dora and (base.weight == 0).all(1).any():
            raise ValueError("a row of zeros has no direction: DoRA cannot use this weight")
        self.base, self.in_features, self.out_features = base.requires_grad_(False), base.in_features, base.out_features
        self.rank, self.alpha, self.scale, self.dropout, self.enabled = rank, alpha, alpha / rank, dropout, True
        weight, bound = base.weight.detach(), base.in_features**-0.5
        A = torch.empty(rank, base.in_features, device=weight.device)
        self.A = nn.Parameter(A.uniform_(-bound, bound, generator=generator))
        self.B = nn.Parameter(torch.zeros(base.out_features, rank, device=weight.device))
        self.magnitude = nn.Parameter(weight.float().norm(dim=1)) if dora else None

    @property
    def weight(self):
        """The frozen W, as code that looks at a linear layer expects it."""
        return self.base.weight

    def update(self):
        """(alpha/rank) B A, (out, in): what is added to W."""
        return self.scale * self.B @ self.A

    def merged(self):
        """The one matrix that does the work of all, (out, in), float32."""
        weight = self.weight.float() + self.update()
        return weight if self.magnitude is None else (self.magnitude / weight.norm(dim=1))[:, None] * weight

    def forward(self, x):
        y = self.base(x)
        if not self.enabled:
            return y
        x = x if torch.is_autocast_enabled(x.device.type) else x.to(self.A.dtype)
        low = F.linear(F.dropout(x, self.dropout, self.training), self.A)  # (…, rank)
        more = F.linear(low * self.scale, self.B)  # scaled where it is thin
        if self.magnitude is None:
            return y + more.to(y.dtype)
        norm = (self.weight.float() + self.update().detach()).norm(dim=1)  # a constant to the gradient
        bias = 0 if self.base.bias is None else self.base.bias
        return ((y - bias + more) * (self.magnitude / norm) + bias).to(y.dtype)


def add_lora(model, rank=8, alpha=16.0, *, pattern=r"\.\d+\.", dropout=0.0, dora=False, generator=None):
    """Freeze `model` and wrap every linear layer whose name matches `pattern` (re.search) in a LoRALinear; their names.

    Changes the model in place. The default pattern takes all linear layers inside numbered blocks, so not the head.
    ValueError when no name matches, or when the model has LoRALinears already: merge or remove those first.
    """
    if old := lora_layers(model):
        raise ValueError(f"the model has LoRALinears already, such as {next(iter(old))}: merge or remove them first")
    linear = {name: part for name, part in model.named_modules() if _is_linear(part)}
    chosen = [name for name in linear if re.search(pattern, f".{name}")]
    if not chosen:
        raise ValueError(f"no linear layer matches {pattern!r}; there are {', '.join(linear) or 'none'}")
    made = {name: LoRALinear(linear[name], rank, alpha, dropout, dora, generator) for name in chosen}
    model.requires_grad_(False)
    for name, layer in made.items():
        _put(model, name, layer)
    return chosen


def lora_layers(model):
    """{name: LoRALinear} of a model."""
    return {name: part for name, part in model.named_modules() if isinstance(part, LoRALinear)}


def _is_linear(part):
    return {"in_features", "out_features"} <= vars(part).keys()


def _put(model, name, part):
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, part.train(model.get_submodule(name).training))


@contextmanager
def without_lora(model):
    """Within it, the model computes what it computed before add_lora."""
    was = {layer: layer.enabled for layer in lora_layers(model).values()}
    try:
        for layer in was:
            layer.enabled = False
        yield model
    finally:
        for layer, enabled in was.items():
            layer.enabled = enabled


def merge(model):
    """Replace every LoRALinear by one nn.Linear that computes the same, in the frozen weight's dtype; the names."""
    for name, layer in (found := lora_layers(model)).items():
        linear = nn.Linear(layer.in_features, layer.out_features, device="meta")
        linear.weight = nn.Parameter(layer.merged().detach().to(layer.weight.dtype), requires_grad=False)
        linear.bias = layer.base.bias
        _put(model, name, linear)
    return list(found)


def remove_lora(model):
    """Put back every frozen layer as it was before add_lora; the names."""
    for name, layer in (found := lora_layers(model)).items():
        _put(model, name, layer.base)
    return list(found)


def answer_logits(model, pairs):
    """What the model says at the N tokens of all answers: logits (N, V), the tokens (N,), the pair of each (N,).

    pairs: (prompt ids, answer ids), lists of numbers. The head sees only these N places, by a hook on the norm that was
    registered last, which must be the one before the head. ValueError when there is no norm, no pair, or a pair with an
    empty prompt or answer.
    """
    if not pairs or not all(len(prompt) and len(answer) for prompt, answer in pairs):
        raise ValueError("there must be a pair, and every pair must have a prompt and an answer of at least one token")
    T, to = max(len(prompt) + len(answer) for prompt, answer in pairs) - 1, next(model.parameters()).device
    tokens, targets = torch.zeros(len(pairs), T, dtype=torch.long), torch.full((len(pairs), T), -1)
    for row, (prompt, answer) in enumerate(pairs):
        ids = torch.tensor([*prompt, *answer])
        tokens[row, : len(ids) - 1], targets[row, len(prompt) - 1 : len(ids) - 1] = ids[:-1], ids[len(prompt) :]
    tokens, targets = tokens.to(to), targets.to(to)
    where = targets >= 0  # (B, T)
    if not (norms := [part for part in model.modules() if "norm" in type(part).__name__.lower()]):
        raise ValueError("the model has no norm before its head")
    hook = norms[-1].register_forward_hook(lambda module, given, out: out[where][None])  # (1, N, C)
    plain = T < 128 and to.type == "cpu"  # there the plain form of attention has the faster backward pass
    try:
        with sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
            out = model(tokens)
    finally:
        hook.remove()
    return getattr(out, "logits", out)[0], targets[where], where.nonzero()[:, 0]


def answer_loss(model, pairs):
    """Cross-entropy in nats a token of the answers, given their prompts, over all pairs (as in answer_logits)."""
    logits, targets, _ = answer_logits(model, pairs)
    return F.cross_entropy(logits.float(), targets)


def tune(model, pairs, *, steps, batch=8, lr=1e-3, warmup=5, bf16=None, seed=0, progress=True):
    """Train what requires a gradient in `model` on (prompt ids, answer ids) pairs, in place; the losses, one a step.

    AdamW, the norm clipped at 1; the learning rate rises in a line for `warmup` steps, then falls in a line. bf16:
    whether products are in bfloat16; None: where that is fast. Leaves the model in evaluation mode. ValueError when
    nothing requires a gradient (call add_lora), for too few pairs, or too few steps.
    """
    learning, rng = [p for p in model.parameters() if p.requires_grad], np.random.default_rng(seed)
    if not learning or len(pairs) < batch:
        raise ValueError(f"needs parameters that learn and {batch} pairs, got {len(learning)} and {len(pairs)}")
    if steps < 1 or warmup < 1:
        raise ValueError(f"steps and warmup must be at least 1, got {steps} and {warmup}")
    optimizer, losses, order = torch.optim.AdamW(learning, lr=lr, weight_decay=0.0, fused=True), [], []
    model.train()
    for step in trange(steps, disable=not progress, mininterval=5):
        if len(order) < batch:
            order = rng.permutation(len(pairs)).tolist()
        chosen, order = [pairs[i] for i in order[:batch]], order[batch:]
        optimizer.param_groups[0]["lr"] = lr * min((step + 1) / warmup, (steps - step) / max(steps - warmup, 1), 1)
        with torch.autocast(learning[0].device.type, torch.bfloat16, enabled=fast_bf16() if bf16 is None else bf16):
            loss = answer_loss(model, chosen)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


# Names of the same layers: in transformers' Llama, and in the course's own.
_SHORT = (("model.layers.", "layers."), ("self_attn.", "attn."), ("_proj", ""))


def save_adapter(folder, model, *, base="", notes=None, dtype=torch.float16):
    """Write the LoRALinears of a model into a folder in peft's format, with notes.json (notes, sha256) beside them.

    base: the name of the model that it belongs to. ValueError when there are none, or when their settings differ.
    """
    layers, weights, folder = lora_layers(model), {}, Path(folder)
    kinds = {(part.rank, part.alpha, part.dropout, part.magnitude is not None) for part in layers.values()}
    if len(kinds) != 1:
        raise ValueError(f"needs LoRALinears of one rank and alpha, got (rank, alpha, dropout, dora) {sorted(kinds)}")
    for name, part in layers.items():
        for key, p in (("A.weight", part.A), ("B.weight", part.B), ("magnitude_vector.weight", part.magnitude)):
            if p is not None:
                weights[f"base_model.model.{name}.lora_{key}"] = p.detach().to("cpu", dtype).contiguous()
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": True}
    config |= dict(zip(("r", "lora_alpha", "lora_dropout", "use_dora"), kinds.pop()), target_modules=sorted(layers))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, file := folder / "adapter_model.safetensors")
    said = {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()} | (notes or {})
    for name, what in (("adapter_config", config), ("notes", said)):
        (folder / f"{name}.json").write_text(json.dumps(what, indent=1) + "\n", encoding="utf-8")


def load_adapter(model, folder):
    """Add the LoRALinears of a folder that save_adapter or peft wrote to `model`, in place; the notes, {} from peft.

    Layers are found by transformers' names or by the course's own (layers.0.attn.q). ValueError when the file is
    damaged, of another kind than LoRA, or does not fit the model, which then is as before.
    """
    file, said = Path(folder) / "adapter_model.safetensors", Path(folder) / "notes.json"
    notes = json.loads(said.read_text(encoding="utf-8")) if said.exists() else {}
    if notes and notes.get("sha256") != hashlib.sha256(file.read_bytes()).hexdigest():
        raise ValueError(f"{file} is damaged: its checksum is not the one in notes.json")
    try:
        weights = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is truncated or damaged: {error}") from None
    config = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
    if odd := [key for key in ("use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save") if config.get(key)]:
        raise ValueError(f"{folder} uses {', '.join(odd)}, which LoRALinear does not have")
    if lack := {"r", "lora_alpha", "lora_dropout"} - config.keys():
        raise ValueError(f"adapter_config.json in {folder} lacks {', '.join(sorted(lack))}")
    if not weights or config.get("peft_type", "LORA") != "LORA":
        raise ValueError(f"{folder} holds no LoRA, but {config.get('peft_type')} with {len(weights)} tensors")
    if old := lora_layers(model):
        raise ValueError(f"the model has LoRALinears already, such as {next(iter(old))}: merge or remove them first")
    found, there = {}, dict(model.named_modules())
    for key, tensor in weights.items():
        known = re.fullmatch(r"base_model\.model\.(.+?)\.lora_(?:(m)agnitude_vector|([AB]))(?:\.weight)?", key)
        if not known:
            raise ValueError(f"{folder} holds {key}, which is no part of a LoRALinear")
        name, part = known[1], known[2] or known[3]
        for long, short in _SHORT if name not in there else ():
            name = name.replace(long, short)
        found.setdefault(name, {})[part] = tensor
    for name, parts in found.items():
        if not {"A", "B"} <= parts.keys():
            raise ValueError(f"{folder} needs an A and a B for {name}, and has {', '.join(parts)}")
        layer, sizes = there.get(name), (parts["A"].shape[1], parts["B"].shape[0])
        if layer is None or not _is_linear(layer) or (layer.in_features, layer.out_features) != sizes:
            raise ValueError(f"the model has no linear layer {name!r} from {sizes[0]} to {sizes[1]} numbers, as needed")
        if {parts["A"].shape[0], parts["B"].shape[1]} != {config["r"]}:
            raise ValueError(f"A and B of {name} in {folder} are not of rank {config['r']}, as its config says")
        if ("m" in parts) != bool(config.get("use_dora")) or not all(p.isfinite().all() for p in parts.values()):
            raise ValueError(f"{name} in {folder} is not finite, or its lengths and use_dora do not agree")
    options = (config["r"], config["lora_alpha"], config["lora_dropout"])
    made = {name: LoRALinear(there[name], *options, "m" in parts) for name, parts in found.items()}
    model.requires_grad_(False)
    for name, parts in found.items():
        _put(model, name, layer := made[name])
        for p, part in ((layer.A, "A"), (layer.B, "B"), (layer.magnitude, "m")):
            if p is not None:
                p.data.copy_(parts[part])
    return notes
