"""`scientist.ngram` against definitions in exact fractions, brute force and nltk; every distribution sums to 1."""

import tomllib
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.lm import KneserNeyInterpolated

from llmscratch.kit import stories
from llmscratch.kit.paths import data_file
from llmscratch.kit.templates import read_world
from llmscratch.scientist.ngram import (
    TOKEN,
    AddK,
    Counts,
    Interpolated,
    KneserNey,
    NGram,
    Words,
    distribution,
    sample,
    to_bytes,
)  # fmt: skip

V = 3
documents = st.lists(st.lists(st.integers(0, V - 1), max_size=12), min_size=1, max_size=5)
histories = st.lists(st.integers(0, V - 1), max_size=6)


def marked(docs):
    return [[V, *d, V] for d in docs]


def occurrences(docs, n):
    """n-grams that end in a predicted symbol, as tuples."""
    return Counter(tuple(m[i - n + 1 : i + 1]) for m in marked(docs) for i in range(max(n - 1, 1), len(m)))


def continuations(docs, n):
    """n-gram → different symbols before it; how often it occurs when it begins a document."""
    longer = occurrences(docs, n + 1)
    before = Counter(gram[1:] for gram in longer)
    return Counter({g: c if n > 1 and g[0] == V else before[g] for g, c in occurrences(docs, n).items()})


def exact(method, docs, order, history, settings_):
    """The distribution after a history from the definition, in fractions; settings_: k, weights or discounts."""
    context = tuple([V, *history][-(order - 1) :]) if order > 1 else ()
    base = [Fraction(1, V + 1)] * (V + 1)
    p = base
    for j in range(len(context) + 1):
        h = context[len(context) - j :]
        counted = occurrences(docs, j + 1) if method != "kn" or j == order - 1 else continuations(docs, j + 1)
        n = [counted[(*h, w)] for w in range(V + 1)]
        total, types = sum(n), sum(c > 0 for c in n)
        if method == "add":
            k = settings_
            p = [(c + k) / (total + k * (V + 1)) for c in n]
        elif total and method == "mix":
            p = [settings_[j] * Fraction(c, total) + (1 - settings_[j]) * q for c, q in zip(n, p, strict=True)]
        elif total:
            D = settings_[j]
            p = [(max(c - D, 0) + D * types * q) / total for c, q in zip(n, p, strict=True)]
    return p


MODELS = {
    "add": (Fraction(1, 3), lambda counts, order, k: AddK(counts, order, k=float(k))),
    "mix": ([Fraction(1, 2), Fraction(2, 3), Fraction(1, 5), Fraction(9, 10)],
            lambda counts, order, w: Interpolated(counts, order, weights=[float(x) for x in w[:order]])),
    "kn": ([Fraction(1, 4), Fraction(3, 4), Fraction(2, 5), Fraction(7, 10)],
           lambda counts, order, D: KneserNey(counts, order, discounts=[float(x) for x in D[:order]])),
}  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(documents, histories, st.integers(1, 4))
def test_every_method_is_its_definition_and_sums_to_one(docs, history, order):
    counts = Counts(docs, 4, V)
    for method, (numbers, make) in MODELS.items():
        wanted = exact(method, docs, order, history, numbers)
        assert sum(wanted) == 1
        got = distribution(make(counts, order, numbers), history)
        np.testing.assert_allclose(got, np.array(wanted, float), atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(documents, documents, st.integers(1, 4))
def test_log_prob_is_the_distribution_of_every_place(docs, new, order):
    counts = Counts(docs, 4, V)
    for numbers, make in MODELS.values():
        model = make(counts, order, numbers)
        one_by_one = [np.log(distribution(model, d[:i])[w]) for d in new for i, w in enumerate([*d, V])]
        np.testing.assert_allclose(model.log_prob(new), one_by_one, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(documents)
def test_counts_are_those_of_a_dictionary(docs):
    counts = Counts(docs, 5, V)
    names = [()]
    for m in range(1, 6):
        names = [(*names[key // (V + 1)], int(key % (V + 1))) for key in counts.keys[m - 1]]
        found = occurrences(docs, m)
        assert dict(zip(names, counts.raw[m - 1].tolist(), strict=True)) == dict(found)
        if m < 5:
            assert dict(zip(names, counts.cont[m - 1].tolist(), strict=True)) == dict(continuations(docs, m))


@settings(max_examples=25, deadline=None)
@given(documents)
def test_kneser_ney_gives_back_the_frequencies(docs):
    """Averaged over the counted contexts, a bigram model has the frequencies of the text, exactly."""
    contexts, symbols = Counter(), occurrences(docs, 1)
    for m in marked(docs):
        contexts.update(m[:-1])
    for w in range(V + 1):
        total = Fraction(0)
        for h, count in contexts.items():
            p = exact("kn", docs, 2, [] if h == V else [h], [Fraction(0), Fraction(3, 4)])
            total += count * p[w]
        assert total == symbols[(w,)]


def test_kneser_ney_is_that_of_nltk():
    texts = [TOKEN.findall(story.text) for story in stories("train", plots=("key",))[:4]]
    names = sorted({w for text in texts for w in text})
    docs = [[names.index(w) for w in text] for text in texts]
    end = [[*names, "END"][i] for i in range(len(names) + 1)]
    grams = [[tuple(end[w] for w in m[i - n : i + 1]) for i in range(1, len(m)) for n in range(min(3, i + 1))]
             for m in ([len(names), *d, len(names)] for d in docs)]  # fmt: skip
    theirs = KneserNeyInterpolated(3, discount=0.6)
    theirs.fit(grams, vocabulary_text=end)
    ours = KneserNey(Counts(docs, 3, len(names)), discounts=[0, 0.6, 0.6])
    for history in (docs[0][:2], docs[1][7:9], [docs[0][5], docs[3][1]]):
        p = distribution(ours, history)
        for w in range(0, len(end), 7):
            assert p[w] == pytest.approx(theirs.unmasked_score(end[w], tuple(end[h] for h in history)), rel=1e-10)


def test_em_never_steps_back_and_finds_a_planted_mixture():
    rng = np.random.default_rng(0)
    docs, held = ([rng.integers(0, V, 30) for _ in range(n)] for n in (8, 200))
    model = Interpolated(Counts(docs, 4, V))
    bits = model.tune(held, steps=40)
    assert (np.diff(bits) <= 1e-12).all()
    assert model.weights[3] < 0.1  # the symbols are independent: long contexts are worth nothing
    np.testing.assert_allclose(-model.log_prob(held).mean() / np.log(2), bits[-1], atol=1e-3)
    start = Interpolated(Counts(docs, 4, V))
    long = start.tune(held, steps=1000, enough=0.01)
    assert 2 <= len(long) < 40 and long[-2] - long[-1] < 0.01  # ends early, when a step gains less than that


@pytest.mark.parametrize("history", [[], [0], [2, 2], [2, 2, 2, 2]])
def test_the_caller_owns_the_distribution(history):
    base = np.full(V + 1, 1 / (V + 1))
    for make in (AddK, Interpolated, KneserNey):
        model = make(Counts([[0, 1, 2], [0, 0, 1]], 3, V), base=base)
        before = model.log_prob([[2, 2]])
        p = distribution(model, history)
        p[:] = 0
        np.testing.assert_array_equal(model.log_prob([[2, 2]]), before)
    base[:] = 0
    np.testing.assert_array_equal(model.log_prob([[2, 2]]), before)


def test_the_corner_leaves_out_the_choice_of_three_plots_among_thirty_six():
    """Story.bits pays log2(36) for the plot; within three equally likely ones log2(36 / 3) is too much."""
    with open(data_file("world.toml"), "rb") as file:
        _, plots = read_world(tomllib.load(file))
    assert len(plots) == 36 and len({plot.weight for plot in plots.values()}) == 1


def test_samples_follow_the_distribution_and_end():
    model = KneserNey(Counts([[0, 1, 2], [0, 0, 1], [2]], 3, V))
    rng = np.random.default_rng(0)
    first = Counter((sample(model, rng, limit=1) or [V])[0] for _ in range(4000))
    p = distribution(model)
    assert all(abs(first[w] / 4000 - p[w]) < 0.04 for w in range(V + 1))  # five standard errors
    assert len(sample(model, rng, limit=7)) <= 7


def test_words_are_loss_free_and_an_unknown_word_is_spelt():
    texts = ["The cat sat. The dog sat.", "A bird, a cat!"]
    words = Words(texts)
    odd = 'Zoë said:\n "The cat…"  ok\t'
    assert "".join(TOKEN.findall(odd)) == odd
    assert words.base.sum() == pytest.approx(1) and (words.base > 0).all()
    model = KneserNey(Counts([words.encode(t) for t in texts], 3, words.V), base=words.base)
    tokens = TOKEN.findall(odd)
    assert (words.encode(odd) == words.V - 1).sum() == len([t for t in tokens if t not in words.known]) > 3
    # A word of its own in the vocabulary would have had the base probability of its spelling.
    alone = model.log_prob([words.encode(" owl")])[0] / np.log(2) - words.spelling_bits([" owl"])
    left = distribution(model)[words.V - 1] / words.base[words.V - 1]
    spelt = words.spelling.log_prob([to_bytes(" owl")]).sum() / np.log(2)
    assert alone == pytest.approx(np.log2(left) + spelt + np.log2(1 - words.base[-1]))
    assert words.spelling_bits(texts) == 0
    assert [words.decode(words.encode(text)) for text in texts] == texts
    assert words.decode(words.encode("The cow sat.")) == "The<unk> sat." and words.decode([]) == ""


def test_any_bytes_have_a_probability():
    model = KneserNey(Counts([to_bytes("aaaa"), to_bytes("aa")], 3, 256))
    logp = model.log_prob([to_bytes("€ Zoë\x00"), to_bytes("")])
    assert len(logp) == 9 + 2 and np.isfinite(logp).all()
    assert model.bits_per_byte([to_bytes("aaaa")], 4) < 8


@pytest.mark.parametrize(
    "attempt, message",
    [
        (lambda: Counts([], 2, 3), "at least one document"),
        (lambda: Counts([[0, 3]], 2, 3), "whole numbers from 0 to 2"),
        (lambda: Counts([[0.5]], 2, 3), "whole numbers from 0 to 2"),
        (lambda: Counts([[0]], 0, 3), "order must be at least 1"),
        (lambda: Counts([[0]], 2, 2**62), "V from 1"),
        (lambda: Counts([0, 1], 2, 3), r"for one document write \[document\]"),
        (lambda: KneserNey(Counts([[0]], 2, 3)).log_prob(np.array([0, 1])), r"write \[document\]"),
        (lambda: Counts([[[0, 1]]], 2, 3), "list of 1-D arrays"),
        (lambda: AddK(Counts([[0]], 2, 3), k=np.nan), "k must be above 0"),
        (lambda: KneserNey(Counts([[0]], 2, 3), discounts=[np.nan, 0]), "from 0 to under 1"),
        (lambda: KneserNey(Counts([[0]], 2, 3), base=[np.nan] * 4), "4 probabilities above 0"),
        (lambda: Words("The cat"), r"write \[text\]"),
        (lambda: Words(["The cat"]).spelling_bits("dog"), r"write \[text\]"),
        (lambda: Words(["The cat"]).decode([3]), "whole numbers from 0 to 2"),
        (lambda: distribution(KneserNey(Counts([[0]], 2, 3)), [1.9]), "whole numbers from 0 to 2"),
        (lambda: distribution(KneserNey(Counts([[0]], 2, 3)), "12"), "whole numbers from 0 to 2"),
        (lambda: KneserNey(Counts([[0]], 2, 3), 3), "from 1 to 2"),
        (lambda: AddK(Counts([[0]], 2, 3), k=0), "k must be above 0"),
        (lambda: Interpolated(Counts([[0]], 2, 3), weights=[0.5, 1]), "from 0 to under 1"),
        (lambda: Interpolated(Counts([[0]], 2, 3), weights=[0.5]), "2 numbers"),
        (lambda: KneserNey(Counts([[0]], 2, 3), discounts=[2, 0]), "from 0 to under 1"),
        (lambda: KneserNey(Counts([[0]], 2, 3), base=[0.5, 0.5, 0, 0]), "4 probabilities above 0"),
        (lambda: distribution(KneserNey(Counts([[0]], 2, 3)), [3]), "whole numbers from 0 to 2"),
    ],
)
def test_errors_say_what_is_right(attempt, message):
    with pytest.raises(ValueError, match=message):
        attempt()


def test_a_model_without_smoothing_is_refused():
    with pytest.raises(NotImplementedError, match="AddK, Interpolated or KneserNey"):
        NGram(Counts([[0]], 1, 3)).log_prob([[0]])
