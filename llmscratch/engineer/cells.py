"""Indexes that k-means makes: an inverted file of cells, and short codes by product quantisation."""

# Made from 03_for_engineer/04_vector_search.ipynb by `make export`: change the notebook, not this file.

import numpy as np

from llmscratch.engineer.vector import Index, grown, top_k

__all__ = ["IVFIndex", "PQIndex", "ProductQuantizer", "kmeans", "nearest_centroid"]


def nearest_centroid(vectors, centroids):
    """The row of centroids (c, d) nearest to each of vectors (n, d): (n,)."""
    half = (centroids**2).sum(axis=1) / 2
    step = max(1, 2**22 // len(centroids))  # scores of at most 16 MB at a time
    parts = [(vectors[i : i + step] @ centroids.T - half).argmax(axis=1) for i in range(0, len(vectors), step)]
    return np.concatenate(parts)


def kmeans(vectors, n_centroids, rng, steps=20):
    """Centroids (n_centroids, d) of vectors (n, d) by Lloyd's algorithm, begun at vectors that `rng` draws.

    A centroid that loses its last vector moves onto the vector farthest from its own centroid. ValueError when there
    are fewer vectors than centroids.
    """
    if not 1 <= n_centroids <= len(vectors):
        raise ValueError(f"{len(vectors)} vectors can have 1 to {len(vectors)} centroids, not {n_centroids}")
    centroids, before = vectors[rng.choice(len(vectors), n_centroids, replace=False)], None
    for _ in range(steps):
        cell = nearest_centroid(vectors, centroids)
        if before is not None and (cell == before).all():
            break
        before, size = cell, np.bincount(cell, minlength=n_centroids)
        sums = np.stack([np.bincount(cell, column, n_centroids) for column in vectors.T], axis=1)
        means = (sums / np.maximum(size, 1)[:, None]).astype(vectors.dtype)
        if (empty := np.flatnonzero(size == 0)).size:
            far = ((vectors - centroids[cell]) ** 2).sum(axis=1).argsort()[::-1]
            means[empty] = vectors[far[: len(empty)]]
        centroids = means
    return centroids


class IVFIndex(Index):
    """An inverted file: about √n k-means cells, of which a search opens the `n_probe` nearest to the query.

    The cells are made anew whenever the number of vectors passes a power of two. When the opened cells hold fewer than
    k vectors that may be answered, a search opens all.
    """

    SETTINGS = ("dim", "n_probe", "seed")

    def __init__(self, dim, n_probe=8, seed=0):
        super().__init__(dim)
        if type(n_probe) is not int or n_probe < 1:
            raise ValueError(f"n_probe must be a whole number above 0, got {n_probe!r}")
        self.n_probe, self.seed = n_probe, seed
        self.centroids, self.cell, self._members = np.zeros((0, dim), np.float32), np.zeros(0, np.int64), None

    def _insert(self, slots):
        if self.used.bit_length() > slots.start.bit_length():
            rng, n_cells = np.random.default_rng(self.seed), round(self.used**0.5)
            sample = rng.choice(self.used, min(self.used, 64 * n_cells), replace=False)
            self.centroids = kmeans(self.vectors[sample], n_cells, rng)
            slots = range(self.used)
        new = self.vectors[slots.start : slots.stop]
        if len(new):
            self.cell = np.append(self.cell[: slots.start], nearest_centroid(new, self.centroids))
            self._members = None

    def _state(self):
        return {"centroids": self.centroids, "cell": self.cell}

    def members(self):
        """For each cell, the slots in it; kept until the next vectors come."""
        if self._members is None:
            borders = np.bincount(self.cell, minlength=len(self.centroids)).cumsum()[:-1]
            self._members = np.split(np.argsort(self.cell, kind="stable"), borders)
        return self._members

    def _nearest(self, queries, k, allowed):
        members, found = self.members(), []
        far = (self.centroids**2).sum(axis=1) / 2 - queries @ self.centroids.T  # (m, cells)
        for query, cells in zip(queries, far.argsort(axis=1)):
            for n in (self.n_probe, len(cells)):
                slots = np.concatenate([members[c] for c in cells[:n]])
                slots = slots if allowed is None else slots[allowed[slots]]
                if len(slots) >= k:
                    break
            self.looked_at += len(cells) + len(slots)
            scores, columns = top_k((self.vectors[slots] @ query)[None], k)
            found.append((scores[0], slots[columns[0]]))
        return tuple(map(np.array, zip(*found)))


class ProductQuantizer:
    """Vectors (n, dim) as codes (n, n_parts), a byte for each part: which of its 256 centroids is nearest."""

    def __init__(self, codebooks):
        self.codebooks = (
            codebooks  # (n_parts, 256, dim / n_parts); fewer centroids when there were fewer vectors
        )

    @classmethod
    def fit(cls, vectors, n_parts, rng):
        """Codebooks by k-means on each part, from at most 64 vectors a centroid."""
        vectors = vectors[rng.choice(len(vectors), min(len(vectors), 64 * 256), replace=False)]
        return cls(
            np.stack([kmeans(part, min(256, len(part)), rng, steps=10) for part in cls.parts(vectors, n_parts)])
        )

    @staticmethod
    def parts(vectors, n_parts):
        """Vectors (n, dim) cut into parts (n_parts, n, dim / n_parts)."""
        return vectors.reshape(len(vectors), n_parts, -1).swapaxes(0, 1)

    def encode(self, vectors):
        """Codes (n, n_parts), uint8, of vectors (n, dim)."""
        parts = self.parts(vectors, len(self.codebooks))
        return np.stack([nearest_centroid(*pair) for pair in zip(parts, self.codebooks)], axis=1).astype(
            np.uint8
        )

    def decode(self, codes):
        """The vectors (n, dim) that codes (n, n_parts) stand for."""
        return self.codebooks[np.arange(len(self.codebooks)), codes].reshape(len(codes), -1)

    def distances(self, query, codes):
        """|q − x̂|² from a query (dim,) to the vectors that codes (n, n_parts) stand for: (n,)."""
        table = ((query.reshape(len(self.codebooks), 1, -1) - self.codebooks) ** 2).sum(
            axis=2
        )  # (n_parts, 256)
        return sum(row[code] for row, code in zip(table, codes.T))


class PQIndex(Index):
    """Compares codes of `n_parts` bytes, then the vectors of the `rerank` best; with rerank = 0 scores are estimates.

    The codebooks are made anew whenever the number of vectors passes a power of two.
    """

    SETTINGS = ("dim", "n_parts", "rerank", "seed")

    def __init__(self, dim, n_parts, rerank=100, seed=0):
        super().__init__(dim)
        if type(n_parts) is not int or n_parts < 1 or dim % n_parts:
            raise ValueError(f"n_parts must be a whole number that divides dim = {dim}, got {n_parts!r}")
        if type(rerank) is not int or rerank < 0:
            raise ValueError(f"rerank must be a whole number, 0 or more, got {rerank!r}")
        self.n_parts, self.rerank, self.seed = n_parts, rerank, seed
        self.codes, self.quantizer = np.zeros((0, n_parts), np.uint8), None

    def _insert(self, slots):
        if self.used.bit_length() > slots.start.bit_length():
            rng, slots = np.random.default_rng(self.seed), range(self.used)
            self.quantizer = ProductQuantizer.fit(self.vectors[: self.used], self.n_parts, rng)
        if slots:
            self.codes = grown(self.codes, self.used)
            self.codes[slots.start : slots.stop] = self.quantizer.encode(self.vectors[slots.start : slots.stop])

    def _state(self):
        codebooks = {"codebooks": self.quantizer.codebooks} if self.quantizer else {}
        return codebooks | {"codes": self.codes[: self.used]}

    def _restore(self, arrays):
        self.codes = arrays["codes"]
        if "codebooks" in arrays:
            self.quantizer = ProductQuantizer(arrays["codebooks"])

    def _nearest(self, queries, k, allowed):
        slots, found = np.arange(self.used) if allowed is None else np.flatnonzero(allowed), []
        codes, keep = self.codes[slots], min(max(k, self.rerank), len(slots))
        for query in queries:
            scores, columns = top_k(1 - self.quantizer.distances(query, codes)[None] / 2, keep)
            near = slots[columns[0]]
            if self.rerank:
                scores, columns = top_k((self.vectors[near] @ query)[None], k)
                near = near[columns[0]]
            found.append((scores[0, :k], near[:k]))
        self.looked_at += len(queries) * len(slots)
        return tuple(map(np.array, zip(*found)))
