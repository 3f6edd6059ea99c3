"""What CB 12 claims: the CNN's test digits and seconds, and the loop and the loader beside plain PyTorch."""

import functools
import math
import os
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from llmscratch.basis.train import fit, load_checkpoint, looking, save_checkpoint
from llmscratch.kit import Race, mnist, race
from tests.bench import row
from tests.bench.cb08 import against
from tests.bench.lessons import source

NOTEBOOK = "01_common_basis/12_pytorch_training"


def lesson(*names: str) -> dict:
    """The lesson's own functions `names`, and the digits as it splits them."""
    digits = mnist()
    X, y = torch.tensor(digits.x_train), torch.tensor(digits.y_train)
    space = {"torch": torch, "nn": nn, "F": F, "math": math, "time": time, "DataLoader": DataLoader, "fit": fit}
    space |= {"where": "cpu", "X_val": X[3400:], "y_val": y[3400:], "X_train": X[:3400], "y_train": y[:3400]}
    space |= {"train_data": TensorDataset(X[:3400], y[:3400]), "digits": digits}
    exec(source(NOTEBOOK, *names), space)
    return space


@functools.cache
def cnn() -> tuple[float, float]:
    """Percent of the test digits right, and seconds by the clock, of the lesson's CNN on moved digits."""
    space = lesson("CNN", "move", "moved", "seeded", "train_cnn")
    start = time.perf_counter()
    model, _, _ = space["train_cnn"](augment=True, epochs=14)
    seconds = time.perf_counter() - start
    with looking(model):
        said = model(torch.tensor(space["digits"].x_test)).argmax(dim=1)
    return 100 * (said == torch.tensor(space["digits"].y_test)).double().mean().item(), seconds


@row("CB12: test digits right by the CNN; theirs: the goal", at_least=1, unit="%")
def cnn_accuracy() -> Race:
    return against([cnn()[0]] * 2, [97.5] * 2)


@row("CB12: time of its training; theirs: the goal", at_most=1)
def cnn_seconds() -> Race:
    return against([cnn()[1]] * 2, [60.0] * 2)


@row("CB12: an epoch of the MLP by fit; theirs: the loop written out in plain PyTorch", at_most=1.5)
def beside_plain() -> Race:
    space = lesson("small_reader", "train", "sgd")
    rows = torch.arange(3400).split(32)
    batches = [(space["X_train"][r], space["y_train"][r]) for r in rows]
    models = [space["small_reader"]() for _ in range(2)]
    ours, theirs = (space["sgd"](model) for model in models)

    def loss_fn(model, batch):
        x, t = batch
        return F.cross_entropy(model(x), t)

    return race(
        "one epoch",
        lambda: fit(models[0], batches, optimizer=ours, loss_fn=loss_fn, epochs=1, progress=False),
        lambda: space["train"](models[1].train(), batches, theirs, epochs=1),
        repeats=30,
    )


@row("CB12: an epoch of batches by five lines; theirs: DataLoader", at_most=1.25)
def beside_loader() -> Race:
    space, generator = lesson("load"), torch.Generator().manual_seed(0)
    loader = DataLoader(space["train_data"], 32, shuffle=True, generator=generator)
    return race(
        "one epoch", lambda: list(space["load"](space["train_data"], 32, generator)), lambda: list(loader), repeats=30
    )


@row("CB12: 1.1 million weights with Adam, saved and loaded; theirs: torch.save and torch.load", at_most=3)
def beside_pickle() -> Race:
    model = nn.Sequential(nn.Linear(1024, 1024), nn.Linear(1024, 10))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 1024)).sum().backward()
    optimizer.step()
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "ours.safetensors", Path(folder) / "theirs.pt"

        def with_torch() -> None:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, theirs)
            with open(theirs, "r+b") as file:  # as safe as ours
                os.fsync(file.fileno())
            state = torch.load(theirs)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])

        def with_ours() -> None:
            save_checkpoint(ours, model, optimizer)
            load_checkpoint(ours, model, optimizer)

        return race("save and load", with_ours, with_torch, repeats=10)
