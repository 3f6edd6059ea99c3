"""Muon: steps along the orthogonalised momentum of matrices, and AdamW for everything else."""

# Made from 02_for_scientist/07_pretraining.ipynb by `make export`: change the notebook, not this file.

import math
from collections import defaultdict

import torch

__all__ = ["Muon", "orthogonal"]


def orthogonal(matrices, steps=5, bf16=False):
    """Matrices (B, m, n) with their singular vectors, and singular values near 1 (most in 0.7 to 1.2).

    Newton–Schulz: an odd polynomial of each matrix, five times over, with the coefficients of Jordan (2024); computed
    and returned in bfloat16 or float32.
    """
    x = matrices.to(torch.bfloat16 if bf16 else torch.float32)
    x = x.mT if (tall := x.shape[1] > x.shape[2]) else x
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)  # now no singular value is above 1
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.775, alpha=2.0315), x, beta=3.4445)
    return x.mT if tall else x


class Muon(torch.optim.AdamW):
    """Muon for the groups with muon=True, which hold matrices (m, n): they move by lr · 0.2·√max(m, n) · orthogonal(g),
    g being the Nesterov momentum of their gradients; AdamW for all others. A group's bf16: whether that is computed in
    bfloat16 (default: no). Source: Jordan 2024, arXiv:2502.16982."""

    def add_param_group(self, group):
        """Add a group of parameters. ValueError when it says muon=True and holds something that is no matrix."""
        super().add_param_group(group)
        shapes = [tuple(p.shape) for p in self.param_groups[-1]["params"] if group.get("muon") and p.ndim != 2]
        if shapes:
            raise ValueError(f"Muon is for matrices; found the shapes {shapes}: leave them in a group of their own")

    @torch.no_grad()
    def step(self):
        """One update; the gradients of Muon's groups are None afterwards."""
        for group in self.param_groups:
            alike = defaultdict(list)
            for p in group["params"] if group.get("muon") else []:
                if p.grad is not None:
                    alike[p.shape].append(p)
            for shape, matrices in alike.items():
                moves = orthogonal(torch.stack([self._momentum(p) for p in matrices]), bf16=group.get("bf16", False))
                for p, move in zip(matrices, moves):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(move, alpha=-group["lr"] * 0.2 * math.sqrt(max(shape)))
                    p.grad = None  # done: AdamW passes over it
        super().step()

    def _momentum(self, p, beta=0.95):
        state = self.state[p]
        if not state:
            state |= {"step": torch.zeros(()), "momentum": torch.zeros_like(p)}
        state["step"] += 1
        return p.grad.lerp(state["momentum"].lerp_(p.grad, 1 - beta), beta)
