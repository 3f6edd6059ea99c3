"""N-grams with add-k, interpolation and Kneser–Ney, counted once for every order; a text's exact bits per byte."""

# Made from 02_for_scientist/01_language_models_from_counts.ipynb by `make export`: change the notebook, not this file.

__all__ = [
    "AddK",
    "Counts",
    "Interpolated",
    "KneserNey",
    "NGram",
    "TOKEN",
    "Words",
    "distribution",
    "sample",
    "to_bytes",
]


import re

import numpy as np

TOKEN = re.compile(r" ?[A-Za-z]+|[^A-Za-z]")  # a word with the space before it, or one other character


def to_bytes(text):
    """The UTF-8 bytes of a text as ids from 0 to 255."""
    return np.frombuffer(text.encode(), np.uint8)


def _check_ids(ids, V):
    """The ids as an array. ValueError unless they are whole numbers from 0 to V − 1."""
    ids = np.asarray(ids)
    if ids.size and (ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= V):
        raise ValueError(f"ids must be whole numbers from 0 to {V - 1}, got {ids!r:.60}")
    return ids.astype(np.int64)


def _line_up(documents, V):
    """The documents' ids in one array, id V before, between and after them; per place how far back the last V lies."""
    parts = [[V]]
    for document in map(np.asarray, documents):
        if document.ndim != 1:
            raise ValueError("documents must be a list of 1-D arrays of ids; for one document write [document]")
        parts += [_check_ids(document, V), [V]]
    if len(parts) == 1:
        raise ValueError("there must be at least one document")
    ids = np.concatenate(parts).astype(np.int64)
    place = np.arange(len(ids))
    last = np.maximum.accumulate(np.where(ids == V, place, 0))
    return ids, np.concatenate([[0], place[1:] - last[:-1]])


class Counts:
    """All n-grams of up to `order` symbols in `documents` (sequences of ids below V), counted once for any model.

    Id V stands before and after each document; no n-gram reaches past it. The m-grams are numbered by their place in
    the sorted `keys[m-1]`: key = number of the first m − 1 symbols · (V + 1) + last symbol. `raw[m-1]`: how often each
    occurs; `cont[m-1]`: how many different symbols stand before it (if it begins with V: how often it occurs).
    """

    def __init__(self, documents, order, V):
        if order < 1 or not 1 <= V < 2**31:
            raise ValueError(f"order must be at least 1 and V from 1 to 2³¹ − 1, got {order} and {V}")
        self.order, self.V, self.keys, self.raw, self.cont = order, V, [], [], []
        ids, room = _line_up(documents, V)
        gram, starts = np.zeros(len(ids), np.int64), None  # gram: the number of the n-gram that ends here
        for m in range(1, order + 1):
            at = np.flatnonzero(room >= max(m - 1, 1))
            keys = gram[at - 1] * (V + 1) + ids[at]
            keys, number, raw = np.unique(keys, return_inverse=True, return_counts=True)
            if m > 1:  # an m-gram is one more symbol before the (m − 1)-gram at its end
                shorter = np.empty(len(keys), np.int64)
                shorter[number] = gram[at]
                self.cont.append(np.where(starts, self.raw[-1], np.bincount(shorter, minlength=len(starts))))
            starts = np.zeros(len(keys), bool)
            starts[number] = room[at] == m - 1
            gram = np.full(len(ids), -1)
            gram[at], gram[0] = number, np.searchsorted(keys, V) if m == 1 else -1
            self.keys.append(keys)
            self.raw.append(raw)
        self.cont.append(raw)  # what stands before the longest is not known, and no model asks

    def find(self, documents, order):
        """Each symbol and END of the documents: ids (N,), then the numbers of context and n-gram, (order, N) each.

        Number −1: never seen. Context −2: it would reach past the start of the document.
        """
        ids, room = _line_up(documents, self.V)
        gram, contexts, grams = np.zeros(len(ids), np.int64), [], []
        for m, keys in enumerate(self.keys[:order], start=1):
            contexts.append(np.where(room[1:] >= max(m - 1, 1), gram[:-1], -2))
            wanted = contexts[-1] * (self.V + 1) + ids[1:]
            at = np.searchsorted(keys, wanted)
            grams.append(np.where((contexts[-1] >= 0) & (np.append(keys, -1)[at] == wanted), at, -1))
            gram = np.concatenate([[np.searchsorted(keys, self.V) if m == 1 else -1], grams[-1]])
        return ids[1:], np.array(contexts), np.array(grams)


class NGram:
    """An n-gram model of `counts` with contexts of up to order − 1 symbols. A subclass smooths: `parts` says how.

    p(w | h) = taken + left · p(w | h without its first symbol); below the empty context stands `base`, probabilities
    of the ids and of END, (V + 1,), by default all alike. A context that was never seen leaves all to the level below.
    """

    keeps_only_base = False  # True: `left` goes to base at once, and so does a context that was never seen

    def __init__(self, counts, order=None, base=None):
        order = counts.order if order is None else order
        if not 1 <= order <= counts.order:
            raise ValueError(f"order must be from 1 to {counts.order}, the longest counted, got {order}")
        self.counts, self.order, self.size, self.levels = counts, order, counts.V + 1, []
        self.base = np.full(self.size, 1 / self.size) if base is None else np.array(base, float)
        if self.base.shape != (self.size,) or not (self.base > 0).all() or abs(self.base.sum() - 1) > 1e-9:
            raise ValueError(f"base must be {self.size} probabilities above 0 that sum to 1")
        for m in range(order):  # counts; per context their sum, and how many symbols; [-1]: never seen
            n, context = self.numerators(m), counts.keys[m] // self.size
            size = len(counts.keys[m - 1]) if m else 1
            total, types = np.bincount(context, weights=n, minlength=size), np.bincount(context, minlength=size)
            self.levels.append((np.append(n, 0), np.append(np.maximum(total, 1), 1), np.append(types, 0)))

    def one_a_level(self, name, values):
        """The values as an array (order,). ValueError unless each is from 0 to under 1."""
        values = np.array(values, float)
        if values.shape != (self.order,) or not ((values >= 0) & (values < 1)).all():
            raise ValueError(f"{name} must be {self.order} numbers from 0 to under 1, got {values}")
        return values

    def numerators(self, m):
        """The counts that level m (contexts of m symbols) works with."""
        return self.counts.raw[m]

    def parts(self, m, n, context):
        """(taken, left) for n-grams of level m that count n after `context`."""
        raise NotImplementedError("use AddK, Interpolated or KneserNey")

    def log_prob(self, documents):
        """ln p of every symbol and END of the documents, (N,)."""
        symbols, contexts, grams = self.counts.find(documents, self.order)
        p = base = self.base[symbols]
        for m, (context, gram) in enumerate(zip(contexts, grams)):
            taken, left = self.parts(m, self.levels[m][0][gram], np.maximum(context, -1))
            below = base if self.keeps_only_base else p
            p = np.where(context >= 0, taken + left * below, np.where(context == -1, below, p))
        return np.log(p)

    def bits_per_byte(self, documents, n_bytes):
        """Mean −log₂ p a byte of documents whose text has n_bytes; their ENDs are paid for, too."""
        return -self.log_prob(documents).sum() / np.log(2) / n_bytes


def distribution(model, history=()):
    """p of every id and of END, (V + 1,), after `history`, the ids since the document's start; others: ValueError."""
    counts, size, state = model.counts, model.size, [0]
    tail = [counts.V, *_check_ids(history, counts.V).tolist()]
    for symbol in tail[max(len(tail) - model.order + 1, 0) :]:
        longer = [0]  # longer[j]: the number of the last j symbols, −1 when never seen
        for keys, gram in zip(counts.keys, state):
            at = np.searchsorted(keys, gram * size + symbol)
            longer.append(int(at) if gram >= 0 and at < len(keys) and keys[at] == gram * size + symbol else -1)
        state = longer
    p = model.base.copy()
    for m, context in enumerate(state):
        p = model.base.copy() if model.keeps_only_base else p
        low, high = np.searchsorted(counts.keys[m], (context * size, context * size + size))
        if low < high:  # the context was seen, and these n-grams continue it
            taken, left = model.parts(m, model.levels[m][0][low:high], context)
            p = left * p
            p[counts.keys[m][low:high] % size] += taken
    return p


def sample(model, generator, history=(), limit=2000):
    """Ids drawn from the model after `history`, until END or `limit` of them; generator: np.random.Generator."""
    drawn = []
    while len(drawn) < limit:
        cumulative = distribution(model, [*history, *drawn]).cumsum()
        symbol = int(np.searchsorted(cumulative, generator.random() * cumulative[-1], side="right"))
        if symbol == model.counts.V:
            break
        drawn.append(symbol)
    return drawn


class AddK(NGram):
    """k pseudo-counts for every symbol after every context; k = 1 is Laplace's rule."""

    keeps_only_base = True

    def __init__(self, counts, order=None, base=None, k=0.01):
        if not 0 < k < np.inf:
            raise ValueError(f"k must be above 0, got {k}")
        super().__init__(counts, order, base)
        self.k = k

    def parts(self, m, n, context):
        """Every count is divided by the sum with all pseudo-counts; they go to base."""
        total, added = self.levels[m][1][context], self.k * self.size
        return n / (total + added), added / (total + added)


class Interpolated(NGram):
    """The frequencies of every context length, mixed by weights[m] (Jelinek and Mercer 1980); see tune."""

    def __init__(self, counts, order=None, base=None, weights=None):
        super().__init__(counts, order, base)
        self.weights = self.one_a_level("weights", [0.5] * self.order if weights is None else weights)

    def parts(self, m, n, context):
        """The frequency counts for weights[m], the level below for the rest."""
        return self.weights[m] * n / self.levels[m][1][context], 1 - self.weights[m]

    def tune(self, documents, steps=100, enough=1e-4):
        """EM for the weights on new documents until a step gains under `enough`; mean −log₂ p before each step."""
        symbols, contexts, grams = self.counts.find(documents, self.order)
        seen, bits, f = contexts >= 0, [], np.zeros(contexts.shape)  # f: the frequencies, (order, N)
        for m, (n, total, _) in enumerate(self.levels):
            f[m] = n[grams[m]] / total[np.maximum(contexts[m], -1)]
        for _ in range(steps):
            left, shares = np.ones(len(symbols)), np.empty(f.shape)
            for m in reversed(range(self.order)):
                weight = np.where(seen[m], self.weights[m], 0)
                shares[m], left = left * weight * f[m], left * (1 - weight)
            below = left * self.base[symbols]
            p = below + shares.sum(0)
            bits.append(-np.log2(p).mean())
            if bits[:-1] and bits[-2] - bits[-1] < enough:
                break
            reached = below + np.cumsum(shares, axis=0)  # drawn by this level or a lower one
            stopped, came = shares @ (1 / p), (seen * reached) @ (1 / p)
            self.weights = np.minimum(stopped / np.maximum(came, 1e-12), 1 - 1e-9)
        return bits


class KneserNey(NGram):
    """Interpolated Kneser–Ney: counts less a discount a level; below the longest context, continuation counts.

    Kneser and Ney 1995, in the form of Chen and Goodman 1999. discounts[m] for contexts of m symbols; by default
    (n₁ + 1) / (n₁ + 2n₂ + 2), with n₁, n₂ the numbers of n-grams there that count 1 and 2.
    """

    def __init__(self, counts, order=None, base=None, discounts=None):
        super().__init__(counts, order, base)
        if discounts is None:
            ones, twos = (np.array([(n == r).sum() for n, _, _ in self.levels]) for r in (1, 2))
            discounts = (ones + 1) / (ones + 2 * twos + 2)
        self.discounts = self.one_a_level("discounts", discounts)

    def numerators(self, m):
        """Occurrences for the longest contexts, continuation counts for all others."""
        return (self.counts.raw if m == self.order - 1 else self.counts.cont)[m]

    def parts(self, m, n, context):
        """Every count above 0 gives up a discount; the level below shares them out."""
        D, (_, total, types) = self.discounts[m], self.levels[m]
        return np.maximum(n - D, 0) / total[context], D * types[context] / total[context]


class Words:
    """The words and other tokens of texts, loss-free: "".join(tokens) is the text. A word that is not known is spelt.

    Ids: `known` maps tokens to 0 … V − 2; V − 1 stands for any other. base: for an NGram over these ids, each token's
    probability by its spelling: a Kneser–Ney model of the known tokens' bytes, with contexts of order − 1.
    """

    def __init__(self, texts, order=5):
        tokens = sorted(set(self._tokens(texts)))
        self.known = {token: i for i, token in enumerate(tokens)}
        self.V = len(tokens) + 1
        self.spelling = KneserNey(Counts(map(to_bytes, tokens), order, 256))
        p_end = 1 / (self.V + 1)
        p = np.exp(self._spell(tokens)) * (1 - p_end)
        self.base = np.array([*p, 1 - p_end - p.sum(), p_end])

    @staticmethod
    def _tokens(texts):
        if isinstance(texts, str):
            raise ValueError("texts must be a sequence of texts; for one text write [text]")
        return [token for text in texts for token in TOKEN.findall(text)]

    def _spell(self, tokens):  # ln p of each token's bytes and their end
        logp = self.spelling.log_prob(map(to_bytes, tokens))
        return np.add.reduceat(logp, np.cumsum([0] + [len(to_bytes(token)) + 1 for token in tokens[:-1]]))

    def encode(self, text):
        """The ids of a text's tokens."""
        return np.array([self.known.get(token, self.V - 1) for token in TOKEN.findall(text)], np.int64)

    def decode(self, ids):
        """The text of ids; "<unk>" for V − 1. ValueError for anything but ids below V."""
        return "".join(np.array([*self.known, "<unk>"], object)[_check_ids(ids, self.V)])

    def spelling_bits(self, texts):
        """−log₂ p of the texts' unknown words, given that they are unknown: comes on top of any model of the ids."""
        unknown = [token for token in self._tokens(texts) if token not in self.known]
        if not unknown:
            return 0.0
        share = self._spell(unknown) + np.log1p(-self.base[-1]) - np.log(self.base[-2])
        return float(-share.sum() / np.log(2))
