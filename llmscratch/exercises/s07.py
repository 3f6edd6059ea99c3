"""Exercises of 4S 07, pretraining."""

import bisect
import itertools
import math
import statistics

import numpy as np
import torch

from llmscratch.exercises.lesson import Lesson, Wrong, expect

lesson = Lesson("4S07")
check, hint, solution = lesson.check, lesson.hint, lesson.solution


def _reference_wsd(step, steps, lr, warmup, decay):
    up = (step + 1) / warmup if step < warmup else 1.0
    down = (steps - step) / decay if step > steps - decay else 1.0
    return lr * up * down


def _check_wsd(answer):
    runs = ((10, 1.0, 3, 4), (100, 6e-3, 10, 20), (8, 2.0, 4, 4), (20, 0.5, 0, 5), (20, 0.5, 5, 0))
    for steps, lr, warmup, decay in runs:
        for step in range(steps):
            given = f"step {step} of wsd(step, steps={steps}, lr={lr:g}, warmup={warmup}, decay={decay})"
            expect(answer(step, steps, lr, warmup, decay), _reference_wsd(step, steps, lr, warmup, decay), given)
    try:
        answer(0, 10, 1.0, 6, 5)
    except ValueError:
        return
    raise Wrong("expected a ValueError for warmup=6 and decay=5 in a run of 10 steps, got none")


def wsd(step, steps, lr, warmup, decay):
    if warmup + decay > steps:
        raise ValueError(f"{warmup} steps of warm-up and {decay} of decay do not fit into {steps} steps")
    if step < warmup:
        return lr * (step + 1) / warmup
    return lr * min(1, (steps - step) / decay) if decay else lr


def _starts_at_0(step, steps, lr, warmup, decay):
    if warmup + decay > steps:
        raise ValueError
    return lr * step / warmup if step < warmup else wsd(step, steps, lr, warmup, decay)


def _ends_at_0(step, steps, lr, warmup, decay):
    if step >= steps - decay:
        return lr * (steps - 1 - step) / max(decay - 1, 1)
    return wsd(step, steps, lr, warmup, decay)


def _accepts_anything(step, steps, lr, warmup, decay):
    return lr * min(1, (step + 1) / warmup if warmup else 1, (steps - step) / decay if decay else 1)


lesson.add(
    1, 1, "Warm-up, stable, decay", check=_check_wsd,
    hints=["Three cases: step < warmup, the last `decay` steps, and all between.",
           "In the last part the rate is lr · (steps − step) / decay: at step steps − decay that is lr."],
    solution=wsd,
    wrong={
        _starts_at_0: "expected 0.333333 for step 0", _ends_at_0: "step 7", _accepts_anything: "expected a ValueError",
    },
)  # fmt: skip


def _check_guard(answer):
    ramp = [1.0, 1.1, 0.9, 50.0, 1.0, 60.0, 1.2, 70.0, math.nan, 1.0, math.inf, 2.9, 3.5, 1.0]
    noisy = [8.0, 1.0, 2.0, 100.0, 1.0, 1.5, 9.0, 1.0, 2.0, 4.1, 4.1, 4.1, 4.1, 4.1, 4.1]
    rising = [1.5**i for i in range(12)]
    bad_start = [1.0, math.inf, 40.0, 1.0, math.nan, 1.0, 1.0, 90.0, 1.0]
    for factor, window in ((3.0, 3), (2.0, 4), (10.0, 1)):
        for norms in (ramp, noisy, rising, bad_start):
            skip, reference = answer(factor, window), guard(factor, window)
            if not callable(skip):
                raise Wrong(f"expected guard({factor:g}, {window}) to return a function, got {skip!r:.60}")
            for i, norm in enumerate(norms):
                given = f"skip({norm:.4g}) of guard({factor:g}, {window}), after {[round(n, 2) for n in norms[:i]]}"
                expect(skip(norm), reference(norm), given)
    one, other = answer(3.0, 2), answer(3.0, 2)
    for norm in (1.0, 1.0):
        one(norm)
    expect(other(50.0), False, "skip(50) of a new guard(3, 2), after another guard has seen norms")


def guard(factor, window):
    kept = []

    def skip(norm):
        usual = statistics.median(kept[-window:]) if len(kept) >= window else math.inf
        if not math.isfinite(norm) or norm > factor * usual:
            return True
        kept.append(norm)
        return False

    return skip


def _guard(factor, window, kept=None, *, usual=statistics.median, remembers=False, finite=True, forgets=True):
    """A guard that does one thing wrong."""
    kept = [] if kept is None else kept

    def skip(norm):
        bound = factor * usual(kept[-window:] if forgets else kept) if len(kept) >= window else math.inf
        skipped = (finite and not math.isfinite(norm)) or norm > bound
        if not skipped or (remembers and math.isfinite(norm)):
            kept.append(norm)
        return skipped

    return skip


_shared = []


lesson.add(
    2, 2, "A guard against bad batches", check=_check_guard,
    hints=["Keep a list in the outer function, of the norms that were not skipped; the median is of its last `window`.",
           "Ask math.isfinite(norm) first. With fewer than `window` kept norms, only that counts."],
    solution=guard,
    wrong={
        (lambda factor, window: _guard(factor, window, remembers=True)): "expected True",
        (lambda factor, window: _guard(factor, window, usual=statistics.fmean)): "expected",
        (lambda factor, window: _guard(factor, window, finite=False)): "expected True",
        (lambda factor, window: _guard(factor, window, forgets=False)): "expected",
        (lambda factor, window: _guard(factor, window, _shared)): "expected",
    },
)  # fmt: skip


def _check_pack(answer):
    draw = np.random.default_rng(0)
    cases = [([3, 5, 2, 4, 2], 7), ([4, 4, 4], 4), ([], 5), ([6, 1, 5, 2, 4, 3], 10)]
    cases.append((draw.integers(50, 270, 60).tolist(), 512))
    for lengths, context in cases:
        shown = lengths if len(lengths) < 10 else f"{len(lengths)} random lengths"
        got, want = answer(list(lengths), context), pack(lengths, context)
        given = f"lengths {shown} and context {context}"
        try:
            got = [[int(i) for i in row] for row in got]
        except TypeError:
            raise Wrong(f"expected lists of indices for {given}, got {got!r:.80}") from None
        if sorted(i for row in got for i in row) != list(range(len(lengths))):
            raise Wrong(f"expected each story in exactly one row for {given}, got {str(got):.120}")
        most = max((sum(lengths[i] for i in row) for row in got), default=0)
        if most > context:
            raise Wrong(f"expected at most {context} tokens a row for {given}, got a row with {most}")
        for n, (mine, right) in enumerate(itertools.zip_longest(got, want)):
            if mine != right:
                raise Wrong(f"expected row {n} to be {right} for {given}, got {mine} (ties stay in their order)")
    try:
        answer([3, 9], 8)
    except ValueError:
        return
    raise Wrong("expected a ValueError for lengths [3, 9] and context 8, got none")


def pack(lengths, context):
    if any(length > context for length in lengths):
        raise ValueError(f"a story of {max(lengths)} tokens does not fit into a row of {context}")
    rows, room = [], []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, free in enumerate(room) if free >= lengths[i]), None)
        if row is None:
            rows.append([])
            room.append(context)
            row = -1
        rows[row].append(i)
        room[row] -= lengths[i]
    return rows


def _in_given_order(lengths, context):
    if any(length > context for length in lengths):
        raise ValueError
    rows, room = [], []
    for i, length in enumerate(lengths):
        row = next((r for r, free in enumerate(room) if free >= length), None)
        if row is None:
            rows.append([])
            room.append(context)
            row = -1
        rows[row].append(i)
        room[row] -= length
    return rows


def _only_the_last_row(lengths, context):
    if any(length > context for length in lengths):
        raise ValueError
    rows, free = [], 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if lengths[i] > free:
            rows.append([])
            free = context
        rows[-1].append(i)
        free -= lengths[i]
    return rows


def _too_full(lengths, context):
    return pack(lengths, context + 1) if max(lengths, default=0) <= context else pack([context + 1], context)


lesson.add(
    3, 2, "Stories side by side", check=_check_pack,
    hints=["Python's sorted is stable: sorted(range(n), key=lambda i: -lengths[i]) keeps equal lengths in order.",
           "Keep, beside the rows, the room that is left in each; next(...) finds the first with enough."],
    solution=pack,
    wrong={_in_given_order: "expected row", _only_the_last_row: "expected row", _too_full: "tokens a row"},
)  # fmt: skip


def _check_row_mask(answer):
    for lengths in ([3], [2, 3], [1, 1, 2], [4, 1, 3, 2]):
        given = f"lengths {lengths}"
        found = answer(list(lengths))
        if not isinstance(found, tuple) or len(found) != 2:
            raise Wrong(f"expected (positions, mask) for {given}, got {type(found).__name__}")
        positions, mask = (torch.as_tensor(part) for part in found)
        want_positions = np.concatenate([np.arange(n) for n in lengths])
        expect(positions.numpy(), want_positions, f"the positions of {given}")
        if mask.dtype != torch.bool:
            raise Wrong(f"expected a mask of True and False for {given}, got {mask.dtype}")
        T, ends = sum(lengths), np.cumsum(lengths).tolist()
        expect(np.array(mask.shape), np.array([T, T]), f"the shape of the mask of {given}")
        for i in range(T):
            for j in range(T):
                may = bisect.bisect(ends, i) == bisect.bisect(ends, j) and j <= i
                expect(bool(mask[i, j]), may, f"may token {i} attend to token {j} in a row with {given}")


def row_mask(lengths):
    story = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))  # (T,)
    positions = torch.cat([torch.arange(n) for n in lengths])
    return positions, (story[:, None] == story[None]).tril()


def _sees_neighbours(lengths):
    T = sum(lengths)
    return row_mask(lengths)[0], torch.ones(T, T, dtype=torch.bool).tril()


def _looks_ahead(lengths):
    story = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return row_mask(lengths)[0], story[:, None] == story[None]


def _counts_on(lengths):
    return torch.arange(sum(lengths)), row_mask(lengths)[1]


def _not_itself(lengths):
    positions, mask = row_mask(lengths)
    return positions, mask.tril(-1)


lesson.add(
    4, 3, "Who may look at whom", check=_check_row_mask,
    hints=["Give each token the number of its story: torch.repeat_interleave does it.",
           "Two tokens are in one story where story[:, None] == story[None]; .tril() removes what lies ahead."],
    solution=row_mask,
    wrong={
        _sees_neighbours: "expected False", _looks_ahead: "expected False", _counts_on: "the positions of",
        _not_itself: "expected True",
    },
)  # fmt: skip
