"""What 4E 04 claims: embeddings at the pace of transformers; recall and time of the indexes beside the libraries."""

import functools
import time

import faiss
import hnswlib
import numpy as np
import torch
from transformers import AutoTokenizer, BertModel

from llmscratch.engineer.cells import IVFIndex, PQIndex
from llmscratch.engineer.embedding import Embedder, mean_pool
from llmscratch.engineer.hnsw import HNSWIndex
from llmscratch.engineer.vector import ExactIndex, recall, top_k, unit
from llmscratch.kit import Race, almanac, glove, minilm_folder, race
from tests.bench import against, row


@functools.cache
def words(n: int, first: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The n most frequent words of GloVe, 500 others as queries, and the 10 nearest of each.

    The queries are of rank n to 4n, as in the lesson, or of rank `first` and beyond.
    """
    vectors = glove()[1]
    ranks = np.linspace(first, len(vectors) - 1, 500) if first else np.linspace(n, 4 * n - 1, 500)
    base, queries = unit(vectors[:n], 50), unit(vectors[ranks.astype(int)], 50)
    return base, queries, np.concatenate([top_k(q[None] @ base.T, 10)[1] for q in queries])


@functools.cache
def built(n: int) -> tuple[HNSWIndex, float]:
    """Our HNSW of n words, with the lesson's settings, and the seconds that it took."""
    index, start = HNSWIndex(50), time.perf_counter()
    index.add(np.arange(n), words(n)[0])
    return index, time.perf_counter() - start


def theirs(n: int, ef: int) -> hnswlib.Index:
    """hnswlib's, with the same settings."""
    index = hnswlib.Index("ip", 50)
    index.init_index(n, M=16, ef_construction=100, random_seed=0)
    index.set_num_threads(1)
    index.add_items(words(n)[0], np.arange(n))
    index.set_ef(ef)
    return index


def once(ours: float, other: float) -> Race:
    return against([ours] * 3, [other] * 3)


@row("4E04: 64 articles to embeddings; theirs: transformers, batches of 32", at_most=1.1)
def embeddings() -> Race:
    embed, model = Embedder(), BertModel.from_pretrained(minilm_folder()).eval()
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    texts = [entry.text for entry in almanac().entries[:64]]

    def transformers() -> None:
        for batch in (texts[:32], texts[32:]):
            given = tokenizer(batch, padding=True, truncation=True, max_length=256, return_tensors="pt")
            with torch.inference_mode():
                mean_pool(model(**given).last_hidden_state, given["attention_mask"].bool())

    return race("64 articles", lambda: embed(texts), transformers, repeats=7)


@row("4E04: HNSW of 10,000 words built; theirs: the goal", at_most=1)
def build_10_000() -> Race:
    return once(built(10_000)[1], 40.0)


@row("4E04: its recall@10 at ef 80, words of rank 10,000 to 40,000; theirs: the goal", at_least=1, unit="")
def recall_10_000() -> Race:
    _, queries, true = words(10_000)
    return once(recall(built(10_000)[0].search(queries, 10)[1], true), 0.95)


def beside_hnswlib(n: int, first: int = 0) -> Race:
    """recall@10 at ef 80 of both, built with the same settings from the same words."""
    _, queries, true = words(n, first)
    other = theirs(n, 80).knn_query(queries, k=10)[0].astype(int)
    return once(recall(built(n)[0].search(queries, 10)[1], true), recall(other, true))


@row("4E04: the same for words of rank 350,000 and beyond; theirs: hnswlib, same settings", at_least=0.98, unit="")
def recall_of_the_rare() -> Race:
    return beside_hnswlib(10_000, 350_000)


@row("4E04: HNSW of 50,000 words, recall@10 at ef 80; theirs: hnswlib, same settings", at_least=0.98, unit="")
def recall_50_000() -> Race:
    return beside_hnswlib(50_000)


@row("4E04: vectors that a search compares among 50,000; theirs: among 10,000", at_most=2, unit="vectors")
def comparisons() -> Race:
    counts, queries = [], words(50_000)[1]
    for n in (50_000, 10_000):
        index = built(n)[0]
        index.looked_at = 0
        index.search(queries, 10)
        counts.append(index.looked_at / len(queries))
    return once(*counts)


@row("4E04: IVF of 50,000 words, recall@10 with 16 cells open; theirs: faiss, its own cells", at_least=0.97, unit="")
def ivf_50_000() -> Race:
    base, queries, true = words(50_000)
    ours = IVFIndex(50, n_probe=16)
    ours.add(np.arange(len(base)), base)
    quantizer = faiss.IndexFlatL2(50)
    other = faiss.IndexIVFFlat(quantizer, 50, len(ours.centroids), faiss.METRIC_L2)
    other.train(base)
    other.add(base)
    other.nprobe = 16
    return once(recall(ours.search(queries, 10)[1], true), recall(other.search(queries, 10)[1], true))


@row("4E04: PQ of 50,000 words, 10 bytes each, recall@10 without re-ranking; theirs: faiss", at_least=0.95, unit="")
def pq_50_000() -> Race:
    base, queries, true = words(50_000)
    ours = PQIndex(50, 10, rerank=0)
    ours.add(np.arange(len(base)), base)
    other = faiss.IndexPQ(50, 10, 8)
    other.train(base)
    other.add(base)
    return once(recall(ours.search(queries, 10)[1], true), recall(other.search(queries, 10)[1], true))


@row("4E04: exact search, 500 queries at once among 50,000; theirs: faiss's IndexFlatIP", at_most=3)
def exact_50_000() -> Race:
    base, queries, _ = words(50_000)
    ours, other = ExactIndex(50), faiss.IndexFlatIP(50)
    ours.add(np.arange(len(base)), base)
    other.add(base)
    return race("500 queries", lambda: ours.search(queries, 10), lambda: other.search(queries, 10), repeats=7)


@row("4E04: one query among 50,000, exact; theirs: our IVF, 16 cells open", at_least=2)
def cells_beside_scan() -> Race:
    base, queries, _ = words(50_000)
    exact, cells = ExactIndex(50), IVFIndex(50, n_probe=16)
    for index in (exact, cells):
        index.add(np.arange(len(base)), base)
    alone = [queries[i : i + 1] for i in range(50)]
    return race(
        "50 queries, one at a time",
        *(lambda index=i: [index.search(q, 10) for q in alone] for i in (exact, cells)),
        repeats=7,
    )


@row("4E04: one query among 10,000, our HNSW, ef 80; theirs: hnswlib (C++)", at_most=100)
def python_beside_cpp() -> Race:
    _, queries, _ = words(10_000)
    ours, other, alone = built(10_000)[0], theirs(10_000, 80), [queries[i : i + 1] for i in range(50)]
    return race(
        "50 queries",
        lambda: [ours.search(q, 10) for q in alone],
        lambda: [other.knn_query(q, k=10) for q in alone],
        repeats=7,
    )
