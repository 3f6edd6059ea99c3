"""What CB 08 claims: the digits that it reads, and its speed beside scikit-learn, PyTorch and a loop over examples."""

import functools
import time
import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from llmscratch.basis.mlp import MLP, accuracy, shift_and_turn, train_epoch
from llmscratch.kit import Race, mnist, race
from tests.bench import against, row
from tests.bench.lessons import source

NOTEBOOK = "01_common_basis/08_mlp_in_numpy"
SIZES, SEEDS = [784, 128, 10], range(3)


@functools.cache
def plain(seed: int) -> tuple[float, float]:
    """Percent of the test digits right and seconds after 15 epochs on the digits as they are."""
    digits, model, order = mnist(), MLP(SIZES, np.random.default_rng(seed)), np.random.default_rng(seed + 1)
    start = time.perf_counter()
    for _ in range(15):
        train_epoch(model, digits.x_train, digits.y_train, lr=0.1, batch_size=32, rng=order)
    return 100 * accuracy(model, digits.x_test, digits.y_test), time.perf_counter() - start


@functools.cache
def moved(seed: int) -> tuple[float, float]:
    """The same after 60 epochs on digits shifted and turned afresh, with the lesson's own settings."""
    space = {"np": np, "MLP": MLP, "train_epoch": train_epoch, "shift_and_turn": shift_and_turn, "accuracy": accuracy}
    space |= {"digits": mnist()}
    exec(source(NOTEBOOK, "fit"), space)
    start = time.perf_counter()
    _, history = space["fit"](augment=True, seed=seed)
    return 100 * history[-1], time.perf_counter() - start


def sklearn_accuracy(seed: int) -> float:
    digits = mnist()
    theirs = MLPClassifier(
        (128,), solver="sgd", batch_size=32, learning_rate_init=0.1, momentum=0, alpha=0, max_iter=15, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        theirs.fit(digits.x_train, digits.y_train)
    return 100 * theirs.score(digits.x_test, digits.y_test)


@row("CB08: test digits right after 15 epochs; theirs: scikit-learn's MLPClassifier", at_least=0.99, unit="%")
def beside_sklearn() -> Race:
    return against([plain(seed)[0] for seed in SEEDS], [sklearn_accuracy(seed) for seed in SEEDS])


@row("CB08: test digits right, plain; theirs: the goal", at_least=1, unit="%")
def plain_accuracy() -> Race:
    return against([plain(seed)[0] for seed in SEEDS], [92.0 for _ in SEEDS])


@row("CB08: time of the plain training; theirs: the goal", at_most=1)
def plain_seconds() -> Race:
    return against([plain(seed)[1] for seed in SEEDS], [5.0 for _ in SEEDS])


@row("CB08: test digits right, shifted and turned; theirs: the goal", at_least=1, unit="%")
def moved_accuracy() -> Race:
    return against([moved(seed)[0] for seed in SEEDS], [96.0 for _ in SEEDS])


@row("CB08: time of that training; theirs: the goal", at_most=1)
def moved_seconds() -> Race:
    return against([moved(seed)[1] for seed in SEEDS], [40.0 for _ in SEEDS])


@row("CB08: one epoch, vectorised; theirs: the same code in a loop over examples", at_most=1 / 20)
def beside_the_loop() -> Race:
    space = {"np": np}
    exec(source(NOTEBOOK, "loop_gradients", "loop_epoch"), space)
    digits, order = mnist(), np.random.default_rng(0)
    ours, theirs = (MLP(SIZES, np.random.default_rng(0)) for _ in range(2))
    return race(
        "one epoch",
        lambda: train_epoch(ours, digits.x_train, digits.y_train, lr=0.1, batch_size=32, rng=order),
        lambda: space["loop_epoch"](theirs, digits.x_train, digits.y_train, lr=0.1, batch_size=32, rng=order),
        repeats=5,
    )


@row("CB08: one training step, batch 32; theirs: PyTorch", at_most=1.5)
def beside_torch() -> Race:
    digits, order = mnist(), np.random.default_rng(0)
    ours, X, y = MLP(SIZES, np.random.default_rng(0)), digits.x_train[:32], digits.y_train[:32]
    net = torch.nn.Sequential(torch.nn.Linear(784, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    optimiser, inputs, targets = torch.optim.SGD(net.parameters(), lr=0.1), torch.tensor(X), torch.tensor(y)

    def step() -> None:
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(inputs), targets).backward()
        optimiser.step()

    return race("one step", lambda: train_epoch(ours, X, y, lr=0.1, batch_size=32, rng=order), step, repeats=500)
