"""Exercises of 4E 01, talking to LLMs."""

import calendar
import functools

import numpy as np
import torch

from llmscratch.engineer.grammar import (
    EMPTY,
    OneByte,
    Text,
    either,
    integers,
    json_pattern,
    then,
    times,
)
from llmscratch.exercises.lesson import Lesson, Wrong, expect, shown

lesson = Lesson("4E01")
check, hint, solution = lesson.check, lesson.hint, lesson.solution


def _numbers(result, given):
    """The logits as an array; Wrong when they are no tensor."""
    if not isinstance(result, torch.Tensor):
        raise Wrong(f"expected a tensor for {given}, got {type(result).__name__}")
    return result.detach().double().numpy()


def _kept(logits):
    """Which tokens of one row are left."""
    return [int(i) for i in np.flatnonzero(np.asarray(logits) > -np.inf)]


def _check_repeats(answer):
    draw = torch.Generator().manual_seed(0)
    cases = [(torch.tensor([[5, 1, 2, 5, 1]]), 3), (torch.tensor([[5, 1, 2, 5, 1]]), 2), (torch.tensor([[3, 4, 3]]), 1),
             (torch.tensor([[3]]), 3), (torch.tensor([[3, 3]]), 3), (torch.tensor([[3, 3, 3]]), 3),
             (torch.tensor([[1, 2, 1, 4, 1], [4, 4, 1, 2, 4]]), 2)]  # fmt: skip
    cases += [(torch.randint(0, 4, (3, 30), generator=draw), n) for n in (1, 2, 3, 4)]
    for seen, n in cases:
        logits = torch.randn(len(seen), 6, generator=draw)
        given, before = logits.clone(), f"n = {n} and seen = {seen.tolist()}"
        got = _numbers(answer(given, seen, n), before)
        expect(got.shape, tuple(logits.shape), f"the shape of the result, {before}")
        for row, tokens in enumerate(seen.tolist()):
            parts = {tuple(tokens[k : k + n]) for k in range(len(tokens) - n + 1)}
            want = [i for i in range(6) if (*tokens[len(tokens) - n + 1 :], i)[-n:] not in parts or len(tokens) + 1 < n]
            if _kept(got[row]) != want:
                raise Wrong(f"expected the tokens {want} to be left in row {row} for {before}, got {_kept(got[row])}")
            expect(got[row][want], logits[row, want].double().numpy(), f"the logits that are left, {before}")
        if not torch.equal(given, logits):
            raise Wrong(f"expected the given logits to stay as they are for {before}; they were changed")


def forbid_repeats(logits, seen, n):
    logits = logits.clone()
    for row, tokens in enumerate(seen.tolist()):
        start = tokens[len(tokens) - n + 1 :]  # the n − 1 tokens that a new one would complete
        for k in range(len(tokens) - n + 1):
            if tokens[k : k + n - 1] == start:
                logits[row, tokens[k + n - 1]] = -torch.inf
    return logits


def _in_place(logits, seen, n):
    logits.copy_(forbid_repeats(logits, seen, n))
    return logits


def _one_too_long(logits, seen, n):
    return forbid_repeats(logits, seen, n + 1)


def _any_seen(logits, seen, n):
    return forbid_repeats(logits, seen, 1)


def _all_rows(logits, seen, n):
    banned = (forbid_repeats(torch.zeros_like(logits), seen, n) < 0).any(0)
    return logits.masked_fill(banned, -torch.inf)


lesson.add(
    1, 1, "No sentence twice", check=_check_repeats,
    hints=["The new token completes an n-gram whose first n − 1 tokens are the last n − 1 of the row.",
           "Where those n − 1 tokens stand from place k of the row, token k + n − 1 is forbidden. With n = 1 all are."],
    solution=forbid_repeats,
    wrong={_in_place: "they were changed", _one_too_long: "n = 3", _any_seen: "n = 3", _all_rows: "in row"},
)  # fmt: skip


def _check_typical(answer):
    draw, inf = torch.Generator().manual_seed(0), torch.inf
    cases = [(torch.tensor([[0.6, 0.25, 0.15]]).log(), 0.2), (torch.tensor([[0.4, 0.2, 0.15, 0.13, 0.12]]).log(), 0.3),
             (torch.tensor([[0.9, 0.06, 0.04]]).log(), 0.95),
             (torch.tensor([[-inf, 0.5, 2.0, -inf, 1.0]]), 0.3)]  # fmt: skip
    cases += [(torch.randn(4, 40, generator=draw) * 3, mass) for mass in (0.05, 0.5, 0.9)]
    for logits, mass in cases:
        given = f"mass = {mass} and logits = {shown(logits.numpy().round(2))}"
        got = _numbers(answer(logits.clone(), mass), given)
        expect(got.shape, tuple(logits.shape), f"the shape of the result, {given}")
        if np.isnan(got).any():
            raise Wrong(f"expected numbers or −∞ for {given}, got nan: 0 · ln 0 counts as 0 in the entropy")
        for row, z in enumerate(logits.double()):
            p = z.softmax(-1).numpy()
            nats = -np.log(p, where=p > 0, out=np.full(len(p), -inf))
            order = np.argsort(np.abs(nats - (p[p > 0] * nats[p > 0]).sum()))
            want = sorted(order[: 1 + int((p[order].cumsum() < mass).sum())].tolist())
            if _kept(got[row]) != want:
                raise Wrong(f"expected the tokens {want} to be left in row {row} for {given}, got {_kept(got[row])}")
            expect(got[row][want], z[want].numpy(), f"the logits that are left, {given}", atol=1e-6)


def keep_typical(logits, mass):
    logp = logits.log_softmax(-1)
    entropy = -(logp.exp() * logp).nan_to_num().sum(-1, keepdim=True)
    order = (-logp - entropy).abs().argsort(-1)
    before = logp.exp().gather(-1, order).cumsum(-1).roll(1, -1)  # what the more typical ones have together
    before[..., 0] = 0
    return logits.masked_fill((before >= mass).scatter(-1, order, before >= mass), -torch.inf)


def _nucleus(logits, mass):
    falling, order = logits.softmax(-1).sort(-1, descending=True)
    cut = falling.cumsum(-1) - falling >= mass
    return logits.masked_fill(cut.scatter(-1, order, cut), -torch.inf)


def _stops_before(logits, mass):
    logp = logits.log_softmax(-1)
    entropy = -(logp.exp() * logp).nan_to_num().sum(-1, keepdim=True)
    order = (-logp - entropy).abs().argsort(-1)
    cut = logp.exp().gather(-1, order).cumsum(-1) > mass
    cut[..., 0] = False
    return logits.masked_fill(cut.scatter(-1, order, cut), -torch.inf)


def _nan_entropy(logits, mass):
    logp = logits.log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1, keepdim=True)
    order = (-logp - entropy).abs().argsort(-1)
    before = logp.exp().gather(-1, order).cumsum(-1).roll(1, -1)
    before[..., 0] = 0
    return logits.masked_fill((before >= mass).scatter(-1, order, before >= mass), -torch.inf)


lesson.add(
    2, 2, "Typical sampling", check=_check_typical,
    hints=["log_softmax gives ln p; the entropy is −Σ p ln p, in which a token with p = 0 counts 0 (nan_to_num).",
           "Sort by |−ln p − H|; a token stays if those before it in this order have less than `mass` together."],
    solution=keep_typical,
    wrong={_nucleus: "to be left", _stops_before: "to be left", _nan_entropy: "to be left"},
)  # fmt: skip


def _is(pattern, text):
    for byte in text.encode():
        pattern = pattern.after(byte)
    return pattern.ends


def _check_dates(answer):
    pattern = answer()
    if not all(hasattr(pattern, name) for name in ("after", "ends")):  # in the notebook it is the reader's own class
        raise Wrong(f"expected a Pattern for dates(), got {type(pattern).__name__}")
    for text in (
        "1899-12-31",
        "2100-01-01",
        "2024-2-29",
        "2024-02-29 ",
        "24-02-29",
        "2024/02/29",
        "",
        "2024-02",
        "2024-03-9",
        "2024-03-012",
        "2024-003-12",
        "2024-02-291",
    ):
        expect(_is(pattern, text), False, f"the text {text!r}")
    for year in (1900, 2000, 2024, *range(1901, 2100)):
        for month in range(14):
            last = calendar.monthrange(year, month)[1] if 1 <= month <= 12 else 0
            for day in (0, 1, 9, 10, 28, 29, 30, 31, 32):
                text = f"{year}-{month:02}-{day:02}"
                expect(_is(pattern, text), 1 <= day <= last, f"the text {text!r}")


def dates():
    def either_of(numbers, form="{:02}"):
        return either(*(Text(form.format(n).encode()) for n in numbers))

    years, dash = range(1900, 2100), Text(b"-")
    leap = [year for year in years if year % 4 == 0 and (year % 100 or year % 400 == 0)]
    long = then(either_of((1, 3, 5, 7, 8, 10, 12)), dash, either_of(range(1, 32)))
    short = then(either_of((4, 6, 9, 11)), dash, either_of(range(1, 31)))
    february = then(Text(b"02-"), either_of(range(1, 29)))
    return either(
        then(either_of(years, "{}"), dash, either(long, short, february)),
        then(either_of(leap, "{}"), Text(b"-02-29")),
    )


def _any_day():
    two = either(*(Text(f"{n:02}".encode()) for n in range(1, 32)))
    months = either(*(Text(f"{n:02}".encode()) for n in range(1, 13)))
    return then(integers(1900, 2099), Text(b"-"), months, Text(b"-"), two)


def _every_fourth():
    extra = then(Text(b"1900"), Text(b"-02-29"))
    return either(dates(), extra)


def _no_zeros():
    digit = OneByte(b"0123456789")
    return then(integers(1900, 2099), Text(b"-"), integers(1, 12), Text(b"-"), times(digit, 1, 2))


def _days_of_any_length():
    dash, two = Text(b"-"), lambda numbers: either(*(Text(f"{n:02}".encode()) for n in numbers))

    def days(last):
        return then(times(Text(b"0"), 0, 1), integers(1, last))

    long, short = then(two((1, 3, 5, 7, 8, 10, 12)), dash, days(31)), then(two((4, 6, 9, 11)), dash, days(30))
    leap = either(*(Text(f"{y}-02-29".encode()) for y in range(1900, 2100) if calendar.isleap(y)))
    return either(then(integers(1900, 2099), dash, either(long, short, then(two((2,)), dash, days(28)))), leap)


def _no_leap():
    dash, two = Text(b"-"), lambda numbers: either(*(Text(f"{n:02}".encode()) for n in numbers))
    days = ((1, 3, 5, 7, 8, 10, 12), 31), ((4, 6, 9, 11), 30), ((2,), 28)
    return then(integers(1900, 2099), dash, either(*(then(two(m), dash, two(range(1, d + 1))) for m, d in days)))


lesson.add(
    3, 2, "Dates", check=_check_dates,
    hints=["either(*(Text(f'{n:02}'.encode()) for n in …)) is a number with two digits out of a list.",
           "Three kinds of months by their last day, the same in all years; then 29 February, for leap years alone."],
    solution=dates,
    wrong={_any_day: "1900-02-29", _every_fourth: "1900-02-29", _no_zeros: "2024-2-29", _no_leap: "2000-02-29",
           _days_of_any_length: "2024-03-9"},
)  # fmt: skip


@functools.cache
def _patterns():
    a, b = Text(b"a"), Text(b"b")
    thing = {
        "type": "object",
        "properties": {"name": {"enum": ["Mia", "Mio"]}, "n": {"type": "integer", "minimum": 7}},
    }
    return (
        (Text(b"abc"), b"abc"), (either(a, b), b""), (then(a, either(a, b), b), b"a"), (EMPTY, b""),
        (times(Text(b"ab"), 1, 3), b"ab"), (either(Text(b"ab"), Text(b"abc")), b"ab"), (then(times(a, 0, 1), b), b""),
        (either(Text("Öl".encode()), Text("Öse".encode())), "Ö".encode()), (times(a, 3, 3), b"aaa"),
        (either(Text(b"xay"), then(OneByte(b"x"), OneByte(b"a"), b)), b"xa"),
        (either(Text("Ö".encode()), Text("ß".encode())), b"\xc3"),
        (json_pattern(thing), b'{"name": "Mi'), (json_pattern({"type": "object", "properties": {}}), b"{}"),
    )  # fmt: skip


def _check_forced(answer):
    for pattern, want in _patterns():
        given = f"a pattern whose shared beginning is {want!r}"
        got = answer(pattern)
        if not isinstance(got, bytes):
            raise Wrong(f"expected bytes for {given}, got {got!r}")
        if got != want:
            raise Wrong(f"expected {want!r} for {given}, got {got!r}")


def forced(pattern):
    shared = b""
    while not pattern.ends:
        can = [byte for byte in range(256) if pattern.after(byte).shortest < float("inf")]
        if len(can) != 1:
            break
        shared += bytes(can)
        pattern = pattern.after(can[0])
    return shared


def _past_the_end(pattern):
    shared = b""
    while len(can := [byte for byte in range(256) if pattern.after(byte).shortest < float("inf")]) == 1:
        shared += bytes(can)
        pattern = pattern.after(can[0])
    return shared


def _ascii(pattern):
    shared = b""
    while not pattern.ends:
        can = [byte for byte in range(128) if pattern.after(byte).shortest < float("inf")]
        if len(can) != 1:
            break
        shared += bytes(can)
        pattern = pattern.after(can[0])
    return shared


def _as_text(pattern):
    return forced(pattern).decode("utf-8", "replace")


lesson.add(
    4, 3, "Do not ask what you know", check=_check_forced,
    hints=["pattern.after(byte).shortest is ∞ when no text goes on with this byte.",
           "Go on while exactly one byte is possible; stop where pattern.ends: a text that ends there shares no more."],
    solution=forced,
    wrong={_past_the_end: "b'ab'", _ascii: "xc3", _as_text: "expected bytes"},
)  # fmt: skip
