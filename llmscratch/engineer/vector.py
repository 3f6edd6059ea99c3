"""Vectors under ids, searched by cosine: the interface that every index shares, and the exact scan."""

# Made from 03_for_engineer/04_vector_search.ipynb by `make export`: change the notebook, not this file.

import json
import os
import zlib
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

__all__ = ["ExactIndex", "Index", "Saved", "Store", "grown", "load_arrays", "recall", "save_arrays", "top_k", "unit"]


def unit(vectors, dim):
    """Vectors (n, dim) at length 1, float32. ValueError for another shape, a NaN, an infinity, or a vector of zeros."""
    vectors = np.asarray(vectors, dtype=np.float32)
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise ValueError(f"vectors must be (n, {dim}), one a row; got {vectors.shape}")
    peak = np.abs(vectors).max(axis=1, keepdims=True)
    if not np.isfinite(peak).all():
        raise ValueError(f"vector {int(np.isfinite(peak).argmin())} holds a NaN or an infinity")
    if not peak.all():
        raise ValueError(f"vector {int(peak.argmin())} is all zeros: without a direction it has no cosine")
    vectors = vectors / peak  # so that no square overflows or vanishes
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def top_k(scores, k):
    """The k largest of each row of scores (m, n), largest first: values (m, k) and columns (m, k)."""
    columns = np.argpartition(scores, -k, axis=1)[:, -k:]  # in no order
    values = np.take_along_axis(scores, columns, axis=1)
    order = np.argsort(-values, axis=1)
    return np.take_along_axis(values, order, axis=1), np.take_along_axis(columns, order, axis=1)


def grown(array, rows):
    """The array with room for `rows` rows, at least doubled when it has to grow."""
    if rows <= len(array):
        return array
    larger = np.zeros((max(rows, 2 * len(array)), *array.shape[1:]), array.dtype)
    larger[: len(array)] = array
    return larger


def recall(found, true):
    """The share of the true neighbours, ids (m, k), that stand in the same row of `found`, ids (m, ≥ k)."""
    hits = (np.asarray(true)[:, :, None] == np.asarray(found)[:, None, :]).any(axis=2)
    return float(hits.mean())


class Store:
    """Unit vectors under ids. Each has a slot, a row of `vectors`; a deleted one keeps it but is no longer `alive`."""

    def __init__(self, dim):
        if type(dim) is not int or dim < 1:
            raise ValueError(f"dim must be a whole number above 0, got {dim!r}")
        self.dim, self.used, self.slot_of = dim, 0, {}
        self.vectors, self.ids, self.alive = (
            np.zeros((0, dim), np.float32),
            np.zeros(0, np.int64),
            np.zeros(0, bool),
        )

    def __len__(self):
        return len(self.slot_of)

    def add(self, ids, vectors):
        """Take up vectors (n, dim) under new ids (n,), whole numbers. ValueError, and no change, if they do not fit."""
        vectors, ids = unit(vectors, self.dim), np.asarray(ids)
        if ids.shape != (len(vectors),) or (ids.size and (ids.dtype.kind not in "iu" or ids.dtype == np.uint64)):
            raise ValueError(
                f"ids must be {len(vectors)} whole numbers, one a vector; got {ids.dtype} {ids.shape}"
            )
        taken = set()
        for i in ids.tolist():
            if i in taken or i in self.slot_of:
                raise ValueError(f"id {i} is taken: delete the old vector first, or choose another id")
            taken.add(i)
        slots = range(self.used, self.used + len(ids))
        for name, new in (("vectors", vectors), ("ids", ids), ("alive", True)):
            setattr(self, name, grown(getattr(self, name), slots.stop))
            getattr(self, name)[slots.start : slots.stop] = new
        self.slot_of.update(zip(ids.tolist(), slots))
        self.used = slots.stop
        self._insert(slots)

    def _insert(self, slots):
        """Called when vectors have come into the range `slots`."""

    def delete(self, ids):
        """Never answer these ids again. ValueError, and no change, when one is not there."""
        ids = set(np.asarray(ids).ravel().tolist())
        if missing := ids - self.slot_of.keys():
            raise ValueError(f"id {min(missing)} is not in the index")
        self.alive[[self.slot_of.pop(i) for i in ids]] = False


class Saved:
    """To and from one file. SETTINGS: the arguments that make an empty copy; `_state`: arrays besides the vectors."""

    SETTINGS = ("dim",)

    def settings(self):
        """The arguments that make an empty index of the same kind."""
        return {name: getattr(self, name) for name in self.SETTINGS}

    def rebuilt(self):
        """A new index with the vectors that are alive: frees the slots of deleted ones."""
        new, alive = type(self)(**self.settings()), self.alive[: self.used]
        new.add(self.ids[: self.used][alive], self.vectors[: self.used][alive])
        return new

    def save(self, path):
        """Write one safetensors file. Whoever reads `path` finds the old file or the new one, never half of one."""
        arrays = {name: getattr(self, name)[: self.used] for name in ("vectors", "ids", "alive")}
        save_arrays(
            path, arrays | self._state(), {"kind": type(self).__name__, "settings": json.dumps(self.settings())}
        )

    @classmethod
    def load(cls, path):
        """The index that `save` wrote. ValueError when the file is damaged or holds another kind."""
        arrays, about = load_arrays(path)
        if about.get("kind") != cls.__name__:
            raise ValueError(f"{path} holds {about.get('kind', 'no index')}, not {cls.__name__}")
        index = cls(**json.loads(about["settings"]))
        index.vectors, index.ids, index.alive = (arrays.pop(name) for name in ("vectors", "ids", "alive"))
        index.used = len(index.ids)
        index.slot_of = {i: slot for slot, i in enumerate(index.ids.tolist()) if index.alive[slot]}
        index._restore(arrays)
        return index

    def _state(self):
        return {}

    def _restore(self, arrays):
        for name, array in arrays.items():
            setattr(self, name, array)


class Index(Store, Saved):
    """Vectors under ids, searched by cosine; a kind of index says how. `looked_at`: vectors compared in searches."""

    looked_at = 0

    def search(self, queries, k, filter=None):
        """The k nearest to each of queries (m, dim): cosines (m, k), float32, highest first, and ids (m, k).

        filter: only these ids may be answered; ids that are not there do not matter. ValueError when the index is
        empty, fewer than k vectors may be answered, or the queries do not fit.
        """
        queries, allowed, which = unit(queries, self.dim), None, "in the index"
        if not len(self):
            raise ValueError("the index is empty: add vectors before searching")
        if filter is not None or len(self) < self.used:
            allowed = self.alive[: self.used]
        if filter is not None:
            which, wanted = "that pass the filter", np.array(list(filter))
            if wanted.size and wanted.dtype.kind not in "iu":
                raise ValueError(f"filter must hold ids, whole numbers; got {wanted.dtype}")
            allowed = allowed & np.isin(self.ids[: self.used], wanted)
        there = len(self) if allowed is None else int(allowed.sum())
        if not isinstance(k, int | np.integer) or not 1 <= k <= there:
            raise ValueError(f"k must be a whole number from 1 to {there}, the vectors {which}; got {k!r}")
        if not len(queries):
            return np.zeros((0, k), np.float32), np.zeros((0, k), np.int64)
        scores, slots = self._nearest(queries, int(k), allowed)
        return scores, self.ids[slots]

    def _nearest(self, queries, k, allowed):
        """Scores and slots, (m, k) each. allowed: bool (used,) with at least k true, or None when all are allowed."""
        raise NotImplementedError

    def _scan(self, queries, k, allowed):
        """As `_nearest`, by comparing every allowed vector."""
        slots = np.arange(self.used) if allowed is None else np.flatnonzero(allowed)
        vectors = self.vectors[: self.used] if allowed is None else self.vectors[slots]
        self.looked_at += len(queries) * len(slots)
        step = max(1, 2**24 // len(slots))  # scores of at most 64 MB at a time
        found = [top_k(queries[i : i + step] @ vectors.T, k) for i in range(0, len(queries), step)]
        return np.concatenate([s for s, _ in found]), slots[np.concatenate([columns for _, columns in found])]


class ExactIndex(Index):
    """Compares every vector with the query: always right, nothing to build, and its time grows with n · dim."""

    def _nearest(self, queries, k, allowed):
        return self._scan(queries, k, allowed)


def save_arrays(path, arrays, about):
    """Write arrays and a dictionary of strings into one safetensors file, with a checksum for each; all or nothing."""
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    about = about | {"crc32": json.dumps({name: zlib.crc32(array) for name, array in arrays.items()})}
    temporary = Path(f"{os.fspath(path)}.{os.getpid()}.tmp")
    try:
        save_file(arrays, temporary, metadata=about)
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())  # on the disk before the name leads there
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_arrays(path):
    """The arrays, by name, and the strings that `save_arrays` wrote. ValueError when the file is damaged."""
    try:
        with safe_open(path, "np") as file:
            about, names = file.metadata() or {}, file.keys()
            arrays = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from None
    for name, checksum in json.loads(about.get("crc32", "{}")).items():
        if name not in arrays or zlib.crc32(arrays[name]) != checksum:
            raise ValueError(f"{path} is damaged: its {name} are not those that were saved")
    return arrays, about
