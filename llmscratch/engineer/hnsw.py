"""HNSW: search by walking a graph of near and far links, level by level (Malkov and Yashunin 2016)."""

# Made from 03_for_engineer/04_vector_search.ipynb by `make export`: change the notebook, not this file.

import heapq
from itertools import islice

import numpy as np

from llmscratch.engineer.vector import Index

__all__ = ["HNSWIndex", "SmallWorld", "Twins", "beam_search", "diverse", "flat_links", "links_of"]


def beam_search(links, vectors, query, starts, ef, allowed=None):
    """A best-first walk: up to `ef` pairs (score, slot), best first, and how many vectors it compared.

    links: slot to the slots that it is linked to; starts: slots; allowed: bool by slot, or None for all. Other slots
    are walked through, but not kept. (Algorithm 2 of the paper.)
    """
    seen, scores = set(starts), (vectors[starts] @ query).tolist()
    frontier = [(-score, slot) for score, slot in zip(scores, starts)]
    best = [(score, slot) for score, slot in zip(scores, starts) if allowed is None or allowed[slot]]
    heapq.heapify(frontier)
    heapq.heapify(best)
    while frontier:
        negative, slot = heapq.heappop(frontier)
        if len(best) == ef and -negative < best[0][0]:
            break
        new = [near for near in links[slot] if near not in seen]
        if not new:
            continue
        seen.update(new)
        for score, near in zip((vectors[new] @ query).tolist(), new):  # one product for all of them
            if len(best) < ef or score > best[0][0]:
                heapq.heappush(frontier, (-score, near))
                if allowed is None or allowed[near]:
                    push = heapq.heappush if len(best) < ef else heapq.heapreplace
                    push(best, (score, near))
    return sorted(best, reverse=True), len(seen)


def diverse(scores, vectors, m):
    """Places of up to m of the candidates, vectors (n, d) with scores (n,) in falling order, in different directions.

    The best is taken; those nearer to it than to the newcomer, from whom the scores are, go; and again (algorithm 4).
    Copies of it (vectors have length 1) go, too: else a few hundred of them would link to nothing but each other.
    """
    between, left, chosen = vectors @ vectors.T, np.ones(len(scores), bool), []
    while len(chosen) < m and left.any():
        taken = int(left.argmax())  # the first that is left
        chosen.append(taken)
        left &= (between[taken] <= scores) & (between[taken] < 1 - 1e-5)
        left[taken] = False
    return chosen


class SmallWorld:
    """Near and far links on levels, of which each holds 1 in M of the one below (Malkov and Yashunin 2016).

    links[level][slot]: the slots that it is linked to, at most M, and 2M on level 0. `looked_at` counts comparisons.
    """

    choose = staticmethod(diverse)

    def __init__(self, M, ef_construction, seed):
        self.M, self.ef_construction, self.seed, self.links, self.looked_at = M, ef_construction, seed, [], 0

    def level(self, slot):
        """The level that a slot draws: j or more with probability M to the power of −j."""
        return int(-np.log(1 - np.random.default_rng([self.seed, slot]).random()) / np.log(self.M))

    def beam(self, level, vectors, query, starts, ef, allowed=None):
        """`beam_search` on one level: pairs (score, slot), best first."""
        found, looked = beam_search(self.links[level], vectors, query, starts, ef, allowed)
        self.looked_at += looked
        return found

    def enter(self, vectors, query, level):
        """Where a walk on this level starts: where greedy walks end that come from the top's first slot."""
        near = next(iter(self.links[-1]))
        for above in range(len(self.links) - 1, level, -1):
            near = self.beam(above, vectors, query, [near], 1)[0][1]
        return [near]

    def insert(self, vectors, slot):
        """Link a slot, whose vector stands in its row, on each of its levels (algorithm 1)."""
        level, top = self.level(slot), len(self.links) - 1
        starts = self.enter(vectors, vectors[slot], level) if self.links else []
        for at in range(min(level, top), -1, -1):
            scores, starts = map(
                list, zip(*self.beam(at, vectors, vectors[slot], starts, self.ef_construction))
            )
            chosen = self.choose(np.array(scores), vectors[starts], self.M)
            self.links[at][slot] = [starts[i] for i in chosen]
            for other in self.links[at][slot]:
                self._link_back(at, vectors, other, slot)
        self.links += [{slot: []} for _ in range(top, level)]

    def _link_back(self, at, vectors, slot, new):
        links, room = self.links[at][slot], self.M if at else 2 * self.M
        links.append(new)
        if len(links) > room:
            scores = vectors[links] @ vectors[slot]
            order = np.argsort(-scores)
            chosen = self.choose(scores[order], vectors[links][order], room)
            self.links[at][slot] = [links[order[i]] for i in chosen]


class Twins:
    """Equal vectors by slot: the first of equals stands for all, `others[first]` has the slots of the rest."""

    def __init__(self):
        self.others, self._first = {}, {}

    def take(self, vectors, slot):
        """Whether an earlier slot has the vector of this one; it is then noted as its twin."""
        first = self._first.setdefault(hash(vectors[slot].tobytes()), slot)
        if first == slot or not np.array_equal(vectors[first], vectors[slot]):
            return False
        self.others.setdefault(first, []).append(slot)
        return True

    def wanted(self, allowed):
        """`allowed` (bool by slot, or None for all), and the first of equals wherever one of its twins is allowed."""
        if allowed is None or not self.others:
            return allowed
        wanted = allowed.copy()
        for first, others in self.others.items():
            wanted[first] |= allowed[others].any()
        return wanted

    def everyone(self, found, allowed):
        """The pairs (score, slot) of a walk, each first of equals followed by its twins; allowed slots only."""
        if not self.others:
            return found
        pairs = ((score, slot) for score, first in found for slot in (first, *self.others.get(first, ())))
        return [(score, slot) for score, slot in pairs if allowed is None or allowed[slot]]


def flat_links(levels):
    """The links {slot: slots} of all levels as four arrays of whole numbers, which a file can hold."""
    nodes = [(slot, links) for level in levels for slot, links in level.items()]
    flat = {"links": [near for _, links in nodes for near in links], "degrees": [len(links) for _, links in nodes]}
    flat |= {"slots": [slot for slot, _ in nodes], "levels": [len(level) for level in levels]}
    return {name: np.array(values, np.int32) for name, values in flat.items()}


def links_of(arrays):
    """The links of all levels from the arrays of `flat_links`."""
    rows = np.split(arrays["links"], arrays["degrees"].cumsum()[:-1])
    nodes = zip(arrays["slots"].tolist(), (row.tolist() for row in rows))
    return [dict(islice(nodes, n)) for n in arrays["levels"].tolist()]


class HNSWIndex(Index):
    """An index that walks a `SmallWorld`. M: links a newcomer makes on a level.

    ef_construction, ef: how many candidates an insertion and a search keep. One thread at a time may add.
    """

    SETTINGS = ("dim", "M", "ef_construction", "ef", "seed")

    def __init__(self, dim, M=16, ef_construction=100, ef=80, seed=0):
        super().__init__(dim)
        for name, value, least in (("M", M, 2), ("ef_construction", ef_construction, 1), ("ef", ef, 1)):
            if type(value) is not int or value < least:
                raise ValueError(f"{name} must be a whole number, at least {least}; got {value!r}")
        self.M, self.ef_construction, self.ef, self.seed = M, ef_construction, ef, seed
        self.graph, self.twins = SmallWorld(M, ef_construction, seed), Twins()

    def _insert(self, slots):
        for slot in slots:
            if not self.twins.take(self.vectors, slot):
                self.graph.insert(self.vectors, slot)

    def walk(self, query, ef, allowed=None, wanted=None):
        """The best `ef` pairs (score, slot) that a walk finds for a unit vector (dim,), best first.

        allowed: bool by slot, or None for all; wanted: what `Twins.wanted` makes of it, when that is known.
        """
        before, starts = self.graph.looked_at, self.graph.enter(self.vectors, query, 0)
        wanted = self.twins.wanted(allowed) if wanted is None else wanted
        found = self.graph.beam(0, self.vectors, query, starts, ef, wanted)
        self.looked_at += self.graph.looked_at - before
        return self.twins.everyone(found, allowed)[:ef]

    def _nearest(self, queries, k, allowed):
        ef, n = max(self.ef, k), self.used if allowed is None else int(allowed.sum())
        if 2 * n * n <= ef * self.M * self.used:
            return self._scan(queries, k, allowed)
        wanted = self.twins.wanted(allowed)
        walks = [self.walk(query, ef, allowed, wanted)[:k] for query in queries]
        if min(map(len, walks)) < k:  # too few can be reached
            return self._scan(queries, k, allowed)
        found = np.array(walks)  # (m, k, 2)
        return found[..., 0].astype(np.float32), found[..., 1].astype(np.int64)

    def _state(self):
        return flat_links(self.graph.links)

    def _restore(self, arrays):
        self.graph.links = links_of(arrays)
        for slot in range(self.used):
            self.twins.take(self.vectors, slot)
