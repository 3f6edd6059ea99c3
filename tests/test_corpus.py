"""Filters, deduplication, splits, shards and packing (4S 06): against brute force, and with input that does not fit."""

import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmscratch.kit import stories
from llmscratch.scientist.attention import MultiHeadAttention
from llmscratch.scientist.curation import (
    LIMITS,
    best_fit,
    candidate_pairs,
    clusters,
    document_mask,
    documents_of,
    failed,
    fingerprint,
    minhash,
    orders,
    pack,
    quality,
    repeated_share,
    shingle_hashes,
    split_by_cluster,
    stirred,
    to_shard,
    verified,
)

EOT = 256
WORDS = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f", "g"]), max_size=12).map(" ".join)


def runs(text, k):
    words = re.findall(r"\w+", text.lower())
    words += [""] * (k - len(words))
    return [tuple(words[i : i + k]) for i in range(len(words) - k + 1)]


# Filters


def test_a_story_breaks_no_rule_and_what_is_empty_breaks_several():
    assert failed(stories("validation")[0].text) == []
    assert {"words", "stop words"} <= set(failed(""))
    assert set(quality("")) == set(LIMITS)


@pytest.mark.parametrize(("text", "rule"), [
    ("the and of to " * 30 + "end.", "repeated 5-grams"),
    ("The cat and the dog.\n" * 20, "repeated lines"),
    ("\n".join(f"the cat and dog number {i}" for i in range(20)), "lines that end"),
    ("<b>the</b> <i>and</i> " * 30 + "end.", "symbols a word"),
    ("1 2 3 4 5 " * 20 + "the and of.", "words with letters"),
    ("the and of.", "words"),
    (" ".join(f"word{i}" for i in range(60)) + ".", "stop words"),
    ("the and " + "x" * 2000 + " " + "of to. " * 30, "letters a word"),
])  # fmt: skip
def test_each_rule_finds_its_fault(text, rule):
    assert rule in failed(text)


def test_the_limits_are_inclusive_and_can_be_chosen():
    text = " ".join(["the", "and"] * 25)
    assert "words" not in failed(text) and "words" in failed(text, {"words": (51, 60)})
    assert failed(text, {}) == []


def test_repeated_share_counts_characters_of_overlapping_runs_once():
    assert repeated_share(["a", "b", "c", "a", "b", "c"], 3) == 1
    assert repeated_share(["a", "b", "c", "x", "a", "b", "c"], 3) == pytest.approx(6 / 7)
    assert repeated_share(["a", "b", "c"], 3) == repeated_share([], 3) == 0


# Duplicates


def test_a_fingerprint_ignores_case_spacing_and_punctuation_and_nothing_else():
    assert fingerprint("The  cat, sat.") == fingerprint("the cat\nSAT")
    assert len({fingerprint(text) for text in ("the cat", "thecat", "cat the", "the cats", "")}) == 5


@given(st.lists(WORDS, min_size=1, max_size=8), st.integers(1, 4))
def test_shingles_are_the_runs_of_each_text_and_never_reach_into_the_next(texts, k):
    h, starts = shingle_hashes(texts, k)
    assert h.dtype == np.uint32 and starts[0] == 0 and starts[-1] == len(h)
    seen = {}
    for text, first, last in zip(texts, starts[:-1], starts[1:], strict=True):
        assert last - first == len(runs(text, k))
        for run, value in zip(runs(text, k), h[first:last], strict=True):
            assert seen.setdefault(run, value) == value
    assert len(set(seen.values())) == len(seen)  # 32 bits: a collision among a few hundred runs has a chance of 1e-5


def test_stirring_is_one_to_one():
    h = np.random.default_rng(0).integers(0, 1 << 32, 100_000, dtype=np.uint32)
    assert len(np.unique(stirred(h))) == len(np.unique(h))
    assert stirred(np.array([0], dtype=np.uint32))[0] == 0


@given(st.lists(WORDS, min_size=1, max_size=6))
def test_signatures_are_minima_over_the_orders(texts):
    h, starts = shingle_hashes(texts, 3)
    a, b = orders(7, seed=3)
    want = [[int((stirred(h[i:j]) * x + y).min()) for x, y in zip(a, b, strict=True)] for i, j in pairwise(starts)]
    assert minhash(texts, 7, k=3, seed=3).tolist() == want


def test_signatures_do_not_depend_on_the_company():
    texts = [story.text for story in stories("validation")[:600]]
    together = minhash(texts, 16)
    for i in (0, 255, 256, 599):
        assert (minhash([texts[i]], 16)[0] == together[i]).all()
    assert minhash([], 16).shape == (0, 16)


@settings(deadline=None)
@given(st.integers(0, 1000), st.sampled_from([(1, 6), (2, 3), (3, 2), (6, 1)]))
def test_candidates_are_the_pairs_with_an_equal_band(seed, shape):
    bands, rows = shape
    signatures = np.random.default_rng(seed).integers(0, 3, (20, 6), dtype=np.uint32)
    cut = signatures.reshape(20, bands, rows)
    want = [[i, j] for i in range(20) for j in range(i + 1, 20) if (cut[i] == cut[j]).all(1).any()]
    assert candidate_pairs(signatures, bands).tolist() == want


@pytest.mark.parametrize("bands", [5, 7, 12, 0, -2])
def test_bands_must_divide_the_signature(bands):
    with pytest.raises(ValueError, match="cannot be cut"):
        candidate_pairs(np.zeros((3, 6), dtype=np.uint32), bands)


def test_clusters_follow_chains():
    labels = clusters(6, [(0, 1), (1, 2), (4, 5)])
    assert labels[0] == labels[1] == labels[2] and labels[4] == labels[5] and len(set(labels)) == 3
    assert len(set(clusters(4, []))) == 4


@given(st.lists(st.integers(0, 8), min_size=1, max_size=60), st.floats(0.05, 0.95), st.integers(0, 9))
def test_no_cluster_is_split(labels, share, seed):
    labels = np.array(labels)
    if min(np.unique(labels, return_counts=True)[1]) > int(share * len(labels)):
        with pytest.raises(ValueError, match="no cluster fits"):
            split_by_cluster(labels, share, seed)
        return
    val = split_by_cluster(labels, share, seed)
    assert 0 < val.sum() <= share * len(labels)
    assert not set(labels[val]) & set(labels[~val])


@pytest.mark.parametrize("share", [0, 1, -0.1, 2])
def test_a_share_lies_between_0_and_1(share):
    with pytest.raises(ValueError, match="between 0 and 1"):
        split_by_cluster([0, 1, 2], share)


def test_one_large_cluster_does_not_end_the_draw():
    labels = np.array([0] * 20 + list(range(1, 81)))
    assert {int(split_by_cluster(labels, 0.1, seed).sum()) for seed in range(60)} == {10}


def test_verified_keeps_the_pairs_that_are_alike():
    signatures = np.array([[1, 2, 3, 4], [1, 2, 3, 9], [1, 8, 8, 8]], dtype=np.uint32)
    assert verified(signatures, [(0, 1), (0, 2), (1, 2)], 0.6).tolist() == [[0, 1]]
    assert verified(signatures, np.empty((0, 2)), 0.6).shape == (0, 2)


def test_too_many_equal_texts_are_refused():
    with pytest.raises(ValueError, match="remove exact copies first"):
        candidate_pairs(np.zeros((50, 4), dtype=np.uint32), 2, limit=1000)


@pytest.mark.parametrize(("texts", "k"), [("abc", 5), (["a b"], 0)])
def test_minhash_takes_a_list_and_runs_of_a_word_or_more(texts, k):
    with pytest.raises(ValueError, match="takes a list of texts"):
        minhash(texts, k=k)


# Shards and rows

DOCUMENTS = st.lists(st.lists(st.integers(0, 255), max_size=20), min_size=1, max_size=20)


@given(DOCUMENTS)
def test_a_shard_gives_its_documents_back(documents):
    shard = to_shard(documents, EOT)
    assert shard.dtype == np.uint16
    assert [found.tolist() for found in documents_of(shard, EOT)] == documents


@pytest.mark.parametrize(("documents", "message"), [
    ([[1, 70_000]], "65,535"), ([[-1]], "65,535"), ([[1, EOT, 2]], "marks the end"), ([], "at least one"),
])  # fmt: skip
def test_a_shard_refuses_ids_that_do_not_fit(documents, message):
    with pytest.raises(ValueError, match=message):
        to_shard(documents, EOT)


@pytest.mark.parametrize(("document", "message"), [
    ([70_000], "65,535"), ([-1], "65,535"), ([EOT, 5], "marks the end"), ([1.7], "whole numbers"),
])  # fmt: skip
def test_rows_refuse_what_a_shard_refuses(document, message):
    for make in (lambda: pack([document], 8, EOT), lambda: to_shard([document], EOT)):
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize("shard", [[1, 2, EOT, 3], []])
def test_a_shard_that_is_cut_off_is_refused(shard):
    with pytest.raises(ValueError, match="does not end in the end mark"):
        documents_of(np.array(shard, dtype=np.uint16), EOT)


@given(st.lists(st.integers(1, 30), max_size=50))
def test_best_fit_places_every_item_once_and_never_too_much(lengths):
    rows = best_fit(lengths, 30)
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    assert all(sum(lengths[item] for item in row) <= 30 for row in rows)
    assert len(rows) <= 11 / 9 * max(1, -(-sum(lengths) // 30)) + 1 + sum(length > 10 for length in lengths)


def test_best_fit_fills_the_fullest_row():
    assert best_fit([6, 5, 4, 3], 10) == [[0, 2], [1, 3]]
    for lengths in ([11], [0], [-1]):
        with pytest.raises(ValueError, match="from 1 to 10"):
            best_fit(lengths, 10)


@given(DOCUMENTS, st.integers(1, 25))
def test_packed_rows_hold_every_document(documents, size):
    ids, numbers = pack(documents, size, EOT)
    assert ids.dtype == np.uint16 and ids.shape == numbers.shape and ids.shape[1] == size
    assert (ids[numbers < 0] == EOT).all()
    for number, document in enumerate(documents):
        found = sorted(ids[numbers == number].tolist())
        assert found == sorted([*document, EOT])
        if len(document) < size:  # whole, in one row and in order
            row = np.flatnonzero((numbers == number).any(1))
            assert len(row) == 1 and ids[row[0], numbers[row[0]] == number].tolist() == [*document, EOT]


def test_packed_with_the_mask_is_each_document_alone():
    generator = torch.Generator().manual_seed(0)
    _, numbers = pack([[1] * 5, [2] * 9, [3] * 2, [4] * 6], 16, EOT)
    attn = MultiHeadAttention(8, n_head=2).double()
    x = torch.randn(*numbers.shape, 8, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        packed = attn(x, mask=torch.from_numpy(document_mask(numbers))[:, None])
        for number in range(4):
            row = int(np.flatnonzero((numbers == number).any(1))[0])
            place = np.flatnonzero(numbers[row] == number)
            alone = attn(x[row : row + 1, place])
            torch.testing.assert_close(packed[row, place], alone[0], atol=1e-12, rtol=0)
