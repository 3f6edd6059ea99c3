"""From text to training rows: quality filters, exact and near deduplication, splits by cluster, shards, packing."""

# Made from 02_for_scientist/06_pretraining_data.ipynb by `make export`: change the notebook, not this file.

import hashlib
import re
import zlib
from bisect import bisect_left, insort
from collections import Counter

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

__all__ = [
    "LIMITS",
    "STOP_WORDS",
    "best_fit",
    "candidate_pairs",
    "clusters",
    "document_mask",
    "documents_of",
    "ended",
    "failed",
    "fingerprint",
    "minhash",
    "orders",
    "pack",
    "quality",
    "repeated_share",
    "shingle_hashes",
    "split_by_cluster",
    "stirred",
    "to_shard",
    "verified",
]


STOP_WORDS = frozenset(["the", "be", "to", "of", "and", "that", "have", "with"])
LIMITS = {
    "words": (50, 100_000), "letters a word": (3, 10), "symbols a word": (0, 0.1), "words with letters": (0.8, 1),
    "stop words": (2, 8), "lines that end": (0.5, 1), "repeated lines": (0, 0.3), "repeated 5-grams": (0, 0.15),
}  # fmt: skip


def repeated_share(words, n=5):
    """Share of the characters of a list of words that lie in n-grams which occur twice or more."""
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    counts = Counter(grams)
    inside = {j for i, gram in enumerate(grams) if counts[gram] > 1 for j in range(i, i + n)}
    return sum(len(words[j]) for j in inside) / max(1, sum(map(len, words)))


def quality(text):
    """What the filters look at, {name as in LIMITS: number}; after C4 (Raffel 2020) and Gopher (Rae 2021)."""
    words, lines = text.split(), [line.strip() for line in text.splitlines() if line.strip()]
    n, n_lines = max(1, len(words)), max(1, len(lines))
    return {
        "words": len(words),
        "letters a word": sum(map(len, words)) / n,
        "symbols a word": sum(text.count(c) for c in "#{}<>|=") / n,
        "words with letters": sum(any(c.isalpha() for c in word) for word in words) / n,
        "stop words": len(STOP_WORDS.intersection(re.findall(r"\w+", text.lower()))),
        "lines that end": sum(line[-1] in ".!?\"'”’" for line in lines) / n_lines,
        "repeated lines": 1 - len(set(lines)) / n_lines,
        "repeated 5-grams": repeated_share(words),
    }


def failed(text, limits=LIMITS):
    """Names of the rules that a text breaks."""
    measured = quality(text)
    return [name for name, (low, high) in limits.items() if not low <= measured[name] <= high]


def fingerprint(text):
    """32 bytes, equal for texts that differ at most in case, spacing, punctuation; without a word, for equal ones."""
    return hashlib.sha256((" ".join(re.findall(r"\w+", text.lower())) or text).encode()).digest()


def shingle_hashes(texts, k=5):
    """(hashes uint32, starts): the hashed runs of k words of all texts; text i has hashes[starts[i]:starts[i + 1]]."""
    ids, sizes = [], []
    for text in texts:
        words = re.findall(r"\w+", text.lower())
        words += [""] * (k - len(words))  # a text of fewer words is one shingle
        ids += [zlib.crc32(word.encode()) for word in words]
        sizes.append(len(words))
    ids = np.array(ids + [0] * k, dtype=np.uint64)
    mixed = np.zeros(len(ids) - k, dtype=np.uint64)
    for j in range(k):
        factor = np.uint64(pow(0x9E3779B97F4A7C15, j + 1, 1 << 64))
        mixed += ids[j : j + len(mixed)] * factor  # wraps around at 2^64
    ends = np.cumsum(sizes, dtype=np.int64)
    whole = np.ones(len(mixed), dtype=bool)
    for j in range(1, k):
        whole[ends - j] = False  # these runs would reach into the next text
    starts = np.concatenate([[0], ends - (k - 1) * np.arange(1, len(texts) + 1)])  # each text has k - 1 runs fewer
    return (mixed[whole] >> np.uint64(32)).astype(np.uint32), starts


def stirred(h):
    """uint32 numbers under a fixed one-to-one map that lets every bit depend on every bit (MurmurHash3's last step)."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
    return h


def orders(n, seed=0):
    """(a, b), uint32 (n,) each: n one-to-one maps h → a·h + b mod 2³², with a odd."""
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 1 << 31, n, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    return a, rng.integers(0, 1 << 32, n, dtype=np.uint32)


def minhash(texts, n=128, *, k=5, seed=0):
    """Signatures (texts, n) uint32: the smallest of each text's shingles under n orders (Broder 1997).

    The share of equal columns of two rows estimates the Jaccard similarity of the two texts' sets of runs of k words.
    """
    if isinstance(texts, str) or k < 1:
        raise ValueError(f"minhash takes a list of texts and k of at least 1, got {type(texts).__name__} and k = {k}")
    (h, starts), (a, b) = shingle_hashes(texts, k), orders(n, seed)
    h = stirred(h)
    signatures = np.empty((len(texts), n), dtype=np.uint32)
    for first in range(0, len(texts), 256):  # a block stays in the cache
        cut = starts[first : first + 257]
        for i in range(n):
            signatures[first : first + 256, i] = np.minimum.reduceat(
                h[cut[0] : cut[-1]] * a[i] + b[i], cut[:-1] - cut[0]
            )
    return signatures


def candidate_pairs(signatures, bands, *, limit=10_000_000):
    """Pairs (m, 2) of texts, i < j, that agree in all rows of at least one band (Indyk and Motwani 1998).

    n equal texts are n(n - 1)/2 pairs: remove exact copies first. ValueError when a band has more than `limit` pairs.
    """
    n, width = signatures.shape
    if bands < 1 or bands > width or width % bands:
        raise ValueError(f"{width} numbers a text cannot be cut into {bands} equal bands")
    rows, found = width // bands, np.empty(0, dtype=np.int64)
    factors = orders(2 * rows, seed=1)[0].view(np.uint64)  # fold the rows of a band into 64 bits
    for band in range(bands):
        key = (signatures[:, band * rows : (band + 1) * rows] * factors).sum(1)
        sizes = np.unique(key, return_counts=True)[1]
        if (pairs := int((sizes * (sizes - 1) // 2).sum())) > limit:
            raise ValueError(f"{pairs:,} pairs in a band, over the limit of {limit:,}: remove exact copies first")
        order = np.argsort(key, kind="stable")
        key, new = key[order], [found]
        for step in range(1, n):  # equal keys are neighbours, at a distance of 1, 2, …
            equal = key[step:] == key[:-step]
            if not equal.any():
                break
            a, b = order[:-step][equal], order[step:][equal]
            new.append(np.minimum(a, b) * n + np.maximum(a, b))
        found = np.unique(np.concatenate(new))
    return np.column_stack(np.divmod(found, max(1, n)))


def verified(signatures, pairs, threshold):
    """Those of the pairs (m, 2) whose estimated similarity, the share of equal numbers, is at least `threshold`."""
    pairs = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
    return pairs[(signatures[pairs[:, 0]] == signatures[pairs[:, 1]]).mean(1) >= threshold]


def clusters(n, pairs):
    """A number (n,) for each text: equal for texts that are joined by a chain of pairs."""
    pairs = np.asarray(pairs).reshape(-1, 2)
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return connected_components(graph, directed=False)[1]


def split_by_cluster(labels, share, seed=0):
    """Bool (n,), True for validation: whole clusters in a drawn order, those that still fit into `share` of the texts.

    ValueError when not even one fits.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must lie between 0 and 1, got {share}")
    _, member, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    room, chosen = int(share * len(labels)), []
    for cluster in np.random.default_rng(seed).permutation(len(sizes)):
        if sizes[cluster] <= room:
            chosen.append(cluster)
            room -= sizes[cluster]
    if not chosen:
        raise ValueError(f"no cluster fits into {share:.0%} of {len(labels)} texts; sizes from {min(sizes, default=0)}")
    return np.isin(member, chosen)


def ended(document, eot):
    """int64 ids of a document with `eot` behind them. ValueError for what is no id, or marks the end of a document."""
    ids = np.asarray(document)
    if ids.size and ids.dtype.kind not in "iu":
        raise ValueError(f"ids must be whole numbers, got {ids.dtype}")
    ids = np.append(ids, eot).astype(np.int64)
    if ids.min() < 0 or ids.max() > 65_535:
        raise ValueError(f"ids must be from 0 to 65,535 to fit two bytes, got {ids.min()} to {ids.max()}")
    if (ids == eot).sum() != 1:
        raise ValueError(f"a document holds the id {eot}, which marks the end of one")
    return ids


def to_shard(documents, eot):
    """uint16 (tokens,): the ids of all documents, each with `eot` behind it. ValueError for ids that do not fit."""
    if not len(documents):
        raise ValueError("a shard needs at least one document")
    return np.concatenate([ended(document, eot) for document in documents]).astype(np.uint16)


def documents_of(shard, eot):
    """The documents of a shard, as views without their end marks. ValueError when the last one has no end."""
    if not len(shard) or shard[-1] != eot:
        raise ValueError(f"the shard does not end in the end mark {eot}: it is cut off, or another id marks the end")
    ends = np.flatnonzero(shard == eot)
    return [shard[start:end] for start, end in zip(np.append(0, ends[:-1] + 1), ends)]


def best_fit(lengths, size):
    """Rows, lists of items: every item, longest first, goes into the fullest row with room (Ding et al. 2024)."""
    rows, room = [], []  # room: (space left, row), sorted
    for item in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        need = int(lengths[item])
        if not 0 < need <= size:
            raise ValueError(f"item {item} has length {need}; it must be from 1 to {size}")
        at = bisect_left(room, (need, -1))
        space, row = room.pop(at) if at < len(room) else (size, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(item)
        insort(room, (space - need, row))
    return rows


def pack(documents, size, eot):
    """(ids uint16, numbers int32), both (rows, size): documents, `eot` behind each, and which document stands where.

    A document that, with its end mark, is longer than a row is cut into pieces. Padding has the id `eot` and the number
    −1; it must not count in a loss.
    """
    pieces = [
        (number, whole[start : start + size])
        for number, document in enumerate(documents)
        for whole in [ended(document, eot)]
        for start in range(0, len(whole), size)
    ]
    rows = best_fit([len(piece) for _, piece in pieces], size)
    ids, numbers = (
        np.full((len(rows), size), eot, dtype=np.uint16),
        np.full((len(rows), size), -1, dtype=np.int32),
    )
    for row, items in enumerate(rows):
        at = 0
        for number, piece in [pieces[item] for item in items]:
            ids[row, at : at + len(piece)], numbers[row, at : at + len(piece)] = piece, number
            at += len(piece)
    return ids, numbers


def document_mask(numbers):
    """Bool (…, T, T), True where query and key lie in the same document; numbers (…, T) as from `pack`."""
    numbers = np.asarray(numbers)
    return (numbers[..., :, None] == numbers[..., None, :]) & (numbers[..., :, None] >= 0)
