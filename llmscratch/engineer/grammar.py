"""Text that must fit: sets of byte strings, a JSON schema as such a set, and the tokens that may come next."""

# Made from 03_for_engineer/01_talking_to_llms.ipynb by `make export`: change the notebook, not this file.

import functools
import json
import math

import numpy as np
import torch

from llmscratch.engineer.generate import special_ids

__all__ = [
    "CHARACTER",
    "EMPTY",
    "Either",
    "Grammar",
    "KEYS",
    "NOTHING",
    "OneByte",
    "Pattern",
    "States",
    "Text",
    "Then",
    "Times",
    "either",
    "integers",
    "json_pattern",
    "then",
    "times",
    "token_trie",
]


class Pattern:
    """A set of byte strings, equal to one of equal parts. ends: the empty string is in it; shortest: the length of its
    shortest string, ∞ if it has none."""

    def __init__(self, *parts, ends=False, shortest=math.inf):
        self.parts, self.ends, self.shortest = parts, ends, shortest
        self._hash, self._after = hash((type(self), parts)), {}

    def __eq__(self, other):
        return type(self) is type(other) and self.parts == other.parts

    def __hash__(self):
        return self._hash

    def after(self, byte):
        """The strings that may follow this byte: Brzozowski's derivative (1964)."""
        if byte not in self._after:
            self._after[byte] = self._derive(byte)
        return self._after[byte]


class Text(Pattern):
    """One string."""

    def __init__(self, data):
        super().__init__(data, ends=not data, shortest=len(data))

    def _derive(self, byte):
        return Text(self.parts[0][1:]) if self.parts[0][:1] == bytes([byte]) else NOTHING


class OneByte(Pattern):
    """One byte out of a set."""

    def __init__(self, values):
        super().__init__(frozenset(values), shortest=1 if values else math.inf)

    def _derive(self, byte):
        return EMPTY if byte in self.parts[0] else NOTHING


class Either(Pattern):
    """A string of any pattern of a set."""

    def __init__(self, patterns):
        ends, shortest = any(one.ends for one in patterns), min((one.shortest for one in patterns), default=math.inf)
        super().__init__(frozenset(patterns), ends=ends, shortest=shortest)

    def _derive(self, byte):
        return either(*(one.after(byte) for one in self.parts[0]))


class Then(Pattern):
    """A string of the first part, then one of the second."""

    def __init__(self, first, second):
        super().__init__(first, second, ends=first.ends and second.ends, shortest=first.shortest + second.shortest)

    def _derive(self, byte):
        first, second = self.parts
        rest = then(first.after(byte), second)
        return either(rest, second.after(byte)) if first.ends else rest


class Times(Pattern):
    """From `low` to `high` strings of a part, one after another."""

    def __init__(self, part, low, high):
        super().__init__(part, low, high, ends=low == 0 or part.ends, shortest=low * part.shortest if low else 0)

    def _derive(self, byte):
        part, low, high = self.parts
        return then(part.after(byte), times(part, max(low - 1, 0), high - 1))


EMPTY, NOTHING = Text(b""), Either(())


def either(*patterns):
    """A pattern for a string of any of these."""
    flat = {x for p in patterns for x in (p.parts[0] if isinstance(p, Either) else (p,)) if x.shortest < math.inf}
    return flat.pop() if len(flat) == 1 else Either(flat)


def then(*patterns):
    """A pattern for strings of these, one after another."""
    whole = EMPTY
    for one in reversed(patterns):
        if math.inf in (one.shortest, whole.shortest):
            return NOTHING
        if one == EMPTY or whole == EMPTY:
            whole = whole if one == EMPTY else one
        elif isinstance(one, Then):
            whole = then(one.parts[0], then(one.parts[1], whole))
        else:
            whole = Then(one, whole)
    return whole


def times(pattern, low, high):
    """A pattern for `low` to `high` strings of this one. ValueError unless 0 ≤ low ≤ high."""
    if not 0 <= low <= high:
        raise ValueError(f"at least {low} and at most {high} times is impossible")
    return Times(pattern, low, high) if high else EMPTY


def integers(low, high):
    """A pattern for the whole numbers from low to high, written without leading zeros."""
    if not (type(low) is type(high) is int and low <= high):
        raise ValueError(f"there is no range of whole numbers from {low!r} to {high!r}")
    if low < 0:
        negative = then(Text(b"-"), integers(max(1, -high), -low))
        return either(negative, integers(0, high)) if high >= 0 else negative
    if len(str(low)) < len(str(high)):
        nines = 10 ** len(str(low)) - 1
        return either(integers(low, nines), integers(nines + 1, high))
    return _digits(str(low), str(high))


def _digits(low, high):
    """The strings of digits from low to high, all as long as these two."""
    if low == high:
        return Text(low.encode())
    if low[0] == high[0]:
        return then(Text(low[:1].encode()), _digits(low[1:], high[1:]))
    n, between = len(low) - 1, range(ord(low[0]) + 1, ord(high[0]))
    return either(
        then(Text(low[:1].encode()), _digits(low[1:], "9" * n)),
        then(OneByte(between), times(OneByte(b"0123456789"), n, n)),
        then(Text(high[:1].encode()), _digits("0" * n, high[1:])),
    )


_from = lambda low, high: OneByte(range(low, high + 1))
_MORE = _from(0x80, 0xBF)
# A character of a JSON string: well-formed UTF-8 (the Unicode standard, table 3-7) or an escape.
CHARACTER = either(
    OneByte(set(range(0x20, 0x80)) - set(b'"\\')), then(Text(b"\\"), OneByte(b'"\\/bfnrt')),
    then(_from(0xC2, 0xDF), _MORE), then(either(_from(0xE1, 0xEC), _from(0xEE, 0xEF)), _MORE, _MORE),
    then(Text(b"\xe0"), _from(0xA0, 0xBF), _MORE), then(Text(b"\xed"), _from(0x80, 0x9F), _MORE),
    then(Text(b"\xf0"), _from(0x90, 0xBF), _MORE, _MORE), then(Text(b"\xf4"), _from(0x80, 0x8F), _MORE, _MORE),
    then(_from(0xF1, 0xF3), _MORE, _MORE, _MORE),
)  # fmt: skip
_TYPES = {"string": [str], "integer": [int], "number": [int, float], "boolean": [bool], "null": [type(None)],
          "array": [list], "object": [dict]}  # of an enum's values
# What a schema of each kind may say, with the values that hold where it says nothing.
KEYS = {
    "object": {"properties": {}, "required": [], "additionalProperties": True}, "enum": {"enum": []},
    "array": {"items": {}, "minItems": 0, "maxItems": 10},
    "string": {"minLength": 0, "maxLength": 100}, "integer": {"minimum": -(10**9), "maximum": 10**9},
    "boolean": {"enum": [True, False]}, "null": {"enum": [None]},
}  # fmt: skip


def json_pattern(schema: dict) -> Pattern:
    """The JSON texts, as json.dumps spaces them, that fit a schema: an "enum" (the values of its "type", if it has one)
    or a "type" with the keys in KEYS. An object has all its properties, in order, no others. Else: ValueError."""
    text = lambda value: Text(json.dumps(value, ensure_ascii=False).encode())
    kind = "enum" if "enum" in schema else schema.get("type")
    if not isinstance(kind, str) or kind not in KEYS:
        raise ValueError(f"a schema has an enum, or a type of {list(KEYS)}; got {schema}")
    if odd := set(schema) - set(KEYS[kind]) - {"type", "description", "title"}:
        raise ValueError(f"{min(odd)!r} is not supported for {kind!r}; supported: {list(KEYS[kind])}")
    get = KEYS[kind] | schema
    if "enum" in get:
        named = schema.get("type", list(_TYPES))
        if not set(named := [named] if isinstance(named, str) else named) <= set(_TYPES):
            raise ValueError(f"the types of an enum's values are some of {list(_TYPES)}; got {named}")
        return either(*(text(v) for v in get["enum"] if any(type(v) in _TYPES[name] for name in named)))
    if kind == "object" and (lost := [key for key in get["required"] if key not in get["properties"]]):
        raise ValueError(f"{lost} are required, but are no properties")
    if kind == "object":
        parts = [then(text(key), Text(b": "), json_pattern(part)) for key, part in get["properties"].items()]
        return then(Text(b"{"), *[x for part in parts for x in (Text(b", "), part)][1:], Text(b"}"))
    if kind == "array":
        item, low, high = json_pattern(get["items"]), get["minItems"], get["maxItems"]
        more = then(item, times(then(Text(b", "), item), max(low - 1, 0), high - 1)) if high else times(item, low, 0)
        return then(Text(b"["), more if low else either(more, EMPTY), Text(b"]"))
    if kind == "string":
        return then(Text(b'"'), times(CHARACTER, get["minLength"], get["maxLength"]), Text(b'"'))
    return integers(get["minimum"], get["maximum"])


@functools.lru_cache(maxsize=8)
def token_trie(tokenizer):
    """(bytes of each id, levels) of a tokenizer's tokens, special ones left out. A level: the beginnings of a length,
    where the one without the last byte stands in the level above, the last byte, places of whole tokens, their ids."""
    special = set(special_ids(tokenizer).values())
    tokens = {i: tokenizer.decode_bytes([i]) for i in range(tokenizer.n_vocab) if i not in special}
    whole, above, levels = {data: i for i, data in tokens.items()}, {b"": 0}, []
    while above:
        n = len(levels) + 1
        here = sorted({data[:n] for data in whole if len(data) >= n})
        ends = [place for place, data in enumerate(here) if data in whole]
        columns = [above[data[:-1]] for data in here], [data[-1] for data in here], ends, [whole[here[e]] for e in ends]
        levels.append([np.array(column, dtype=np.int64) for column in columns])
        above = {data: place for place, data in enumerate(here)}
    return tokens, levels[:-1]


class States:
    """The states of a pattern, numbered as they are met: `start`, and 0, the dead one, from which nothing leads on."""

    def __init__(self, pattern):
        self.patterns, self._number = [], {}
        self._table = np.full((64, 256), -1)  # (state, byte) to state; −1: not met yet
        _, self.start = self.number(NOTHING), self.number(pattern)

    def number(self, pattern):
        """The number of a pattern."""
        if pattern not in self._number:
            self._number[pattern] = len(self.patterns)
            self.patterns.append(pattern)
            if len(self.patterns) > len(self._table):
                self._table = np.concatenate([self._table, np.full_like(self._table, -1)])
        return self._number[pattern]

    def after(self, states, data):
        """The states (n,) after one byte each."""
        found = self._table[states, data]
        for pair in np.unique((states * 256 + data)[found < 0]).tolist():
            after = self.number(self.patterns[pair // 256].after(pair % 256))  # may make the table longer
            self._table[pair // 256, pair % 256] = after
        return self._table[states, data]


class Grammar:
    """Which tokens may come next, so that the whole text fits a pattern. A state is a number; `start` is the first.
    least: tokens that may be needed for the shortest text. ValueError for a pattern that no text fits."""

    def __init__(self, pattern, tokenizer):
        self._tokens, self._levels = token_trie(tokenizer)
        self._size, self._states, self._need = tokenizer.n_vocab, States(pattern), {}
        self.start, self.least = self._states.start, pattern.shortest
        if self.start == 0:
            raise ValueError("no text fits this pattern")

    def need(self, state):
        """The bytes that each token (V,) leaves to be written at least; ∞ for a token that cannot come next."""
        if state not in self._need:
            reached, here = np.zeros(self._size, dtype=np.int64), np.array([state])
            for above, data, ends, ids in self._levels:
                here = self._states.after(here[above], data)
                reached[ids] = here[ends]
            shortest = np.array([pattern.shortest for pattern in self._states.patterns], dtype=np.float32)
            self._need[state] = torch.from_numpy(shortest[reached])
        return self._need[state]

    def allowed(self, state, left, ends=()):
        """The tokens (V,) with which `left` in all can finish the text; `ends` where it may end. ValueError if none."""
        allowed = self.need(state) < left
        allowed[list(ends)] = self._states.patterns[state].ends
        if not allowed.any():
            raise ValueError(f"no token of the vocabulary fits here with {left} tokens left")
        return allowed

    def step(self, state, token):
        """The state after a token."""
        for byte in self._tokens.get(token, b""):
            state = int(self._states.after(np.array([state]), np.array([byte]))[0])
        return state

    def finished(self, state):
        """Whether the text fits and nothing may follow."""
        return self._states.patterns[state] == EMPTY
