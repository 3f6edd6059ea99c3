"""What 4S 02 claims: training and encoding against the goals, and beside the plain way, tokenizers and tiktoken."""

import functools
import os
import time
from collections import Counter

import tiktoken

from llmscratch.kit import Race, race, shakespeare, tiktoken_file
from llmscratch.scientist.tokenizer import BYTES, GPT4_PATTERN, Tokenizer, learn_bpe, split_text
from tests.bench import against, row
from tests.bench.lessons import source

NOTEBOOK = "02_for_scientist/02_tokenization"


@functools.cache
def megabyte() -> str:
    return "\n".join(shakespeare().values())[:1_000_000]


@functools.cache
def lesson() -> dict:
    """The lesson's plain loop, and its way to train the tokenizers library."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers import Regex, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Theirs

    space = {"Counter": Counter, "BYTES": BYTES, "GPT4_PATTERN": GPT4_PATTERN, "Regex": Regex, "Theirs": Theirs,
             "models": models, "pre_tokenizers": pre_tokenizers, "trainers": trainers}  # fmt: skip
    exec(source(NOTEBOOK, "count_pairs", "replace_pair", "plain_bpe", "library"), space)
    return space


def seconds(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def learn(text: str, n_tokens: int):
    return learn_bpe({piece.encode(): n for piece, n in Counter(split_text(text)).items()}, n_tokens)


@functools.cache
def bard() -> Tokenizer:
    return Tokenizer.train([megabyte()], 4096)


@row("4S02: training, 1 MB of Shakespeare to 4,096 tokens; theirs: the goal", at_most=1)
def training() -> Race:
    return against([seconds(lambda: learn(megabyte(), 4096)) for _ in range(5)], [15.0] * 5)


@row("4S02: training, 50 KB to 512 tokens; theirs: the plain way", at_most=1 / 30)
def beside_plain() -> Race:
    text = megabyte()[:50_000]
    ours = [min(seconds(lambda: learn(text, 512)) for _ in range(3)) for _ in range(2)]
    return against(ours, [seconds(lambda: lesson()["plain_bpe"](split_text(text), 512)) for _ in range(2)])


@row("4S02: training, 1 MB to 4,096 tokens; theirs: tokenizers (Rust), one thread", at_most=5)
def training_beside_tokenizers() -> Race:
    return race("training", lambda: learn(megabyte(), 4096), lambda: lesson()["library"](megabyte(), 4096), repeats=5)


@row("4S02: encoding 1 MB whose words repeat; theirs: the goal, 1 MB/s", at_most=1)
def encoding() -> Race:
    bard().encode_ordinary(megabyte())
    return against([seconds(lambda: bard().encode_ordinary(megabyte())) for _ in range(7)], [1.0] * 7)


@row("4S02: the same with an empty cache; theirs: the goal, 1 MB/s", at_most=1)
def encoding_cold() -> Race:
    return against([seconds(lambda: Tokenizer(bard().ranks).encode_ordinary(megabyte())) for _ in range(5)], [1.0] * 5)


@row("4S02: encoding 1 MB, cl100k_base; theirs: tiktoken", at_most=6)
def beside_tiktoken() -> Race:
    os.environ["TIKTOKEN_CACHE_DIR"] = str(tiktoken_file().parent)
    ours, theirs = Tokenizer.load(tiktoken_file()), tiktoken.get_encoding("cl100k_base")
    return race("encoding", lambda: ours.encode_ordinary(megabyte()), lambda: theirs.encode_ordinary(megabyte()))


@row("4S02: encoding 1 MB, 4,096 tokens; theirs: tokenizers, one thread", at_most=1)
def beside_tokenizers() -> Race:
    theirs = lesson()["library"](megabyte(), 4096)
    text = megabyte()
    return race("encoding", lambda: bard().encode_ordinary(text), lambda: theirs.encode_batch_fast([text]), repeats=5)
