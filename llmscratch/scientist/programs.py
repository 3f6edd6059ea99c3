"""Probabilistic programs that tell texts. Each part can be run (it tells), matched (every path of choices that tells a
given text, or every path there is) and measured (entropy, mean length and number of paths, exactly).
"""

# Made from 02_for_scientist/06_pretraining_data.ipynb by `make export`: change the notebook, not this file.

import itertools
import math
from bisect import bisect
from dataclasses import dataclass
from functools import cached_property

__all__ = ["Choice", "Odds", "Sequence", "Telling", "Text", "Total", "Value", "Variable", "mass", "merge", "read"]


class Odds:
    """A finite distribution from positive weights: how to pick, the logarithms of its probabilities, its entropy."""

    def __init__(self, weights):
        if not weights or min(weights) <= 0:
            raise ValueError(f"weights must be positive, and at least one; got {list(weights)}")
        self.size, self.total = len(weights), sum(weights)
        self.steps = None if len(set(weights)) == 1 else list(itertools.accumulate(weights))
        self.logs = [math.log(w / self.total) for w in weights]
        self.bits = -sum(w / self.total * math.log2(w / self.total) for w in weights)


class Telling:
    """One run of the program: what was drawn and said so far, and the log-probability of the choices."""

    def __init__(self, random):
        self.random, self.cast, self.out, self.log_prob = random, {}, [], 0.0
        self.put = self.out.append

    def choose(self, odds):
        """The number of an option."""
        u = self.random()  # a multiple of 2⁻⁵³ in [0, 1), the same for a seed on every platform
        i = int(u * odds.size) if odds.steps is None else bisect(odds.steps, u * odds.total)
        self.log_prob += odds.logs[i]
        return i


@dataclass
class Total:
    """Exact means over all stories: entropy in bits, length in characters; and the number of paths."""

    bits: float = 0.0
    length: float = 0.0
    paths: int = 0


class Variable:
    """A member of the cast: drawn evenly from `pool` at its first use, unlike every drawn variable in `apart`."""

    def __init__(self, pool):
        self.pool, self.apart = pool, []

    def left(self, cast):
        """The entries that may still be drawn, and their odds."""
        pool = list(self.pool)
        for other in self.apart:
            if other in cast:
                pool.remove(cast[other])
        return pool, self.odds[len(self.pool) - len(pool)]

    @cached_property
    def odds(self):
        """Odds by the number of entries that are taken."""
        return [Odds([1] * (len(self.pool) - taken)) for taken in range(len(self.apart) + 1)]

    def draw(self, telling):
        """Draw an entry, and keep it."""
        pool, odds = self.left(telling.cast)
        telling.cast[self] = entry = pool[telling.choose(odds)]
        return entry


def read(text, at, piece):
    """The place after `piece`, None when `text` goes on differently; without a text, what was said and the piece.

    So one method both reads (`at` is a place) and lists all paths (`text` is None, and `at` is what was said so far).
    """
    if text is None:
        return at + piece
    return at + len(piece) if text.startswith(piece, at) else None


def mass(states):
    """The probability of all states together."""
    return sum(p for p, _ in states.values())


def merge(pairs, live):
    """States {drawn variables: (probability, paths)} from pairs; those that differ in no live variable become one."""
    states = {}
    for drawn, (p, n) in pairs:
        p0, n0 = states.get(drawn & live, (0.0, 0))
        states[drawn & live] = (p0 + p, n0 + n)
    return states


class Text:
    """Words as they stand; with a `key`, a fact that is noted instead."""

    def __init__(self, piece, key=None):
        self.piece, self.key, self.uses = piece, key, frozenset()

    @cached_property
    def run(self):
        """Function of a `Telling`: say the words."""
        piece, key = self.piece, self.key
        if key:
            return lambda telling: telling.cast.__setitem__(key, piece)
        return lambda telling: telling.put(piece)

    def match(self, text, at, cast, log):
        """Yield (place, cast, log-probability) after every way to read `text` from `at` on."""
        if self.key:
            yield at, cast | {self.key: self.piece}, log
        elif (after := read(text, at, self.piece)) is not None:
            yield after, cast, log

    def measure(self, states, total, live):
        """Push the states through, adding to `total`; variables that are not `live` afterwards are forgotten."""
        total.length += 0 if self.key else len(self.piece) * mass(states)
        return states


class Value:
    """A form of a member of the cast."""

    def __init__(self, variable, form):
        self.variable, self.form, self.uses = variable, form, frozenset([variable, *variable.apart])

    @cached_property
    def run(self):
        variable, form = self.variable, self.form
        return lambda telling: telling.put((telling.cast.get(variable) or variable.draw(telling))[form])

    def match(self, text, at, cast, log):
        if self.variable in cast:
            if (after := read(text, at, cast[self.variable][self.form])) is not None:
                yield after, cast, log
            return
        pool, odds = self.variable.left(cast)
        for entry in pool:
            if (after := read(text, at, entry[self.form])) is not None:
                yield after, cast | {self.variable: entry}, log + odds.logs[0]

    def measure(self, states, total, live):
        v, pairs = self.variable, []
        total.length += mass(states) * sum(len(entry[self.form]) for entry in v.pool) / len(v.pool)
        for drawn, (p, n) in states.items():
            odds = v.odds[sum(other in drawn for other in v.apart)]
            total.bits += 0 if v in drawn else p * odds.bits
            pairs.append((drawn | {v}, (p, n if v in drawn else n * odds.size)))
        return merge(pairs, live)


class Sequence:
    """One part after the other."""

    def __init__(self, parts):
        self.parts, self.uses = parts, frozenset().union(*(part.uses for part in parts))

    @cached_property
    def run(self):
        steps = tuple(part.run for part in self.parts)

        def tell(telling):
            for step in steps:
                step(telling)

        return tell

    def match(self, text, at, cast, log, i=0):
        if i == len(self.parts):
            yield at, cast, log
        else:
            for after in self.parts[i].match(text, at, cast, log):
                yield from self.match(text, *after, i + 1)

    def measure(self, states, total, live):
        for i, part in enumerate(self.parts):
            states = part.measure(states, total, live.union(*(later.uses for later in self.parts[i + 1 :])))
        return states


class Choice:
    """One of several options."""

    def __init__(self, options, weights):
        self.options, self.weights, self.odds = options, weights, Odds(weights)
        self.uses = frozenset().union(*(option.uses for option in options))

    @cached_property
    def run(self):
        steps, odds = tuple(option.run for option in self.options), self.odds
        return lambda telling: steps[telling.choose(odds)](telling)

    def match(self, text, at, cast, log):
        for option, p in zip(self.options, self.odds.logs):
            yield from option.match(text, at, cast, log + p)

    def measure(self, states, total, live):
        total.bits += self.odds.bits * mass(states)
        pairs = []
        for option, w in zip(self.options, self.weights):
            share = {drawn: (p * w / self.odds.total, n) for drawn, (p, n) in states.items()}
            pairs += option.measure(share, total, live).items()
        return merge(pairs, live)
