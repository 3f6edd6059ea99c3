"""What CB 11 claims about speed: a view beside a copy, the cost of a stride, einsum beside matmul."""

import torch

from llmscratch.kit import Race, race
from tests.bench import row


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
