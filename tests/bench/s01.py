"""What 4S 01 claims: how fast n-grams are counted and scored, and how few bits a byte the best table needs."""

import lzma
import time

import numpy as np
from nltk.lm import KneserNeyInterpolated

from llmscratch.kit import Race, race, stories
from llmscratch.scientist.ngram import Counts, KneserNey, Words, to_bytes
from tests.bench import against, row
from tests.bench.lessons import source

PLOTS = ("key", "lost", "share")
NOTEBOOK = "02_for_scientist/01_language_models_from_counts"


def texts(split: str) -> list[str]:
    return [story.text for story in stories(split, plots=PLOTS)]


def megabytes_per_second(call, n_bytes: int, repeats: int = 5) -> list[float]:
    """Speeds of call(), after one call that warms up."""
    speeds = []
    call()
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        speeds.append(n_bytes / 1e6 / (time.perf_counter() - start))
    return speeds


@row(
    "4S01: counting, MB of text a second and order (characters, up to 6-grams); theirs: the goal",
    at_least=1,
    unit="MB/s",
)
def counting_speed() -> Race:
    docs = [to_bytes(text) for text in texts("train")]
    speeds = megabytes_per_second(lambda: Counts(docs, 6, 256), 6 * sum(map(len, docs)))
    return against(speeds, [1.0] * len(speeds))


@row(
    "4S01: scoring held-out stories, MB a second and order (characters, 6-grams); theirs: the goal",
    at_least=1,
    unit="MB/s",
)
def scoring_speed() -> Race:
    model = KneserNey(Counts([to_bytes(text) for text in texts("train")], 6, 256))
    docs = [to_bytes(text) for text in texts("validation")]
    speeds = megabytes_per_second(lambda: model.log_prob(docs), 6 * sum(map(len, docs)))
    return against(speeds, [1.0] * len(speeds))


def beside_nltk() -> tuple:
    """The first 100 stories as ids, their V, and the lesson's maker of nltk's model."""
    train = texts("train")[:100]
    words = Words(train)
    space = {"KneserNeyInterpolated": KneserNeyInterpolated, "END": "■"}

    space["np"], space["as_strings"] = np, np.array([*words.known, "<unk>", "■"])
    exec(source(NOTEBOOK, "nltk_model"), space)
    return [words.encode(text) for text in train], words.V, space


@row("4S01: counting word trigrams of 100 stories; theirs: nltk", at_most=1 / 10)
def counting_beside_nltk() -> Race:
    docs, V, space = beside_nltk()
    return race("counting", lambda: Counts(docs, 3, V), lambda: space["nltk_model"](docs, 3, 0.75), repeats=5)


@row(
    "4S01: the probabilities of 20 words, trigrams of 100 stories; theirs: nltk's KneserNeyInterpolated", at_most=1 / 50
)
def scoring_beside_nltk() -> Race:
    docs, V, space = beside_nltk()
    ours, theirs, name = KneserNey(Counts(docs, 3, V)), space["nltk_model"](docs, 3, 0.75), space["as_strings"]
    story = docs[0]
    return race(
        "scoring",
        lambda: ours.log_prob([story[:20]]),
        lambda: [theirs.unmasked_score(name[story[i]], tuple(name[story[i - 2 : i]])) for i in range(2, 22)],
        repeats=5,
    )


@row(
    "4S01: held-out bits per byte, word 8-grams; theirs: xz after reading the same stories",
    at_most=0.5,
    unit="bits/byte",
)
def bits_beside_xz() -> Race:

    train, val = texts("train"), texts("validation")
    words, n_bytes = Words(train), sum(len(text.encode()) for text in val)
    model = KneserNey(Counts([words.encode(text) for text in train], 8, words.V), base=words.base)
    ours = model.bits_per_byte([words.encode(text) for text in val], n_bytes) + words.spelling_bits(val) / n_bytes
    sizes = [
        len(lzma.compress("\n".join(part).encode(), preset=9 | lzma.PRESET_EXTREME)) for part in (train, train + val)
    ]
    theirs = 8 * (sizes[1] - sizes[0]) / n_bytes
    return against([ours] * 2, [theirs] * 2)
