"""What a run depends on besides the code: the scale, the device, the seeds."""

import functools
import math
import os
import random
import time


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


@functools.cache
def fast_bf16() -> bool:
    """Whether torch multiplies matrices faster in bfloat16 than in float32 on `device()`.

    A GPU is asked. On a CPU two products are timed, once in a process: one with units for bfloat16 is several times as
    fast in it, one without them up to a hundred times as slow.
    """
    import torch

    if device() == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device() == "mps":
        return False
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(384, 384, dtype=dtype)
        for _ in range(3):
            start = time.perf_counter()
            x @ x
            seconds[dtype] = min(time.perf_counter() - start, seconds.get(dtype, math.inf))
    return seconds[torch.bfloat16] < 0.8 * seconds[torch.float32]


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's *global* generators.

    For code that cannot be handed a generator (a library's own shuffling). Lessons pass generators explicitly.
    """
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
