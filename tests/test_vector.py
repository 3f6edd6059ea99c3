"""Embeddings = transformers'; every index beside an exact oracle through adds, deletes and filters; files; errors."""

import json
import os

import faiss
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel

import llmscratch.engineer.vector
from llmscratch.engineer.cells import IVFIndex, PQIndex, ProductQuantizer, kmeans, nearest_centroid
from llmscratch.engineer.embedding import Embedder, MiniLM, WordPiece, load_minilm, mean_pool
from llmscratch.engineer.hnsw import HNSWIndex, beam_search, diverse
from llmscratch.engineer.vector import ExactIndex, recall, top_k, unit
from llmscratch.kit import almanac, glove, minilm_folder

KINDS = {
    "exact": lambda dim: ExactIndex(dim),
    "ivf": lambda dim: IVFIndex(dim, n_probe=3),
    "pq": lambda dim: PQIndex(dim, n_parts=dim // 2, rerank=50),
    "hnsw": lambda dim: HNSWIndex(dim, M=4, ef_construction=20, ef=20),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small products on several threads are slow when another test runs beside this one."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def library():
    """The tokenizers library's tokenizer of MiniLM, without padding and truncation."""
    tokenizer = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


@pytest.fixture(scope="module")
def embed():
    return Embedder()


@pytest.fixture(scope="module")
def words():
    """10,000 words of GloVe, 300 rarer ones, and the 10 nearest of each."""
    vectors = glove()[1]
    base, queries = unit(vectors[:10_000], 50), unit(vectors[20_000:50_000:100], 50)
    return base, queries, top_k(queries @ base.T, 10)[1]


# The embedding

# Characters whose Unicode properties are older than both tables, Python's and the library's.
SETTLED = "".join(
    chr(c)
    for low, high in ((0, 0x24F), (0x300, 0x345), (0x391, 0x3CE), (0x400, 0x45F), (0x5D0, 0x5EA), (0x905, 0x939),
                      (0x2000, 0x206F), (0x20A0, 0x20AC), (0x3000, 0x30FF), (0x4E00, 0x4E40),
                      (0xAC00, 0xAC20), (0xFB00, 0xFB06), (0xFFFD, 0xFFFD), (0x1F600, 0x1F620), (0x20000, 0x20010))
    for c in range(low, high + 1)
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.text(SETTLED, max_size=40))
@example("x" * 100)
@example("x" * 101)
@example("ΟΔΟΣ")
@example("İstanbul ŉ ǅ")
@example("a\x85b\x1cc\u2028d")
@example("don't##ing ## `^$+<=>|~")
def test_wordpiece_is_that_of_the_tokenizers_library(embed, library, text):
    assert embed.tokenizer.encode(text, 10**6) == library.encode(text).ids


def test_wordpiece_cuts_as_transformers_truncates(embed, library):
    text = "the vet bandaged the paw of the puppy " * 40
    library.enable_truncation(256)
    assert embed.tokenizer.encode(text) == library.encode(text).ids
    library.no_truncation()
    assert len(embed.tokenizer.encode(text, 2)) == 2


def test_control_tokens_in_a_text_are_letters(embed):
    ids = embed.tokenizer.encode("[SEP] [CLS] [PAD]")
    assert (ids[0], ids[-1]) == (101, 102)
    assert not {0, 101, 102} & set(ids[1:-1])


def test_what_is_no_text_is_refused(embed):
    with pytest.raises(ValueError, match="a text must be a string, got int"):
        embed(["fine", 3])
    with pytest.raises(ValueError, match="put a single text into a list"):
        embed("not a list")
    with pytest.raises(ValueError, match="batch_size must be at least 1, got -1"):
        embed(["fine"], batch_size=-1)
    with pytest.raises(ValueError, match="max_length must be at least 2"):
        embed.tokenizer.encode("a", 1)
    with pytest.raises(ValueError, match=r"lacks \[CLS\]"):
        WordPiece(["[PAD]", "[UNK]", "[SEP]"])


def test_embeddings_are_those_of_transformers(embed, library):
    theirs = BertModel.from_pretrained(minilm_folder()).eval()
    texts = [entry.text for entry in almanac().entries[::9]] + ["", "ΟΔΟΣ 猫 🙂", "word " * 500, "one"]
    ours = embed(texts, batch_size=7)
    for text, vector in zip(texts, ours, strict=True):  # alone, so without any padding
        ids = torch.tensor([embed.tokenizer.encode(text)])
        with torch.inference_mode():
            states = theirs(input_ids=ids).last_hidden_state
        other = torch.nn.functional.normalize(states.mean(dim=1))[0].numpy()
        assert vector @ other > 0.99999
        np.testing.assert_allclose(vector, other, atol=1e-5)
    assert ours.dtype == np.float32 and ours.shape == (len(texts), 384)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, rtol=1e-5)


def test_order_and_batches_do_not_matter(embed):
    texts = [entry.text for entry in almanac().entries[:12]] + ["short", ""]
    ours = embed(texts)
    np.testing.assert_allclose(embed(texts[::-1], batch_size=3)[::-1], ours, atol=1e-5)
    assert embed([]).shape == (0, 384)
    assert embed(iter(texts)).shape == ours.shape


def saved_bert(folder, **options):
    """A small BERT of transformers with random weights, and the folder it is saved in."""
    sizes = {"vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
             "intermediate_size": 32, "max_position_embeddings": 16}  # fmt: skip
    model = BertModel(BertConfig(**sizes | options)).eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn(p.shape, generator=draw) * 0.3 + (p.ndim == 1 and name.endswith("weight")))
    model.save_pretrained(folder)
    return model


def test_a_random_bert_gives_the_states_of_transformers(tmp_path):
    theirs = saved_bert(tmp_path)
    ours = load_minilm(tmp_path)
    assert isinstance(ours, MiniLM) and not ours.training
    tokens = torch.randint(0, 40, (3, 16), generator=torch.Generator().manual_seed(1))
    keep = torch.arange(16) < torch.tensor([[16], [9], [1]])
    with torch.inference_mode():
        mine, other = ours(tokens, keep), theirs(input_ids=tokens, attention_mask=keep.long()).last_hidden_state
    torch.testing.assert_close(mine[keep], other[keep], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="17 tokens is longer than the 16 positions"):
        ours(torch.zeros(1, 17, dtype=torch.long), torch.ones(1, 17, dtype=torch.bool))


def test_another_architecture_and_missing_arrays_are_refused(tmp_path):
    saved_bert(tmp_path / "tanh", hidden_act="gelu_new")
    with pytest.raises(ValueError, match="a BERT with the exact GELU"):
        load_minilm(tmp_path / "tanh")
    saved_bert(tmp_path / "whole")
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    (tmp_path / "whole" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ValueError, match="do not fit its config.json"):
        load_minilm(tmp_path / "whole")


def test_mean_pool_by_hand():
    states = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [100.0, 100.0]]])
    pooled = mean_pool(states, torch.tensor([[True, True, False]]))
    torch.testing.assert_close(pooled, torch.tensor([[0.6, 0.8]]))


# Every index


def rows(n, dim=6, seed=0):
    return np.random.default_rng(seed).standard_normal((n, dim))


@every_kind
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_an_index_agrees_with_a_dictionary_through_adds_deletes_and_filters(kind, data):
    """With every cell, candidate and foot in use each kind is exact; scores are compared, so ties do not matter."""
    index, oracle, rng = KINDS[kind](6), {}, np.random.default_rng(data.draw(st.integers(0, 1000)))
    index.n_probe, index.rerank, index.ef = 1000, 1000, 1000
    for _ in range(data.draw(st.integers(1, 6))):
        if oracle and data.draw(st.booleans()):
            gone = rng.choice(list(oracle), rng.integers(1, len(oracle) + 1), replace=False)
            index.delete(gone)
            for i in gone.tolist():
                del oracle[i]
        n = data.draw(st.integers(0, 40))
        new = [i for i in rng.permutation(400).tolist() if i not in oracle][:n]
        vectors = rng.standard_normal((n, 6)) * rng.uniform(0.1, 10)
        index.add(np.array(new, int), vectors)
        oracle |= dict(zip(new, vectors, strict=True))
        assert len(index) == len(oracle)
        only = None if data.draw(st.booleans()) else rng.permutation(400)[:200].tolist()
        there = [i for i in oracle if only is None or i in only]
        if not there:
            continue
        k = data.draw(st.integers(1, len(there)))
        query = rng.standard_normal((2, 6))
        scores, ids = index.search(query, k, filter=only)
        assert scores.shape == ids.shape == (2, k)
        assert (scores.dtype, ids.dtype) == (np.float32, np.int64)
        cosines = unit(query, 6) @ unit([oracle[i] for i in there], 6).T
        np.testing.assert_allclose(scores, -np.sort(-cosines, axis=1)[:, :k], atol=1e-5)
        assert all(len(set(row)) == k and set(row) <= set(there) for row in ids.tolist())
        where = {i: n for n, i in enumerate(there)}
        np.testing.assert_allclose(scores, np.take_along_axis(cosines, np.vectorize(where.get)(ids), 1), atol=1e-5)


@every_kind
def test_what_does_not_fit_is_refused_and_changes_nothing(kind):
    index = KINDS[kind](6)
    with pytest.raises(ValueError, match="the index is empty: add vectors before searching"):
        index.search(rows(1), 1)
    index.add([3, 5], rows(2))
    nan, zero = rows(2), rows(2)
    nan[1, 2], zero[0] = np.nan, 0
    for attempt, message in (
        (lambda: index.add([1, 2], nan), "vector 1 holds a NaN or an infinity"),
        (lambda: index.add([1, 2], nan * np.inf), "vector 0 holds a NaN or an infinity"),
        (lambda: index.add([1, 2], zero), "vector 0 is all zeros"),
        (lambda: index.add([1, 2], rows(2, 5)), r"vectors must be \(n, 6\), one a row; got \(2, 5\)"),
        (lambda: index.add([1], rows(1)[0]), r"got \(6,\)"),
        (lambda: index.add([1, 2, 4], rows(2)), "ids must be 2 whole numbers, one a vector"),
        (lambda: index.add([1.0, 2.5], rows(2)), "whole numbers, one a vector; got float64"),
        (lambda: index.add(np.array([1, 2], np.uint64), rows(2)), "whole numbers, one a vector; got uint64"),
        (lambda: index.add([1, 5], rows(2)), "id 5 is taken"),
        (lambda: index.add([1, 1], rows(2)), "id 1 is taken"),
        (lambda: index.delete([3, 4]), "id 4 is not in the index"),
        (lambda: index.search(nan, 1), "vector 1 holds a NaN"),
        (lambda: index.search(rows(1, 7), 1), r"must be \(n, 6\)"),
        (lambda: index.search(rows(1), 3), "k must be a whole number from 1 to 2, the vectors in the index; got 3"),
        (lambda: index.search(rows(1), 0), "got 0"),
        (lambda: index.search(rows(1), 1.5), "got 1.5"),
        (lambda: index.search(rows(1), 2, filter=[5, 77]), "from 1 to 1, the vectors that pass the filter; got 2"),
        (lambda: index.search(rows(1), 1, filter=[]), "from 1 to 0"),
        (lambda: index.search(rows(1), 1, filter=[3.5]), "filter must hold ids, whole numbers; got float64"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message), np.errstate(all="ignore"):
            attempt()
    assert len(index) == 2
    assert index.search(rows(2), 1)[1].tolist() == [[3], [5]]
    assert [part.shape for part in index.search(rows(0), 2)] == [(0, 2), (0, 2)]
    index.delete([3, 5])
    with pytest.raises(ValueError, match="the index is empty"):
        index.search(rows(1), 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExactIndex(0), "dim must be a whole number above 0, got 0"),
        (lambda: ExactIndex(3.0), "got 3.0"),
        (lambda: IVFIndex(4, n_probe=0), "n_probe must be a whole number above 0"),
        (lambda: PQIndex(10, 3), "divides dim = 10, got 3"),
        (lambda: PQIndex(10, 5, rerank=-1), "rerank must be a whole number, 0 or more"),
        (lambda: HNSWIndex(4, M=1), "M must be a whole number, at least 2; got 1"),
        (lambda: HNSWIndex(4, ef=0), "ef must be a whole number, at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e30])
def test_length_does_not_matter(scale):
    index = ExactIndex(6)
    index.add(range(20), rows(20) * scale)
    scores, ids = index.search(rows(20) / scale, 1)
    assert ids[:, 0].tolist() == list(range(20))
    np.testing.assert_allclose(scores, 1, rtol=1e-5)


@every_kind
def test_a_deleted_id_can_come_back_with_another_vector(kind):
    index = KINDS[kind](6)
    index.add(range(30), rows(30))
    index.delete([4])
    index.add([4], -rows(30)[[4]])
    scores, ids = index.search(-rows(30)[[4]], 1)
    assert (ids[0, 0], round(float(scores[0, 0]), 5)) == (4, 1.0)


# Files


@every_kind
@pytest.mark.parametrize("n", [0, 1, 300])
def test_an_index_comes_back_from_its_file_and_goes_on_as_if_nothing_had_happened(kind, n, tmp_path):
    index, path = KINDS[kind](6), tmp_path / "index.safetensors"
    index.add(np.arange(n) * 3, rows(n))
    index.delete(np.arange(0, n // 2) * 3)
    index.save(path)
    back = type(index).load(path)
    assert (len(back), back.settings()) == (len(index), index.settings())
    for one in (index, back):  # 300 and 400 vectors: past a power of two, and not
        one.add(np.arange(100) * 3 + 1, rows(100, seed=1))
        one.delete([1, 4])
    for mine, other in zip(index.search(rows(20, seed=2), 5), back.search(rows(20, seed=2), 5), strict=True):
        np.testing.assert_array_equal(mine, other)
    assert os.listdir(tmp_path) == [path.name]
    fresh = back.rebuilt()
    assert fresh.used == len(fresh) == len(index)


def test_a_damaged_file_or_another_kind_is_refused(tmp_path):
    path = tmp_path / "index"
    index = HNSWIndex(6)
    index.add(range(50), rows(50))
    index.save(path)
    with pytest.raises(ValueError, match="holds HNSWIndex, not IVFIndex"):
        IVFIndex.load(path)
    whole = path.read_bytes()
    for position in (len(whole) - 1, len(whole) // 2, len(whole) - 2000):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(ValueError, match="damaged"):
            HNSWIndex.load(path)
    for content in (b"", whole[:5], whole[:-1], b"{}" * 50):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a whole safetensors file"):
            HNSWIndex.load(path)
    with pytest.raises(FileNotFoundError):
        HNSWIndex.load(tmp_path / "nothing")


def test_a_save_that_breaks_off_leaves_the_old_file(tmp_path, monkeypatch):
    path, index = tmp_path / "index", ExactIndex(6)
    index.add(range(5), rows(5))
    index.save(path)

    def breaks_off(arrays, file, metadata):
        file.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(llmscratch.engineer.vector, "save_file", breaks_off)
    index.add([9], rows(1, seed=1))
    with pytest.raises(OSError, match="no space left"):
        index.save(path)
    assert os.listdir(tmp_path) == ["index"]
    assert len(ExactIndex.load(path)) == 5


# k-means, IVF, product quantisation


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 8), st.integers(8, 60), st.integers(1, 4), st.integers(0, 10**6))
def test_kmeans_is_that_of_scikit_learn(n_centroids, n, dim, seed):
    vectors = np.random.default_rng(seed).standard_normal((n, dim))
    start = vectors[np.random.default_rng(seed).choice(n, n_centroids, replace=False)]
    theirs = KMeans(n_centroids, init=start, n_init=1, max_iter=300, tol=0).fit(vectors)
    ours = kmeans(vectors, n_centroids, np.random.default_rng(seed), steps=300)
    np.testing.assert_allclose(ours, theirs.cluster_centers_, atol=1e-8)


def test_a_centroid_without_vectors_moves_to_the_farthest():
    vectors = np.array([[0.0], [0.0], [0.0], [1.0], [9.0]])

    class Draw:
        def choice(self, n, size, replace):
            return np.array([0, 1, 3])  # two centroids at the same place: one loses all

    assert sorted(kmeans(vectors, 3, Draw())[:, 0].tolist()) == [0, 1, 9]
    with pytest.raises(ValueError, match="5 vectors can have 1 to 5 centroids, not 6"):
        kmeans(vectors, 6, np.random.default_rng(0))


def test_ivf_with_the_same_cells_is_faiss(words):
    base, queries, true = words
    index = IVFIndex(50)
    index.add(np.arange(len(base)), base)
    assert len(index.centroids) == 100
    quantizer = faiss.IndexFlatL2(50)
    quantizer.add(index.centroids)
    theirs = faiss.IndexIVFFlat(quantizer, 50, 100, faiss.METRIC_L2)
    theirs.train(base)
    theirs.add(base)
    for n_probe in (1, 5, 20):
        index.n_probe = theirs.nprobe = n_probe
        assert recall(index.search(queries, 10)[1], theirs.search(queries, 10)[1]) > 0.998
    assert recall(index.search(queries, 10)[1], true) > 0.9


def test_codes_and_distances_are_those_of_faiss(words):
    base, queries, true = words
    quantizer = ProductQuantizer.fit(base[:3000], 5, np.random.default_rng(0))
    theirs = faiss.IndexPQ(50, 5, 8)
    faiss.copy_array_to_vector(quantizer.codebooks.ravel(), theirs.pq.centroids)
    theirs.is_trained = True
    codes = quantizer.encode(base)
    assert (codes != theirs.sa_encode(base)).mean() < 1e-4
    np.testing.assert_allclose(quantizer.decode(codes), theirs.sa_decode(codes), atol=1e-6)
    far = ((queries[0] - quantizer.decode(codes)) ** 2).sum(axis=1)
    np.testing.assert_allclose(quantizer.distances(queries[0], codes), far, atol=1e-5)


def test_product_quantisation_finds_candidates_and_reranking_orders_them(words):
    base, queries, true = words
    index = PQIndex(50, 10, rerank=0)
    index.add(np.arange(len(base)), base)
    scores, found = index.search(queries, 10)
    plain = recall(found, true)
    estimates = 1 - ((queries[0] - index.quantizer.decode(index.codes[found[0]])) ** 2).sum(axis=1) / 2
    np.testing.assert_allclose(scores[0], estimates, atol=1e-5)
    index.rerank = 100
    assert plain < 0.8 and recall(index.search(queries, 10)[1], true) > 0.98


# HNSW


def test_the_beam_keeps_the_best_that_can_be_reached_and_walks_through_what_is_not_allowed():
    vectors = unit([[1, n] for n in range(6)], 2)  # slot 5 is nearest to the query, then 4, …
    chain = {n: [m for m in (n - 1, n + 1) if 0 <= m < 6] for n in range(6)}
    query = unit([[0, 1]], 2)[0]
    found, looked = beam_search(chain, vectors, query, [0], 3)
    assert ([slot for _, slot in found], looked) == ([5, 4, 3], 6)
    allowed = np.array([True, True, False, False, False, True])
    assert [slot for _, slot in beam_search(chain, vectors, query, [0], 2, allowed)[0]] == [5, 1]
    chain[2] = []
    assert [slot for _, slot in beam_search(chain, vectors, query, [0], 6)[0]] == [2, 1, 0]


def test_diverse_takes_the_nearest_and_skips_those_behind_it():
    newcomer = unit([[0, 0, 1]], 3)
    around = unit([[0.1, 0, 1], [0.12, 0, 1], [0, 0.2, 1], [-0.3, 0, 1], [0.4, 0, 1]], 3)
    scores = (around @ newcomer.T)[:, 0]
    assert diverse(scores, around, 5) == [0, 2, 3]
    assert diverse(scores, around, 2) == [0, 2]


@pytest.fixture(scope="module")
def built(words):
    index = HNSWIndex(50)
    index.add(np.arange(4000), words[0][:4000])
    return index


def test_hnsw_finds_and_looks_at_little(built, words):
    base, queries, _ = words
    true = top_k(queries @ base[:4000].T, 10)[1]
    built.looked_at = 0
    assert recall(built.search(queries, 10)[1], true) > 0.97
    assert built.looked_at / len(queries) < 800
    allowed = np.arange(0, 4000, 2)  # half pass: a walk
    true = allowed[top_k(queries @ base[allowed].T, 10)[1]]
    assert recall(built.search(queries, 10, filter=allowed)[1], true) > 0.95
    built.looked_at = 0
    assert (
        recall(
            built.search(queries, 10, filter=allowed[:100])[1],
            allowed[:100][top_k(queries @ base[allowed[:100]].T, 10)[1]],
        )
        == 1
    )
    assert built.looked_at == 100 * len(queries)  # few pass: a scan


def test_the_graph_keeps_its_promises(built):
    links, M = built.graph.links, built.M
    assert list(links[0]) == list(range(4000))
    for level, nodes in enumerate(links):
        assert all(built.graph.level(slot) >= level for slot in nodes)
        for slot, near in nodes.items():
            assert len(near) == len(set(near)) <= (M if level else 2 * M)
            assert slot not in near and all(other in nodes for other in near)
    for level in (1, 2):  # 1 in 16 goes up: within 4 standard deviations
        p = float(M) ** -level
        assert (
            abs(sum(built.graph.level(slot) >= level for slot in range(4000)) - 4000 * p)
            < 4 * (4000 * p * (1 - p)) ** 0.5
        )


def test_one_by_one_is_the_same_as_all_at_once(built, words):
    index = HNSWIndex(50)
    for slot in range(300):
        index.add([slot], words[0][[slot]])
    whole = HNSWIndex(50)
    whole.add(range(300), words[0][:300])
    assert index.graph.links == whole.graph.links


def test_many_copies_of_one_vector_do_not_hide_the_others():
    vectors = np.concatenate([rows(1000, 8), np.repeat(rows(1, 8, seed=5), 300, axis=0)])[
        np.random.default_rng(0).permutation(1300)
    ]
    index = HNSWIndex(8, M=8, ef_construction=60)
    index.add(np.arange(1300), vectors)
    queries = rows(100, 8, seed=9)
    true = top_k(unit(queries, 8) @ unit(vectors, 8).T, 10)[0]
    assert np.mean(np.abs(index.search(queries, 10)[0] - true) < 1e-5) > 0.95


def test_every_copy_of_a_vector_is_found(tmp_path):
    copy = rows(1, 8, seed=5)
    vectors = np.concatenate([rows(1000, 8), np.repeat(copy, 300, axis=0)])[np.random.default_rng(0).permutation(1300)]
    copies = np.flatnonzero((vectors == copy).all(axis=1))
    index = HNSWIndex(8, M=8, ef_construction=60)
    index.add(np.arange(1300), vectors)
    index.save(tmp_path / "copies")
    for each in (index, HNSWIndex.load(tmp_path / "copies")):
        assert {slot for _, slot in each.walk(unit(copy, 8)[0], 300)} == set(copies)
        assert set(each.search(copy, 300)[1][0]) == set(copies)
        some = np.concatenate([copies[::2], np.setdiff1d(np.arange(1300), copies)])
        walked = each.walk(unit(copy, 8)[0], 150, np.isin(np.arange(each.used), some))
        assert {slot for _, slot in walked} == set(copies[::2])
        each.delete(copies[:200])  # the first of them, which alone is in the graph, among them
        assert set(each.search(copy, 100)[1][0]) == set(copies[200:])
        each.add([5000], copy)
        assert 5000 in each.search(copy, 101)[1]


def test_recall_by_hand():
    assert recall([[1, 2, 3], [4, 5, 6]], [[3, 9], [5, 4]]) == 0.75
    scores, columns = top_k(np.array([[1.0, 3.0, 2.0], [0.0, -1.0, 5.0]]), 2)
    assert (scores.tolist(), columns.tolist()) == ([[3, 2], [5, 0]], [[1, 2], [2, 0]])
    assert nearest_centroid(np.array([[1.0], [8.0]]), np.array([[0.0], [10.0]])).tolist() == [0, 1]
