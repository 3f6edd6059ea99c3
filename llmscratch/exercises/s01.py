"""Exercises of 4S 01, language models from counts."""

import math
from fractions import Fraction

import numpy as np

from llmscratch.exercises.lesson import Lesson, Wrong, expect
from llmscratch.scientist.ngram import Counts, KneserNey, NGram, distribution, to_bytes

lesson = Lesson("4S01")
check, hint, solution = lesson.check, lesson.hint, lesson.solution


def _check_to_bits_per_byte(answer):
    for mean, n, text, want in (
        (math.log(2), 6, "hello", 6 / 5),
        (2 * math.log(2), 4, "été", 8 / 5),
        (1.5, 3, "Once upon a time", 4.5 / math.log(2) / 16),
    ):
        expect(answer(mean, n, text), want, f"{n} tokens with a mean of {mean:.3f} nats and the text {text!r}")


def to_bits_per_byte(mean_nats, n_tokens, text):
    return mean_nats * n_tokens / math.log(2) / len(text.encode())


lesson.add(
    1, 1, "One number, another scale", check=_check_to_bits_per_byte,
    hints=["The mean times the number of tokens is the whole; a nat is 1 / ln 2 bits.",
           "A character is not always one byte: text.encode() gives the bytes."],
    solution=to_bits_per_byte,
    wrong={
        (lambda mean, n, text: mean * n / math.log(2) / len(text)): "'été'",
        (lambda mean, n, text: mean * n / len(text.encode())): "'hello'",
        (lambda mean, n, text: mean / math.log(2)): "6 tokens",
    },
)  # fmt: skip


class _Smoothed(NGram):
    """An n-gram model whose parts are a function of (n, total, types)."""

    def __init__(self, counts, order, split):
        super().__init__(counts, order)
        self.split = split

    def parts(self, m, n, context):
        _, total, types = self.levels[m]
        return self.split(n, total[context], types[context])


def _check_witten_bell(answer):
    for n, total, types, want in (
        (np.array([3, 0, 1]), np.array([4, 4, 4]), np.array([2, 2, 2]), ([0.5, 0, 1 / 6], [1 / 3] * 3)),
        (np.array([5, 2]), 8, 3, ([5 / 11, 2 / 11], 3 / 11)),
        (2, 4, 1, (2 / 5, 1 / 5)),
    ):
        given = "n = {}, total = {}, types = {}".format(*(np.asarray(x).tolist() for x in (n, total, types)))
        got = answer(n, total, types)
        if not isinstance(got, (tuple, list)) or len(got) != 2:
            raise Wrong(f"expected two values (taken, left) for {given}, got {got!r:.60}")
        for what, value, right in zip(("taken", "left"), got, want, strict=True):
            value, right = np.asarray(value, float), np.array(right)
            expect(value, right, f"{what}, {given}")
    model = _Smoothed(Counts([to_bytes("abracadabra"), to_bytes("abba")], 3, 256), 3, answer)
    for history in ("", "a", "ab", "xy", "abra"):
        expect(
            distribution(model, to_bytes(history)).sum(),
            1.0,
            f"the sum of p after {history!r} in an NGram with your parts",
        )


def witten_bell(n, total, types):
    # In an NGram: between interpolation and add-k at its best (0.47 bits per byte with 12 characters of context); with
    # 20 it is worse again (0.63), since a context seen once or twice still keeps half and more for itself.
    return n / (total + types), types / (total + types)


lesson.add(
    2, 2, "A fourth method", check=_check_witten_bell,
    hints=["All counts, those of “something new” among them, add up to total + T.",
           "Both parts have the same denominator, total + types."],
    solution=witten_bell,
    wrong={
        (lambda n, total, types: (n / total, types / (total + types))): "taken, n",
        (lambda n, total, types: (n / (total + types), 1 / (total + types))): "left, n",
        (lambda n, total, types: (n / (total + types), np.sum(n > 0) / (total + types) + 0 * n)): "left, n",
        (lambda n, total, types: n / (total + types)): "two values",
    },
)  # fmt: skip


def _thirds(history):
    """Three symbols; which one is the likeliest hangs on all symbols before."""
    p = [Fraction(1, 6), Fraction(1, 3), Fraction(1, 2)]
    if history:
        p = [x / 2 for x in p]
        p[sum(history) % 3] += Fraction(1, 2)
    return p


def _piece(symbols, distribution_):
    low, width = Fraction(0), Fraction(1)
    for t, symbol in enumerate(symbols):
        p = distribution_(list(symbols[:t]))
        low, width = low + width * sum(p[:symbol], Fraction(0)), width * p[symbol]
    return low, width


def _fits(low, width, length):
    """Whether some k / 2^length to (k + 1) / 2^length lies inside the piece."""
    return (math.ceil(low * 2**length) + 1) <= (low + width) * 2**length


def _check_write_down(answer):
    texts = ([], [2], [0], [1], [0, 0], [2, 2, 2, 2], [1, 0, 2, 1], [0, 1, 2, 0, 1, 2, 0], [0] * 40, [2, 1, 0] * 20)
    for symbols in texts:
        given = f"symbols = {symbols}" if len(symbols) < 10 else f"{len(symbols)} symbols {symbols[:3]}…"
        got = answer(list(symbols), _thirds)
        if not isinstance(got, str) or set(got) - {"0", "1"}:
            raise Wrong(f"expected a string of '0' and '1' for {given}, got {got!r:.60}")
        low, width = _piece(symbols, _thirds)
        start, step = Fraction(int(got or "0", 2), 2 ** len(got)), Fraction(1, 2 ** len(got))
        if not low <= start or not start + step <= low + width:
            raise Wrong(
                f"expected all numbers that begin with 0.{got or '(nothing)'} to lie from {low} to {low + width} "
                f"for {given}: they lie from {start} to {start + step}"
            )
        shortest = next(n for n in range(len(got) + 1) if _fits(low, width, n))
        expect(len(got), shortest, f"the length of the string, {given}")


def write_down(symbols, distribution):
    low, width = Fraction(0), Fraction(1)
    for t, symbol in enumerate(symbols):
        p = distribution(symbols[:t])
        low += width * sum(p[:symbol])
        width *= p[symbol]
    length = 0
    while math.ceil(low * 2**length) + 1 > (low + width) * 2**length:
        length += 1
    return format(math.ceil(low * 2**length), f"0{length}b") if length else ""


def _one_point(symbols, distribution):
    """A number inside the piece; but numbers that go on may lie outside."""
    low, width = _piece(symbols, distribution)
    length = 0
    while math.ceil(low * 2**length) >= (low + width) * 2**length:
        length += 1
    return format(math.ceil(low * 2**length), f"0{length}b") if length else ""


def _one_too_long(symbols, distribution):
    low, width = _piece(symbols, distribution)
    length = math.ceil(-math.log2(width)) + 1
    return format(math.ceil(low * 2**length), f"0{length}b")


def _forgets_the_history(symbols, distribution):
    return write_down(symbols, lambda history: distribution([]))


def _the_last_alone(symbols, distribution):
    return write_down(symbols, lambda history: distribution(history[-1:]))


def _in_floats(symbols, distribution):
    """Digits get lost: after some 50 symbols the piece is empty."""
    low, width = 0.0, 1.0
    for t, symbol in enumerate(symbols):
        p = [float(x) for x in distribution(symbols[:t])]
        low, width = low + width * sum(p[:symbol]), width * p[symbol]
    length = 0
    while length < 55 and math.ceil(low * 2.0**length) + 1 > (low + width) * 2.0**length:
        length += 1
    return format(math.ceil(low * 2.0**length), f"0{length}b") if length else ""


def _no_leading_zeros(symbols, distribution):
    return write_down(symbols, distribution).lstrip("0")


lesson.add(
    3, 3, "Write it down in that many bits", check=_check_write_down,
    hints=["Keep (low, width). A symbol adds width · (the probabilities before it) to low; width shrinks.",
           "With n digits the intervals are k / 2ⁿ to (k + 1) / 2ⁿ. Take k = ⌈low · 2ⁿ⌉; raise n until k + 1 fits. "
           "format(k, f'0{n}b') keeps leading zeros; n = 0 is the empty string."],
    solution=write_down,
    wrong={
        _one_point: "to lie from", _one_too_long: "the length of the string", _no_leading_zeros: "to lie from",
        _forgets_the_history: "the length of the string", _in_floats: "[2, 1, 0]",
        _the_last_alone: "symbols",
    },
)  # fmt: skip


def _classes():
    texts = {"tea": ["tea for two", "two cups of tea", "a tea cup"], "sea": ["the sea, the sea", "by the sea we see"]}
    return {
        name: (KneserNey(Counts(map(to_bytes, found), 4, 256)), prior)
        for (name, found), prior in zip(texts.items(), (0.9, 0.1), strict=True)
    }


def _check_whose(answer):
    models = _classes()
    for text in ("a cup of tea", "see", "tea in the café", "the tea by the sea " * 40, ""):
        given = f"{text[:20]!r}{'…' if len(text) > 20 else ''} and classes with shares 0.9 and 0.1"
        got = answer(text, models)
        if not isinstance(got, dict) or set(got) != set(models):
            raise Wrong(f"expected a dict with the keys 'tea' and 'sea' for {given}, got {got!r:.60}")
        logs = {
            name: model.log_prob([to_bytes(text)]).sum() + math.log(prior) for name, (model, prior) in models.items()
        }
        best = max(logs.values())
        total = sum(math.exp(x - best) for x in logs.values())
        for name, x in logs.items():
            expect(got[name], math.exp(x - best) / total, f"{name!r}, {given}")


def whose(text, models):
    logs = {name: model.log_prob([to_bytes(text)]).sum() + math.log(share) for name, (model, share) in models.items()}
    best = max(logs.values())
    weights = {name: math.exp(log - best) for name, log in logs.items()}
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def _by_code_points(text, models):
    logs = {name: model.log_prob([[ord(c) for c in text]]).sum() + math.log(p) for name, (model, p) in models.items()}
    weights = {name: math.exp(log - max(logs.values())) for name, log in logs.items()}
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def _forgets_shares(text, models):
    return whose(text, {name: (model, 1.0) for name, (model, _) in models.items()})


def _underflows(text, models):
    p = {name: share * np.exp(model.log_prob([to_bytes(text)]).sum()) for name, (model, share) in models.items()}
    with np.errstate(invalid="ignore"):
        return {name: float(x / sum(p.values())) for name, x in p.items()}


def _mean_instead_of_sum(text, models):
    p = {name: share * np.exp(model.log_prob([to_bytes(text)]).mean()) for name, (model, share) in models.items()}
    return {name: x / sum(p.values()) for name, x in p.items()}


lesson.add(
    4, 2, "Whose story is it?", check=_check_whose,
    hints=["P(class | text) is proportional to the share of the class times P(text | class); add logarithms.",
           "Subtract the largest logarithm before exp: the common factor cancels when you divide by the sum."],
    solution=whose,
    wrong={
        _forgets_shares: "shares 0.9 and 0.1", _underflows: "'the tea by the sea t'…",
        _mean_instead_of_sum: "'a cup of tea'", _by_code_points: "'tea in the café'",
    },
)  # fmt: skip
