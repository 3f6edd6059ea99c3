"""NF4: sixteen levels at the quantiles of a normal distribution, blocks with a scale each, and a layer that uses it."""

# Made from 02_for_scientist/15_lora.ipynb by `make export`: change the notebook, not this file.

import re
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["LEVELS", "NF4", "NF4Linear", "dequantize", "nf4_levels", "quantize", "use_nf4"]


def nf4_levels():
    """The 16 levels, float32, rising from −1 to 1 (Dettmers et al. 2023, appendix E; `end` as in bitsandbytes)."""
    end = 1 - (1 / 32 + 1 / 30) / 2
    up, down = (torch.linspace(end, 0.5, n, dtype=torch.float64)[:-1] for n in (9, 8))
    levels = torch.cat([-torch.special.ndtri(down), torch.zeros(1), torch.special.ndtri(up)]).sort().values
    return (levels / levels[-1]).float()


LEVELS = nf4_levels()


class NF4(NamedTuple):
    """A tensor in 4 bits: two codes a byte, and a scale for every block of `block` numbers, in 8 bits or float32."""

    codes: torch.Tensor  # uint8
    scales: torch.Tensor  # float8_e4m3fn where doubly quantised, else float32
    outer: torch.Tensor  # one float32 for 256 scales; empty without double quantisation
    middle: torch.Tensor  # the mean of the scales, which is subtracted before they are rounded
    shape: torch.Size
    block: int

    @property
    def nbytes(self):
        """Bytes of all that is stored."""
        return sum(part.numel() * part.element_size() for part in self[:4])


def quantize(weight, block=64, double=True):
    """A tensor as NF4 (Dettmers et al. 2023): blocks over their largest absolute value, rounded to the nearest level.

    double: store the blocks' scales in 8 bits as well, 256 with one scale of their own. ValueError for an odd block
    or a tensor that is empty or not finite.
    """
    if block < 2 or block % 2:
        raise ValueError(f"block must be an even number above 0, got {block}")
    if weight.numel() == 0 or not weight.isfinite().all():
        raise ValueError("the weight must have numbers, all of them finite")
    flat = weight.detach().float().flatten()
    blocks = F.pad(flat, (0, -len(flat) % block)).view(-1, block)
    scales = blocks.abs().amax(1)  # (blocks,)
    borders = (LEVELS[1:] + LEVELS[:-1]) / 2
    codes = torch.bucketize(blocks / scales.clamp_min(1e-30)[:, None], borders.to(flat.device)).to(torch.uint8)
    codes = (codes[:, 0::2] << 4 | codes[:, 1::2]).flatten()
    middle, outer = torch.zeros((), device=flat.device), torch.zeros(0, device=flat.device)
    if double:
        middle = scales.mean()
        groups = F.pad(scales - middle, (0, -len(scales) % 256)).view(-1, 256)
        outer = groups.abs().amax(1).clamp_min(1e-30) / 448  # 448 is the largest float8_e4m3fn
        scales = (groups / outer[:, None]).to(torch.float8_e4m3fn).flatten()[: len(scales)]
    return NF4(codes, scales, outer, middle, weight.shape, block)


def dequantize(packed):
    """The float32 tensor that an NF4 stands for."""
    scales = packed.scales.float()
    if len(packed.outer):
        scales = scales * packed.outer.repeat_interleave(256)[: len(scales)] + packed.middle
    codes = torch.stack([packed.codes >> 4, packed.codes & 15], dim=-1)
    flat = LEVELS.to(codes.device)[codes.int()].view(-1, packed.block) * scales[:, None]
    return flat.flatten()[: packed.shape.numel()].view(packed.shape)


class _Frozen(torch.autograd.Function):
    """x Wᵀ, which keeps no W for the backward pass but makes it again."""

    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer, ctx.dtype = layer, x.dtype
        return F.linear(x, layer.weight.to(x.dtype))

    @staticmethod
    def backward(ctx, grad):
        return (grad @ ctx.layer.weight.to(grad.dtype)).to(ctx.dtype), None


class NF4Linear(nn.Module):
    """A linear layer whose frozen weight is stored as NF4: `linear`, an nn.Linear, gives weight and bias."""

    def __init__(self, linear, block=64, double=True):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        *parts, self.shape, self.block = quantize(linear.weight, block, double)
        for name, part in zip(NF4._fields, parts):
            self.register_buffer(name, part)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)

    @property
    def weight(self):
        """The weight, (out, in), float32, made anew each time."""
        return dequantize(NF4(self.codes, self.scales, self.outer, self.middle, self.shape, self.block))

    def forward(self, x):
        y = _Frozen.apply(x, self)
        return y if self.bias is None else y + self.bias.to(y.dtype)


def use_nf4(model, pattern=r"\.\d+\.", block=64, double=True):
    """Replace every nn.Linear whose name matches `pattern` (re.search) by an NF4Linear, in place; the names.

    ValueError when no name matches.
    """
    chosen = [n for n, p in model.named_modules() if isinstance(p, nn.Linear) and re.search(pattern, f".{n}")]
    if not chosen:
        raise ValueError(f"no nn.Linear matches {pattern!r}")
    for name in chosen:
        parent, _, child = name.rpartition(".")
        linear = getattr(model.get_submodule(parent), child)
        setattr(model.get_submodule(parent), child, NF4Linear(linear, block, double))
    return chosen
