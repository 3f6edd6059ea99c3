"""What a run depends on besides the code: the scale, the device, the seeds."""

import os
import random


def scale() -> str:
    """The one dial, `LLMSCRATCH_SCALE`: "small" (the default, for a laptop) or "full" (a GPU, real data)."""
    value = os.environ.get("LLMSCRATCH_SCALE", "small")
    if value not in ("small", "full"):
        raise ValueError(f"LLMSCRATCH_SCALE is {value!r}; it must be 'small' or 'full'")
    return value


def device() -> str:
    """The device that torch should use here: "cuda", else "mps", else "cpu"."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's *global* generators.

    For code that cannot be handed a generator (a library's own shuffling). Lessons pass generators explicitly.
    """
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
