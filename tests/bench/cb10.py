"""What CB 10 claims: a training step beside PyTorch's, and beside notebook 08's hand-written one."""

import numpy as np
import torch

from llmscratch.basis import mlp
from llmscratch.basis.tensor import SGD, Linear, Module, Tensor, cross_entropy
from llmscratch.kit import Race, mnist, race
from tests.bench import row
from tests.bench.lessons import source


def our_step():
    """The lesson's own training step of 784-128-10 at batch 64, float32, and its batch."""
    digits = mnist()
    X, y = digits.x_train[:64], digits.y_train[:64]
    space = {"np": np, "Module": Module, "Linear": Linear, "Tensor": Tensor, "cross_entropy": cross_entropy}
    exec(source("01_common_basis/10_tensor_autograd", "Net", "fit_batch"), space)
    net = space["Net"](np.random.default_rng(0))
    optimiser = SGD(net.parameters(), lr=0.1)
    return lambda: space["fit_batch"](net, optimiser, X, y), X, y


@row("CB10: one training step, batch 64; theirs: PyTorch", at_most=1.5)
def beside_torch() -> Race:
    ours, X, y = our_step()
    net = torch.nn.Sequential(torch.nn.Linear(784, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    optimiser, inputs, targets = torch.optim.SGD(net.parameters(), lr=0.1), torch.tensor(X), torch.tensor(y)

    def step() -> None:
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(inputs), targets).backward()
        optimiser.step()

    return race("one step", ours, step, repeats=500)


@row("CB10: one training step, batch 64; theirs: the hand-written one of CB08", at_most=2)
def beside_the_hand_written() -> Race:
    ours, X, y = our_step()
    model, order = mlp.MLP([784, 128, 10], np.random.default_rng(0)), np.random.default_rng(0)
    return race("one step", ours, lambda: mlp.train_epoch(model, X, y, lr=0.1, batch_size=64, rng=order), repeats=500)
