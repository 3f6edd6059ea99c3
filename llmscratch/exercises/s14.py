"""Exercises of 4S 14, instruction tuning."""

import itertools
import math

import numpy as np
import torch
from torch.nn import functional as F

from llmscratch.exercises.lesson import Lesson, Wrong, expect

lesson = Lesson("4S14")
check, hint, solution = lesson.check, lesson.hint, lesson.solution

END_OF_TEXT, USER, ASSISTANT, END = 2044, 2045, 2046, 2047


def _check_difference(answer):
    draw = np.random.default_rng(0)
    before = draw.random(200) < 0.3
    after = before | (draw.random(200) < 0.15)
    for given, a, b in (
        ("before = after", before, before),
        ("200 requests, of which some more are obeyed after", before, after),
        ("200 requests, of which some fewer are obeyed after", after, before),
        ("200 requests, answered quite differently after", before, draw.random(200) < 0.6),
        ("12 requests, one of which is newly obeyed after", np.zeros(12, bool), np.arange(12) == 5),
    ):
        got = answer(a, b)
        if not isinstance(got, tuple | list | np.ndarray) or len(got) != 2:
            raise Wrong(f"expected (low, high) for {given}, got {got!r:.80}")
        for name, mine, right in zip(("low", "high"), got, difference(a, b), strict=True):
            if abs(float(mine) - right) > 0.008:
                raise Wrong(f"expected {name} to be about {right:.3f} for {given}, got {float(mine):.3f}")
    try:
        answer([True, False], [True])
    except ValueError:
        return
    raise Wrong("expected a ValueError for 2 values before and 1 after, got none")


def difference(before, after, n=10_000, seed=0):
    if len(before) != len(after):
        raise ValueError(f"needs lists of one length, got {len(before)} and {len(after)} values")
    change = np.asarray(after, float) - np.asarray(before, float)
    drawn = np.random.default_rng(seed).integers(0, len(change), (n, len(change)))
    return tuple(np.quantile(change[drawn].mean(1), (0.025, 0.975)))


def _unpaired(before, after, n=10_000, seed=0):
    rng, means = np.random.default_rng(seed), []
    for values in (np.asarray(after, float), np.asarray(before, float)):
        means.append(values[rng.integers(0, len(values), (n, len(values)))].mean(1))
    if len(before) != len(after):
        raise ValueError
    return tuple(np.quantile(means[0] - means[1], (0.025, 0.975)))


def _backwards(before, after, n=10_000, seed=0):
    return difference(after, before, n, seed)


def _ninety(before, after, n=10_000, seed=0):
    change = np.asarray(after, float) - np.asarray(before, float)
    drawn = np.random.default_rng(seed).integers(0, len(change), (n, len(change)))
    return tuple(np.quantile(change[drawn].mean(1), (0.05, 0.95)))


def _normal(before, after, n=10_000, seed=0):
    if len(before) != len(after):
        raise ValueError
    change = np.asarray(after, float) - np.asarray(before, float)
    spread = 1.96 * change.std() / math.sqrt(len(change))
    return change.mean() - spread, change.mean() + spread


def _any_lengths(before, after, n=10_000, seed=0):
    shorter = min(len(before), len(after))
    return difference(before[:shorter], after[:shorter], n, seed)


lesson.add(
    1, 1, "Is it better?", check=_check_difference,
    hints=["Both models answered the same requests. Draw requests, not answers: one set of indices serves both.",
           "change = after − before, request by request; then as `bootstrap` does."],
    solution=difference,
    wrong={
        _unpaired: "before = after", _backwards: "some more are obeyed", _ninety: "expected low",
        _normal: "one of which is newly obeyed", _any_lengths: "expected a ValueError",
    },
)  # fmt: skip


def _check_pass_at(answer):
    for n, c, k in ((10, 0, 3), (10, 10, 3), (10, 3, 1), (10, 3, 5), (10, 8, 3), (4, 1, 4), (200, 7, 50), (5, 2, 2)):
        expect(answer(n, c, k), pass_at(n, c, k), f"n = {n} tries, c = {c} of them right, k = {k}")
    for n, c, k in ((5, 1, 6), (5, 6, 2), (5, 1, 0), (5, -1, 2), (5, 1, -1)):
        try:
            answer(n, c, k)
        except ValueError:
            continue
        raise Wrong(f"expected a ValueError for n = {n}, c = {c}, k = {k}, got none")


def pass_at(n, c, k):
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"needs 0 ≤ c ≤ n and 1 ≤ k ≤ n, got n = {n}, c = {c}, k = {k}")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def _with_replacement(n, c, k):
    pass_at(n, c, k)
    return 1 - (1 - c / n) ** k


def _all_right(n, c, k):
    pass_at(n, c, k)
    return math.comb(c, k) / math.comb(n, k)


def _half_guarded(n, c, k):
    if c > n or k > n or not k:
        raise ValueError
    return 1 - math.comb(n - c, abs(k)) / math.comb(n, abs(k))


def _unguarded(n, c, k):
    return 1 - math.prod((n - c - i) / (n - i) for i in range(min(k, n))) if n - c >= k else 1.0


lesson.add(
    2, 2, "Several tries", check=_check_pass_at,
    hints=["Count the ways to choose k of the n tries so that none is right, and divide by all ways to choose k.",
           "math.comb(n, k) counts; it is 0 when k is larger than n."],
    solution=pass_at,
    wrong={
        _with_replacement: "c = 3 of them right, k = 5", _all_right: "expected", _unguarded: "expected a ValueError",
        _half_guarded: "expected a ValueError for n = 5, c = -1",
    },
)  # fmt: skip


def _talk(*turns):
    """The ids of a conversation; turns: lists of ids."""
    ids = [END_OF_TEXT]
    for role, turn in zip(itertools.cycle((USER, ASSISTANT)), turns):
        ids += [role, *turn, END]
    return ids


def _check_last_answer(answer):
    cases = [_talk([5, 6], [7, 8, 9]), _talk([5], [7, 8], [6], [9]), _talk([5], [7], [6, 6], [9, 9], [4], [3, 3, 3]),
             _talk([5], []), _talk([5], [7, 8], [6])]  # fmt: skip
    for ids in cases:
        got, given = answer(list(ids)), f"ids {ids}"
        try:
            got = [bool(value) for value in got]
        except TypeError:
            raise Wrong(f"expected a list of True and False for {given}, got {got!r:.60}") from None
        want = last_answer(ids)
        if len(got) != len(want):
            raise Wrong(f"expected {len(want)} values for {given}, got {len(got)}")
        for place, (mine, right) in enumerate(zip(got, want, strict=True)):
            if mine != right:
                raise Wrong(f"expected {right} at place {place}, before the token {ids[place + 1 :][:1]}, for {given}")


def last_answer(ids):
    opened = max((place for place, token in enumerate(ids) if token == ASSISTANT), default=len(ids))
    closed = next((place for place in range(opened, len(ids)) if ids[place] == END), len(ids))
    return [opened <= place < closed for place in range(len(ids))]


def _every_answer(ids):
    counts, writing = [], False
    for token in ids:
        writing = (writing or token == ASSISTANT) and token not in (USER, END)
        counts.append(writing)
    return counts


def _without_end(ids):
    counts = last_answer(ids)
    return [count and ids[place + 1 : place + 2] != [END] for place, count in enumerate(counts)]


def _the_token_itself(ids):
    counts = last_answer(ids)
    return [False, *counts[:-1]]


lesson.add(
    3, 2, "Only the last answer", check=_check_last_answer,
    hints=["Find the last <|assistant|>, then the first <|end|> after it.",
           "Place t is about token t + 1: the <|assistant|> itself counts, the place of <|end|> does not."],
    solution=last_answer,
    wrong={_every_answer: "expected False", _without_end: "expected True", _the_token_itself: "expected True"},
)  # fmt: skip


def _check_attend(answer):
    draw = torch.Generator().manual_seed(0)
    for H, d, lengths in ((2, 8, [4]), (2, 8, [2, 3]), (1, 4, [1, 1, 3]), (3, 6, [5, 1, 7, 3])):
        q, k, v = (torch.randn(H, sum(lengths), d, generator=draw, dtype=torch.float64) for _ in range(3))
        got, given = answer(q, k, v, list(lengths)), f"q, k, v of shape {tuple(q.shape)} and lengths {lengths}"
        if not isinstance(got, torch.Tensor):
            raise Wrong(f"expected a tensor for {given}, got {type(got).__name__}")
        number = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        mask = (number[:, None] == number).tril()
        want = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        expect(np.array(got.shape), np.array(want.shape), f"the shape of the result for {given}")
        at = 0
        for place, length in enumerate(lengths):
            mine, right = got[:, at : at + length], want[:, at : at + length]
            expect(mine.numpy(), right.numpy(), f"the part of document {place} for {given}", atol=1e-9)
            at += length


def attend(q, k, v, lengths):
    parts = zip(*(each.split(lengths, dim=1) for each in (q, k, v)), strict=True)
    return torch.cat([F.scaled_dot_product_attention(*part, is_causal=True) for part in parts], dim=1)


def _sees_all_before(q, k, v, lengths):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _sees_ahead(q, k, v, lengths):
    parts = zip(*(each.split(lengths, dim=1) for each in (q, k, v)), strict=True)
    return torch.cat([F.scaled_dot_product_attention(*part) for part in parts], dim=1)


def _returns_queries(q, k, v, lengths):
    return attend(q, k, q, lengths)


def _always_root_8(q, k, v, lengths):
    return attend(q * math.sqrt(q.shape[-1] / 8), k, v, lengths)


lesson.add(
    4, 3, "Borders instead of a mask", check=_check_attend,
    hints=["tensor.split(lengths, dim=1) cuts the row into its documents.",
           "F.scaled_dot_product_attention(..., is_causal=True) for each part, then torch.cat along the same axis."],
    solution=attend,
    wrong={
        _sees_all_before: "the part of document 1", _sees_ahead: "the part of document 0",
        _returns_queries: "the part of document 0", _always_root_8: "the part of document 2",
    },
)  # fmt: skip
