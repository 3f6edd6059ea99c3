"""`scientist.tokenizer` beside tiktoken and the tokenizers library; round trips; files; the shipped vocabulary."""

import hashlib
import random
import re
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import tiktoken.load
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Library

from llmscratch.kit import asset_file, shakespeare, stories, tiktoken_file
from llmscratch.scientist import tokenizer as module
from llmscratch.scientist.tokenizer import (
    BYTES,
    GPT4_PATTERN,
    Tokenizer,
    Vocabulary,
    learn_bpe,
    merge_piece,
    split_text,
    storyteller,
)  # fmt: skip

SPECIALS = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"]
# The same language in Oniguruma, where {1,3}+ is a repeated {1,3} and $ the end of any line.
ONIGURUMA = GPT4_PATTERN.replace("{1,3}+", "{1,3}").replace("++$", r"+\z")


@pytest.fixture(scope="module")
def play() -> str:
    return shakespeare()["hamlet"]


@pytest.fixture(scope="module")
def bard(play) -> Tokenizer:
    return Tokenizer.train([play], 1500, specials=SPECIALS)


@pytest.fixture(scope="module")
def openai() -> dict[str, tuple]:
    """Both vocabularies of OpenAI, ours beside tiktoken's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(tiktoken_file().parent))
        theirs = {name: tiktoken.get_encoding(name) for name in ("cl100k_base", "o200k_base")}
    return {
        name: (Tokenizer.load(tiktoken_file(name), t._special_tokens, pattern=t._pat_str), t)
        for name, t in theirs.items()
    }


def in_tiktoken(ours: Tokenizer) -> tiktoken.Encoding:
    return tiktoken.Encoding("x", pat_str=ours.pattern, mergeable_ranks=ours.ranks, special_tokens=ours.specials)


def plain_bpe(words, n_tokens):
    """The textbook loop over ids; a pair whose bytes are a token already gets that token's id."""
    tokens = [bytes([b]) for b in BYTES]
    parts = [([BYTES.index(b) for b in word], n) for word, n in words.items()]
    while len(tokens) < n_tokens:
        counts = Counter()
        for part, n in parts:
            for pair in zip(part, part[1:], strict=False):
                counts[pair] += n
        a, b = min(counts, key=lambda pair: (-counts[pair], pair))
        token = tokens[a] + tokens[b]
        if token not in tokens:
            tokens.append(token)
        new = tokens.index(token)
        for part, _ in parts:
            i = 0
            while i < len(part) - 1:
                if (part[i], part[i + 1]) == (a, b):
                    part[i : i + 2] = [new]
                i += 1
    return tokens


def plain_merge(piece, ranks):
    parts = [bytes([b]) for b in piece]
    while pairs := [
        (ranks[a + b], i) for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False)) if a + b in ranks
    ]:
        i = min(pairs)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [ranks[part] for part in parts]


def in_library(texts, n_tokens, **options) -> Library:
    theirs = Library(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(ONIGURUMA), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=n_tokens, initial_alphabet=alphabet, show_progress=False, **options)
    theirs.train_from_iterator(texts, trainer)
    return theirs


def tokens_of(theirs: Library) -> list[bytes]:
    signs = {chr(b): b for b in BYTES[:188]} | {chr(256 + i): b for i, b in enumerate(BYTES[188:])}
    vocab = theirs.get_vocab()
    return [bytes(signs[sign] for sign in token) for token in sorted(vocab, key=vocab.get)]


# Training

few_letters = st.lists(st.text("abc", min_size=1, max_size=12), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(few_letters, st.integers(0, 25))
@example(["abababbaab" * 30], 12)
@example(["aaaaaaaa", "aaaa", "aaa"], 5)
def test_the_incremental_way_learns_what_the_plain_way_learns(texts, merges):
    words = {word.encode(): n for word, n in Counter(texts).items()}
    while True:
        try:
            ours = learn_bpe(words, 256 + merges)
            break
        except ValueError as error:  # too few pairs: take what there are
            merges = int(re.search(r"give (\d+)", str(error))[1]) - 256
    assert ours == plain_bpe(words, 256 + merges)
    assert len(set(ours)) == 256 + merges


@pytest.mark.parametrize("seed", range(6))
def test_random_texts_with_many_ties_give_the_merges_of_the_tokenizers_library(seed):
    draw = random.Random(seed)
    letters = ["ab ", "abcdef  ", "aé猫 \n", "01234 a,.!", "abcdefghijklmnopqrstuvwxyz     ", "aaab  "][seed]
    texts = ["".join(draw.choice(letters) for _ in range(400)) for _ in range(40)]
    n = 256 + [8, 150, 150, 150, 300, 20][seed]
    assert learn_bpe({w.encode(): k for w, k in Counter(p for t in texts for p in split_text(t)).items()}, n) == (
        tokens_of(in_library(texts, n))
    )


def test_a_play_and_stories_give_the_merges_and_ids_of_the_tokenizers_library(play):
    texts = [play, *(story.text for story in stories("validation")[:300]), *["if x:\n    return\n    ", "ab\n  "] * 99]
    ours, theirs = Tokenizer.train(texts, 2000), in_library(texts, 2000)
    assert list(ours.ranks) == tokens_of(theirs)
    for text in texts:
        assert ours.encode_ordinary(text) == theirs.encode(text).ids


def test_training_neither_hangs_on_the_order_of_the_texts_nor_on_the_number_asked_for(play):
    lines = play.splitlines(keepends=True)[:800]
    ours = Tokenizer.train(lines, 600)
    assert Tokenizer.train(lines[::-1], 600).ranks == ours.ranks
    assert list(Tokenizer.train(lines, 400).ranks) == list(ours.ranks)[:400]


def test_training_refuses_what_cannot_be():
    for n in (0, 255, 300):
        with pytest.raises(ValueError, match=rf"asked for {n} tokens; 256 are the fewest, and these words give 25\d"):
            Tokenizer.train(["abc"], n)
    assert Tokenizer.train([], 256).n_vocab == 256
    with pytest.raises(ValueError, match="asked for 255 tokens"):
        Tokenizer.train(["abc"], 256, specials=["<|end|>"])
    for n in (256, 300):
        with pytest.raises(ValueError, match=r"expected a list of texts \(\[text\] for a single one\)"):
            Tokenizer.train("one string would be read letter by letter", n)
    with pytest.raises(ValueError, match="each special token once"):
        Tokenizer.train(["abc"], 258, specials=["<a>", "<a>"])


# Encoding


def test_the_pattern_is_that_of_cl100k_base(openai):
    assert openai["cl100k_base"][1]._pat_str == GPT4_PATTERN


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 3))
def test_the_queue_merges_like_the_plain_way(piece, seed):
    draw = random.Random(seed)
    letters = [bytes([draw.choice(b"ab")]) for _ in range(200)]
    tokens = list(
        dict.fromkeys(
            [bytes([b]) for b in range(256)] + [b"".join(letters[i : i + draw.randint(2, 6)]) for i in range(190)]
        )
    )
    draw.shuffle(tokens)  # ranks of any kind, also such as no training gives
    ranks = {token: i for i, token in enumerate(tokens)}
    piece = bytes(b"ab"[b % 2] for b in piece)
    if piece and piece not in ranks:
        assert merge_piece(piece, ranks) == plain_merge(piece, ranks)


# Assigned characters only: a package with a younger Unicode takes some for letters, another one not yet.
assigned = st.characters(exclude_categories=["Cs", "Cn"])
nasty = st.lists(
    st.one_of(
        st.text(assigned, max_size=8),
        st.sampled_from(list(" \t\n\r\x0b\x0c\x1c\x85\xa0\u2028\u3000'")),
        st.sampled_from(["'s", "'LL", "'ſ", "\r\n", "  ", "123", "é", "猫", "🙂", "\u200d"]),
    ),
    max_size=20,
).map("".join)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(nasty)
@example("<|endoftext|> and <|end|>")
@example("\ud800 \udc80 \ud83d\ude42")
def test_ids_are_those_of_tiktoken(openai, bard, text):
    for ours, theirs in (*openai.values(), (bard, in_tiktoken(bard))):
        assert ours.encode_ordinary(text) == theirs.encode_ordinary(text)
        if not any(0xD800 <= ord(sign) < 0xE000 for sign in text):
            assert ours.decode(ours.encode_ordinary(text)) == text


def test_every_character_gives_the_ids_of_tiktoken(openai):
    some = (chr(c) for c in range(0x110000) if c < 0x20000 or c % 61 == 0)
    points = [c for c in some if unicodedata.category(c) not in ("Cn", "Cs")]
    for (ours, theirs), step in zip(openai.values(), (256, 1024), strict=True):
        for i in range(0, len(points), step):
            text = "".join(f"a{c}1{c} {c} '{c}" for c in points[i : i + step])
            assert ours.encode_ordinary(text) == theirs.encode_ordinary(text), hex(ord(points[i]))


def test_long_texts_give_the_ids_of_tiktoken(openai, bard, play):
    for text in (play, "a" * 30_000, " " * 5_000 + "x", "0" * 5_000, "猫" * 3_000, "ab" * 20_000):
        for ours, theirs in (*openai.values(), (bard, in_tiktoken(bard))):
            assert ours.encode_ordinary(text) == theirs.encode_ordinary(text)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
@example(bytes(range(256)))
@example(b"\xed\xb2\x80 \xed\xa0\x80 \xf4\x90\x80\x80")
def test_any_bytes_come_back(bard, data):
    ids = bard.encode_bytes(data)
    assert bard.decode_bytes(ids) == data
    try:
        assert ids == bard.encode_ordinary(data.decode())
    except UnicodeDecodeError:
        assert bard.decode(ids) == data.decode("utf-8", "replace")


def test_the_cache_changes_nothing_and_stays_bounded(bard):
    letters = "abcdefghijklmnopqrst"
    text = (
        " ".join(a + b + c + d for a in letters for b in letters for c in letters for d in letters[:9])
        + " "
        + "z" * 1000
    )
    ours = Tokenizer(bard.ranks)
    first = ours.encode_ordinary(text)
    assert len(split_text(text)) > 2**16 >= len(ours._cache) and max(map(len, ours._cache)) <= 64
    uncached = [i for part in split_text(text) for i in merge_piece(part.encode(), bard.ranks)]
    assert ours.encode_ordinary(text) == first == uncached
    ours.encode_ordinary("To be, or not to be")
    assert {"To", " be", ",", " or", " not", " to"} <= set(ours._cache)  # the rare pieces do not keep them out
    ours.encode_ordinary("the")[:] = []
    ours.encode_ordinary("the").append(7)
    assert ours.decode(ours.encode_ordinary("the")) == "the"


def test_a_pattern_that_loses_text_is_refused(bard):
    letters = Tokenizer(bard.ranks, pattern=r"\p{L}+")
    with pytest.raises(ValueError, match="leaves out a part of the text 'a 1'"):
        letters.encode_ordinary("a 1")
    with pytest.raises(ValueError, match="leaves out"):
        Tokenizer.train(["a 1"], 256, pattern=r"\p{L}+")
    for grouped in (r"(\w+)|\W", r"(\w)(\w)"):
        with pytest.raises(ValueError, match="or has groups"):
            split_text("ab", grouped)


# Special tokens


def test_special_tokens_are_those_of_tiktoken_if_allowed_and_refused_if_not(bard):
    theirs = in_tiktoken(bard)
    text = "<|user|>Hi<|end|><|assistant|> Hello<|end"
    assert bard.encode(text, allowed_special="all") == theirs.encode(text, allowed_special="all")
    some = {"<|user|>", "<|end|>", "<|assistant|>"}
    assert bard.encode(text, allowed_special=some) == theirs.encode(text, allowed_special=some)
    for allowed in ((), {"<|user|>"}, {"<|user|>", "<|assistant|>"}):
        with pytest.raises(ValueError, match=r"has the special token '<\|.*\|>': allow it, or use encode_ordinary"):
            bard.encode(text, allowed_special=allowed)
        with pytest.raises(ValueError):
            theirs.encode(text, allowed_special=set(allowed))
    with pytest.raises(ValueError, match=r"no special token '<\|usr\|>'; there are \["):
        bard.encode("a", allowed_special={"<|usr|>"})
    with pytest.raises(ValueError, match=r"no special token '<\|usr\|>'; there are \["):
        bard.encode("a", allowed_special="<|usr|>")
    assert bard.encode("a<|end|>", allowed_special="<|end|>") == bard.encode("a<|end|>", allowed_special=["<|end|>"])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(SPECIALS), st.text(max_size=5)), max_size=6).map("".join))
def test_ordinary_text_never_becomes_special(bard, text):
    assert max(bard.encode_ordinary(text), default=0) < min(bard.specials.values())
    if not any(name in text for name in SPECIALS):
        assert bard.encode(text) == bard.encode_ordinary(text)


def test_of_two_special_tokens_the_longer_is_found(bard):
    n = len(bard.ranks)
    ours = Tokenizer(bard.ranks, {"<a>": n, "<a><b>": n + 1, "x.y": n + 5})
    assert ours.encode("<a><b><a>xxy", "all")[:2] == [n + 1, n] and ours.n_vocab == n + 6
    assert ours.decode([n + 5, n]) == "x.y<a>"


def test_a_vocabulary_refuses_what_cannot_be(bard):
    n = len(bard.ranks)
    with pytest.raises(ValueError, match=rf"no token has the id {n + 7}; the largest is {n + 3}"):
        bard.decode([1, n + 7])
    with pytest.raises(ValueError, match="no token has the id -1"):
        bard.decode([-1])
    for wrong in ({"<|x|>": 5}, {"a": bard.ranks[b"a"]}, {"<a>": n, "<b>": n}, {"<a>": -1}, {"<a>": n + 0.5}, {"": n}):
        with pytest.raises(ValueError, match=r"special token '.*', id .*: expected a name, and an id from 0 up"):
            Tokenizer(bard.ranks, wrong)
    with pytest.raises(TypeError):
        bard.decode([70.0])
    for ids in (np.array([70, 71]), torch.tensor([70, 71])):
        assert bard.decode(ids) == bard.decode([70, 71])
    for ranks in ({**bard.ranks, b"new": n + 1}, {**bard.ranks, b"new": 3}, dict(list(bard.ranks.items())[:100])):
        with pytest.raises(ValueError, match="ranks must count from 0"):
            Tokenizer(ranks)


# Files


def test_saved_and_loaded_is_the_same_and_tiktoken_reads_it(bard, tmp_path):
    file = tmp_path / "bard.tiktoken"
    bard.save(file)
    assert [path.name for path in tmp_path.iterdir()] == ["bard.tiktoken"]
    again = Tokenizer.load(file, bard.specials, sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    assert (again.ranks, again.specials, again.n_vocab) == (bard.ranks, bard.specials, 1500)
    assert tiktoken.load.load_tiktoken_bpe(str(file)) == bard.ranks
    assert isinstance(Vocabulary.load(file), Vocabulary)


def test_the_published_files_are_written_as_they_are_read(tmp_path):
    for name in ("cl100k_base", "o200k_base"):
        Vocabulary.load(tiktoken_file(name)).save(tmp_path / name)
        assert (tmp_path / name).read_bytes() == tiktoken_file(name).read_bytes()


def test_a_file_cut_off_anywhere_is_refused(bard, tmp_path):
    file, cut = tmp_path / "bard", tmp_path / "cut"
    bard.save(file)
    data = file.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    places = {0, 1, 5, len(data) - 2, *random.Random(0).sample(range(len(data) - 1), 300)}
    for place in places:
        cut.write_bytes(data[:place])
        with pytest.raises(ValueError, match=f"sha256 is .* expected {sha256}"):
            Tokenizer.load(cut, sha256=sha256)
        if data[place - 1 : place] != b"\n" and data[place : place + 1] != b"\n":  # not between two lines
            with pytest.raises(ValueError, match="expected base64 of a new token|ranks must count from 0"):
                Tokenizer.load(cut)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"IQ== 0\nIQ== 1\n", "line 2: expected base64 of a new token, 1"),
        (b"IQ== 0\nIg== 2\n", "line 2"),
        (b"IQ== 0\n\nIg== 1\n", "line 2"),
        (b"IQ==\n", "line 1"),
        (b" 0\n", "line 1: expected base64 of a new token"),
        (b"I!== 0\n", "line 1"),
        (b"IQ 0\n", "line 1"),
        (b"\x80\x04\x95 0\n", "line 1"),
        (b'{"version": "1.0", "model": {}}', "line 1"),
        (b"", "ranks must count from 0"),
        (b"IQ== 0\n", "with every single byte"),
    ],
)
def test_a_wrong_file_is_refused_with_the_line(tmp_path, data, said):
    (tmp_path / "wrong").write_bytes(data)
    with pytest.raises(ValueError, match=said):
        Tokenizer.load(tmp_path / "wrong")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.tiktoken"):
        Tokenizer.load(tmp_path / "none.tiktoken")


def test_a_full_disk_leaves_the_old_file(bard, tmp_path, monkeypatch):
    file = tmp_path / "bard"
    bard.save(file)
    before = file.read_bytes()

    def full(self, data):
        with self.open("wb") as half:
            half.write(data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        bard.save(file)
    assert file.read_bytes() == before


# What is shipped


def test_the_storyteller_is_made_again_from_the_training_stories(tmp_path):
    made = Tokenizer.train((story.text for story in stories("train")), 2048, specials=SPECIALS)
    made.save(tmp_path / "made")
    assert (tmp_path / "made").read_bytes() == asset_file("tokenizer/storyteller.tiktoken").read_bytes()
    assert made.specials == storyteller().specials == {name: 2044 + i for i, name in enumerate(SPECIALS)}
    assert storyteller().n_vocab == 2048


def test_the_storyteller_reads_its_stories_as_tiktoken_would():
    ours = storyteller()
    theirs = in_tiktoken(ours)
    for story in stories("validation"):
        ids = ours.encode(story.text)
        assert ids == theirs.encode(story.text) and ours.decode(ids) == story.text and len(ids) < 280


def test_the_card_tells_the_checksum():
    path = asset_file("tokenizer/storyteller.tiktoken")
    assert f"`{hashlib.sha256(path.read_bytes()).hexdigest()}`" in path.with_suffix(".md").read_text()


def test_the_module_has_at_most_200_lines():
    assert len(Path(module.__file__).read_text().splitlines()) <= 200
