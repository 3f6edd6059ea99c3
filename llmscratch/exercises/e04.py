"""Exercises of 4E 04, vector search."""

import tracemalloc

import numpy as np

from llmscratch.exercises.lesson import Lesson, Wrong, expect

lesson = Lesson("4E04")
check, hint, solution = lesson.check, lesson.hint, lesson.solution


def _unit(n, d, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((n, d))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _check_to_bytes(answer):
    rng = np.random.default_rng(0)
    plain, constant = np.array([[0.0, -1.0], [255.0, 1.0], [127.3, 0.0]]), rng.standard_normal((20, 3))
    constant[:, 1] = 2.5
    for given, vectors in (
        ("three vectors of 2 numbers", plain), ("20 vectors whose second coordinate is always 2.5", constant),
        ("500 vectors of 7 numbers, float32", rng.standard_normal((500, 7)).astype(np.float32) * np.arange(1, 8)),
    ):  # fmt: skip
        with np.errstate(all="ignore"):
            result = answer(vectors.copy())
        if not isinstance(result, tuple) or len(result) != 3:
            raise Wrong(f"expected a tuple (codes, low, step) for {given}, got {type(result).__name__}")
        codes, low, step = map(np.asarray, result)
        expect(codes.shape, vectors.shape, f"the shape of the codes, {given}")
        expect(str(codes.dtype), "uint8", f"the dtype of the codes, {given}")
        expect(low, vectors.min(axis=0), f"low, {given}")
        expect(step, np.ptp(vectors, axis=0).astype(np.float64) / 255, f"step, {given}", rtol=1e-5)
        off = np.abs(low + step * codes.astype(np.float64) - vectors)
        if (bad := off > step * 0.501 + 1e-6).any():
            i, j = (int(n) for n in np.argwhere(bad)[0])
            raise Wrong(
                f"expected low + step * codes within half a step, {step[j] / 2:.3g}, of {vectors[i, j]:.4g} at "
                f"[{i}, {j}] for {given}; it is off by {off[i, j]:.3g}"
            )


def to_bytes(vectors):
    low = vectors.min(axis=0)
    step = (vectors.max(axis=0) - low) / 255
    steps = (vectors - low) / np.where(step == 0, 1, step)
    return steps.round().astype(np.uint8), low, step


def _cuts_off(vectors):
    low, step = to_bytes(vectors)[1:]
    return ((vectors - low) / np.where(step == 0, 1, step)).astype(np.uint8), low, step


def _256_steps(vectors):
    low = vectors.min(axis=0)
    step = (vectors.max(axis=0) - low) / 256
    return ((vectors - low) / np.where(step == 0, 1, step)).clip(0, 255).astype(np.uint8), low, step


def _one_range_for_all(vectors):
    low, step = vectors.min(), np.ptp(vectors) / 255
    return ((vectors - low) / step).round().astype(np.uint8), low, step


lesson.add(
    1, 1, "One byte a number", check=_check_to_bytes,
    hints=["From 0 to 255 there are 255 steps. min and max go along axis 0: a range for each coordinate.",
           "Round before you turn the numbers into uint8, and divide by 1 where the step is 0."],
    solution=to_bytes,
    wrong={_cuts_off: "within half a step", _256_steps: "step, three", _one_range_for_all: "low, three"},
)  # fmt: skip


def _check_near_duplicates(answer):
    few = np.array([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6], [1.0, 0.0]])
    many = np.repeat(_unit(1200, 8, seed=1), 2, axis=0)[np.random.default_rng(2).permutation(2400)]
    for given, vectors, least, block in (
        ("4 vectors, least = 0.7, block = 256", few, 0.7, 256),
        ("4 vectors, least = 0.8, block = 1", few, 0.8 - 1e-9, 1),
        ("5 vectors that are alike, block = 2", np.ones((5, 4)) / 2, 0.99, 2),
        ("one vector", few[:1], 0.5, 256), ("2,400 vectors, least = 0.99, block = 50", many, 0.99, 50),
    ):  # fmt: skip
        i, j = np.nonzero(np.triu(vectors @ vectors.T >= least, 1))
        want = list(zip(i.tolist(), j.tolist(), strict=True))
        tracemalloc.start()
        got = answer(vectors.copy(), least, block)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        if not isinstance(got, list) or any(not isinstance(pair, tuple) or len(pair) != 2 for pair in got):
            raise Wrong(f"expected a list of tuples (i, j) for {given}, got {str(got)[:60]}")
        if got != want:
            if extra := sorted(set(got) - set(want)):
                raise Wrong(f"expected no pair {extra[0]} for {given}: a pair stands once, with i < j, if it is alike")
            if missing := sorted(set(want) - set(got)):
                raise Wrong(f"expected the pair {missing[0]} for {given}, but it is missing")
            raise Wrong(f"expected the pairs in order, each once, for {given}")
        if len(vectors) > 1000 and peak > 4e6:
            raise Wrong(
                f"expected at most {block} rows of cosines at a time for {given}; the memory rose by {peak:.2g} bytes"
            )


def near_duplicates(vectors, least, block=256):
    pairs = []
    for start in range(0, len(vectors), block):
        cosines = vectors[start : start + block] @ vectors[start:].T
        i, j = np.nonzero(np.triu(cosines >= least, 1))
        pairs += zip((i + start).tolist(), (j + start).tolist(), strict=True)
    return pairs


def _all_at_once(vectors, least, block=256):
    i, j = np.nonzero(np.triu(vectors @ vectors.T >= least, 1))
    return list(zip(i.tolist(), j.tolist(), strict=True))


def _rows_of_its_own(vectors, least, block=256):
    return near_duplicates(vectors, least)


def _both_ways(vectors, least, block=256):
    i, j = np.nonzero(vectors @ vectors.T >= least)
    return [(a, b) for a, b in zip(i.tolist(), j.tolist(), strict=True) if a != b]


def _inside_blocks_only(vectors, least, block=256):
    pairs = []
    for start in range(0, len(vectors), block):
        part = vectors[start : start + block]
        i, j = np.nonzero(np.triu(part @ part.T >= least, 1))
        pairs += zip((i + start).tolist(), (j + start).tolist(), strict=True)
    return pairs


lesson.add(
    2, 2, "Nearly the same", check=_check_near_duplicates,
    hints=["Multiply `block` rows with all from the block's first on: vectors[start : start + block] @ "
           "vectors[start:].T.",
           "np.triu(…, 1) keeps i < j; np.nonzero gives rows and columns in order. Add `start` to both."],
    solution=near_duplicates,
    wrong={
        _all_at_once: "rows of cosines at a time", _rows_of_its_own: "at most 50 rows", _both_ways: "expected no pair",
        _inside_blocks_only: "expected the pair",
    },
)  # fmt: skip


def _check_varied(answer):
    copies = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.6, 0.0, 0.8], [0.0, 0.0, 1.0]])
    for given, query, vectors, k, balance in (
        ("five vectors, two of them the same, k = 3", np.array([0.96, 0.28, 0.0]), copies, 3, 0.5),
        ("the same five, balance = 1", np.array([1.0, 0.0, 0.0]), copies, 4, 1.0),
        ("40 random vectors, k = 10, balance = 0.7", _unit(1, 6, 3)[0], _unit(40, 6, 4), 10, 0.7),
        ("30 random vectors, k = 30, balance = 0.3", _unit(1, 5, 5)[0], _unit(30, 5, 6), 30, 0.3),
    ):  # fmt: skip
        want = varied(query, vectors, k, balance)
        got = answer(query.copy(), vectors.copy(), k, balance)
        try:
            got = [int(place) for place in got]
        except TypeError:
            raise Wrong(f"expected {k} places for {given}, got {type(got).__name__}") from None
        if len(got) != k or len(set(got)) != k:
            raise Wrong(f"expected {k} different places for {given}, got {got}")
        if got != want and not (vectors[got] == vectors[want]).all():  # copies are worth the same
            at = next(n for n, (a, b) in enumerate(zip(got, want, strict=True)) if a != b)
            raise Wrong(f"expected pick {at} to be {want[at]} for {given}, after {want[:at]}; got {got[at]}")


def varied(query, vectors, k, balance=0.5):
    relevance, worst, picked = vectors @ query, np.zeros(len(vectors)), []
    for n in range(k):
        score = balance * relevance - (1 - balance) * worst
        score[picked] = -np.inf
        picked.append(int(score.argmax()))
        alike = vectors @ vectors[picked[-1]]
        worst = np.maximum(worst, alike) if n else alike
    return picked


def _most_relevant(query, vectors, k, balance=0.5):
    return np.argsort(-(vectors @ query), kind="stable")[:k].tolist()


def _mean_instead_of_max(query, vectors, k, balance=0.5):
    picked = []
    for _ in range(k):
        alike = (vectors @ vectors[picked].T).mean(axis=1) if picked else 0
        score = balance * (vectors @ query) - (1 - balance) * alike
        score[picked] = -np.inf
        picked.append(int(score.argmax()))
    return picked


def _picks_again(query, vectors, k, balance=0.5):
    picked = []
    for _ in range(k):
        alike = (vectors @ vectors[picked].T).max(axis=1) if picked else 0
        picked.append(int((balance * (vectors @ query) - (1 - balance) * alike).argmax()))
    return picked


def _never_below_zero(query, vectors, k, balance=0.5):
    picked, worst = [], np.zeros(len(vectors))
    for _ in range(k):
        score = balance * (vectors @ query) - (1 - balance) * worst
        score[picked] = -np.inf
        picked.append(int(score.argmax()))
        worst = np.maximum(worst, vectors @ vectors[picked[-1]])
    return picked


lesson.add(
    3, 2, "Relevant, and not all the same", check=_check_varied,
    hints=["Keep for each vector its largest cosine with any pick; a new pick can only raise it.",
           "A place that is picked gets the score −inf. The first pick is the most relevant one."],
    solution=varied,
    wrong={
        _most_relevant: "expected pick", _mean_instead_of_max: "expected pick", _picks_again: "different places",
        _never_below_zero: "expected pick",
    },
)  # fmt: skip


def _towns(n, d, n_cells, seed):
    """Vectors in towns of different size, centroids (the towns' means, and one far away without vectors), and cells."""
    rng = np.random.default_rng(seed)
    centres, widths = rng.standard_normal((n_cells, d)) * 3, rng.uniform(0.2, 2.5, n_cells)
    cell = np.concatenate([np.arange(n_cells), rng.integers(0, n_cells, n - n_cells)])
    vectors = centres[cell] + widths[cell][:, None] * rng.uniform(-1, 1, (n, d))
    means = np.stack([vectors[cell == c].mean(axis=0) for c in range(n_cells)])
    return vectors, np.vstack([means, np.zeros(d)]), cell


def _check_certain(answer):
    for given, (n, d, n_cells) in (("60 vectors of 2 numbers in 6 cells", (60, 2, 6)),
                                   ("300 vectors of 8 numbers in 10 cells", (300, 8, 10)),
                                   ("one cell", (5, 3, 1))):  # fmt: skip
        for seed in range(12):
            vectors, centroids, cell = _towns(n, d, n_cells, seed)
            query = np.random.default_rng(100 + seed).standard_normal(d) * 3
            result = answer(query.copy(), vectors.copy(), centroids.copy(), cell.copy())
            if not isinstance(result, tuple) or len(result) != 2:
                raise Wrong(f"expected a tuple (slot, opened) for {given}, got {type(result).__name__}")
            want = certain(query, vectors, centroids, cell)
            expect(result[0], want[0], f"the nearest slot, {given} and an empty one, query {seed}")
            expect(result[1], want[1], f"the number of cells opened, {given} and an empty one, query {seed}")


def certain(query, vectors, centroids, cell):
    def distance(a, b):
        return np.linalg.norm(a - b, axis=-1)

    radius = np.full(len(centroids), -np.inf)  # of an empty cell: its bound is +inf
    np.maximum.at(radius, cell, distance(vectors, centroids[cell]))
    bound, best, slot, opened = distance(centroids, query) - radius, np.inf, -1, 0
    for c in np.argsort(bound):
        if bound[c] >= best:
            break
        opened += 1
        slots = np.flatnonzero(cell == c)
        far = distance(vectors[slots], query)
        if far.min() < best:
            best, slot = far.min(), int(slots[far.argmin()])
    return slot, opened


def _opens_all(query, vectors, centroids, cell):
    return int(np.linalg.norm(vectors - query, axis=1).argmin()), len(np.unique(cell))


def _nearest_cell_only(query, vectors, centroids, cell):
    order = np.linalg.norm(centroids - query, axis=1).argsort()
    c = next(c for c in order if (cell == c).any())
    slots = np.flatnonzero(cell == c)
    return int(slots[np.linalg.norm(vectors[slots] - query, axis=1).argmin()]), 1


def _by_centroid(query, vectors, centroids, cell):
    """In the order of the centroids' distance instead of the bound."""
    away, best, slot, opened = np.linalg.norm(centroids - query, axis=1), np.inf, -1, 0
    for c in away.argsort():
        slots = np.flatnonzero(cell == c)
        if not len(slots):
            continue
        radius = np.linalg.norm(vectors[slots] - centroids[c], axis=1).max()
        if away[c] - radius >= best:
            continue
        opened += 1
        far = np.linalg.norm(vectors[slots] - query, axis=1)
        if far.min() < best:
            best, slot = far.min(), int(slots[far.argmin()])
    return slot, opened


def _opens_empty_cells(query, vectors, centroids, cell):
    slot, opened = certain(query, vectors, centroids, cell)
    return slot, opened + 1


lesson.add(
    4, 3, "Cells without risk", check=_check_certain,
    hints=["np.maximum.at(radius, cell, distances) gives the radius of every cell at once; start at −inf, so "
           "that the bound of an empty cell is +inf.",
           "Loop over np.argsort(bound); break as soon as bound[c] >= best, before opening the cell."],
    solution=certain,
    wrong={
        _opens_all: "cells opened", _nearest_cell_only: "expected", _by_centroid: "cells opened",
        _opens_empty_cells: "cells opened",
    },
)  # fmt: skip
