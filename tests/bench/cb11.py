"""What CB 11 claims about speed: views, strides, einsum beside matmul, and the engine of CB10 beside PyTorch."""

import numpy as np
import torch
import torch.nn.functional as F

from llmscratch.basis.tensor import SGD, Linear, Tensor, cross_entropy
from llmscratch.kit import Race, mnist, race
from tests.bench import row
from tests.bench.lessons import source


@row("CB11: turning 9 million numbers by a view; theirs: moving them in memory", at_most=1 / 100)
def view_beside_copy() -> Race:
    large = torch.zeros(3000, 3000)
    return race("transpose", lambda: large.T, lambda: large.T.contiguous())


@row("CB11: copying 562,500 numbers at stride 16; theirs: side by side", at_least=2)
def apart_and_together() -> Race:
    boxes = torch.zeros(9_000_000)
    return race("copy", boxes[::16].clone, boxes[: len(boxes) // 16].clone)


@row("CB11: attention scores by einsum; theirs: by matmul", at_most=1.5)
def einsum_beside_matmul() -> Race:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.rand(8, 4, 128, 32, generator=generator) for _ in range(2))
    return race("scores", lambda: torch.einsum("bhtd,bhsd->bhts", q, k), lambda: q @ k.mT, repeats=100)


@row("CB11: one training step as in the side by side, batch 64; theirs: PyTorch", at_most=1.5)
def steps_side_by_side() -> Race:
    space = {"np": np, "torch": torch, "F": F, "Linear": Linear, "our_cross_entropy": cross_entropy}
    names = ("both_networks", "our_pass", "their_pass", "step")
    exec(source("01_common_basis/11_pytorch_tensors_and_autograd", *names), space)
    ours, theirs = space["both_networks"](np.float32)
    digits = mnist()
    x, y = digits.x_train[:64], digits.y_train[:64]
    our_batch, their_batch, labels = Tensor(x), torch.tensor(x), torch.tensor(y)
    our_sgd = SGD([p for layer in ours for p in layer.parameters()], lr=0.01)
    their_sgd = torch.optim.SGD([p for layer in theirs for p in layer.parameters()], lr=0.01)
    return race(
        "one step",
        lambda: space["step"](space["our_pass"], ours, our_sgd, our_batch, y),
        lambda: space["step"](space["their_pass"], theirs, their_sgd, their_batch, labels),
        repeats=500,
    )
