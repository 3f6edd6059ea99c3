"""Byte-level BPE, trained, encoded and stored as tiktoken does it, and the Storyteller's own vocabulary."""

# Made from 02_for_scientist/02_tokenization.ipynb by `make export`: change the notebook, not this file.

import base64
import hashlib
import heapq
import itertools
import operator
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import regex

from llmscratch.kit import asset_file

__all__ = ["BYTES", "GPT4_PATTERN", "Tokenizer", "Vocabulary", "learn_bpe", "merge_piece", "split_text", "storyteller"]


# The 256 bytes in the order of GPT-2's alphabet: those with a visible sign in Latin-1, then the others.
BYTES = sorted(range(256), key=lambda b: (not (33 <= b <= 126 or 161 <= b <= 172 or b >= 174), b))
# GPT-4's pattern for cutting a text into pieces, as tiktoken has it. Nothing is merged across the cuts.
GPT4_PATTERN = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
                r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s")


def split_text(text: str, pattern: str = GPT4_PATTERN) -> list[str]:
    """The pieces of a text, in order. ValueError if the pattern has groups, or leaves out (so loses) something."""
    pieces = regex.findall(pattern, text)
    if regex.compile(pattern).groups or sum(map(len, pieces)) != len(text):
        raise ValueError(f"the pattern {pattern!r} leaves out a part of the text {text[:40]!r}, or has groups")
    return pieces


def learn_bpe(words: Mapping[bytes, int], n_tokens: int) -> list[bytes]:
    """The tokens of byte-pair encoding (Sennrich et al. 2016): the 256 bytes, then merged pairs, oldest first.

    words: how often each piece of text occurs. The most frequent pair is merged; of equals the one with the smaller
    ids, as in the tokenizers library. ValueError unless n_tokens is at least 256 and the words have enough pairs.
    """
    tokens = [bytes([b]) for b in BYTES]
    order = bytes(tokens.index(bytes([b])) for b in range(256))
    parts = [word.translate(order).decode("latin-1") for word in words]  # strings whose characters are ids
    times, count, where, queue, change = list(words.values()), Counter(), defaultdict(set), [], Counter()
    for w, part in enumerate(parts):
        for p in zip(part, part[1:]):
            change[p] += times[w]
            where[p].add(w)
    while len(tokens) < n_tokens:
        for p, n in change.items():
            if n:
                count[p] += n
                heapq.heappush(queue, (-count[p], p))
        while queue and -queue[0][0] != count[queue[0][1]]:  # was true once
            heapq.heappop(queue)
        if not queue or queue[0][0] == 0:
            break
        a, b = pair = heapq.heappop(queue)[1]
        token, change = tokens[ord(a)] + tokens[ord(b)], defaultdict(int)
        new = chr(len(tokens))
        tokens.append(token)  # no other pair spells it: between the same borders the bytes were always merged alike
        for w in where.pop(pair):
            for p in zip(parts[w], parts[w][1:]):
                change[p] -= times[w]
            parts[w] = parts[w].replace(a + b, new)
            for p in zip(parts[w], parts[w][1:]):
                change[p] += times[w]
                where[p].add(w)
    if len(tokens) != n_tokens:
        raise ValueError(f"asked for {n_tokens} tokens; 256 are the fewest, and these words give {len(tokens)}")
    return tokens


def merge_piece(piece: bytes, ranks: Mapping[bytes, int]) -> list[int]:
    """The ids of a piece: its bytes, merged by twos, lowest rank first, of equals the leftmost; O(n log n)."""
    if piece in ranks:  # at once, as in tiktoken
        return [ranks[piece]]
    n, queue = len(piece), []
    end, begin = list(range(1, n + 2)), list(range(-1, n + 1))  # for a part from i to j: end[i] = j, begin[j] = i

    def offer(i, j, k):
        if i >= 0 and k <= n and piece[i:k] in ranks:
            heapq.heappush(queue, (ranks[piece[i:k]], i, j, k))

    for i in range(n - 1):
        offer(i, i + 1, i + 2)
    while queue:
        _, i, j, k = heapq.heappop(queue)
        if end[i] == j and end[j] == k:  # both parts are still there
            end[i], end[j], begin[k] = k, -1, i
            offer(begin[i], i, k)
            offer(i, k, end[k])
    return [ranks[piece[i : end[i]]] for i in range(n) if end[i] > 0]


class Vocabulary:
    """What ids stand for. ranks: id by bytes; specials: id by name; n_vocab: the largest id + 1, a size for tables."""

    def __init__(self, ranks: Mapping[bytes, int], specials: Mapping[str, int] | None = None):
        self.ranks, self.specials = dict(ranks), dict(specials or {})
        if sorted(self.ranks.values()) != list(range(len(self.ranks))) or any(bytes([b]) not in ranks for b in BYTES):
            raise ValueError("ranks must count from 0, each number once, with every single byte among the tokens")
        self._bytes = {i: token for token, i in self.ranks.items()}
        for name, i in self.specials.items():
            if not name or not isinstance(i, int) or i < 0 or i in self._bytes:
                raise ValueError(f"special token {name!r}, id {i!r}: expected a name, and an id from 0 up that is free")
            self._bytes[i] = name.encode()
        self.n_vocab = max(self._bytes) + 1

    @classmethod
    def load(cls, path: str | Path, specials=None, *, sha256: str | None = None, **options):
        """From a file as `save` writes it. ValueError, with the line, for another file, also if its sha256 differs."""
        data, ranks = Path(path).read_bytes(), {}
        if sha256 not in (None, found := hashlib.sha256(data).hexdigest()):
            raise ValueError(f"{path} is cut off, damaged or another file: its sha256 is {found}, expected {sha256}")
        for rank, line in enumerate(data.splitlines()):
            token, _, number = line.partition(b" ")
            try:
                ranks[base64.b64decode(token, validate=True)] = int(number)
            except ValueError:
                number = b""
            if not token or number != b"%d" % rank or len(ranks) != rank + 1:
                raise ValueError(f"{path}, line {rank + 1}: expected base64 of a new token, {rank}, got {line[:40]!r}")
        return cls(ranks, specials, **options)

    def save(self, path: str | Path) -> None:
        """Write the ranks in tiktoken's format: a line a token, its bytes in base64 and its rank, from 0 up."""
        part, tokens = Path(f"{path}.part"), sorted(self.ranks, key=self.ranks.get)
        part.write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(t), rank) for rank, t in enumerate(tokens)))
        part.replace(path)  # only a whole file gets the name

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that the ids stand for. ValueError for an id that stands for nothing."""
        try:
            return b"".join([self._bytes[i] for i in map(operator.index, ids)])
        except KeyError as error:
            raise ValueError(f"no token has the id {error}; the largest is {self.n_vocab - 1}") from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text that the ids stand for; bytes that are not UTF-8, such as half a character, become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")


class Tokenizer(Vocabulary):
    """Byte-level BPE, as tiktoken does it: the pattern cuts a text into pieces, the ranks merge the bytes of each."""

    def __init__(self, ranks, specials=None, pattern: str = GPT4_PATTERN):
        super().__init__(ranks, specials)
        self.pattern, self._cache = pattern, {}
        names = sorted(map(regex.escape, self.specials), key=len, reverse=True)
        self._special = regex.compile("|".join(names) or "(?!)")  # without special tokens: never matches

    @classmethod
    def train(cls, texts: Iterable[str], n_vocab: int, pattern: str = GPT4_PATTERN, specials: Sequence[str] = ()):
        """A tokenizer of n_vocab ids in all, the special tokens last. Errors as for `learn_bpe`."""
        if isinstance(texts, str) or len(set(specials)) != len(specials):
            raise ValueError("expected a list of texts ([text] for a single one), and each special token once")
        words = Counter(itertools.chain.from_iterable(split_text(text, pattern) for text in texts))
        tokens = learn_bpe({word.encode(): n for word, n in words.items()}, n_vocab - len(specials))
        return cls(dict(zip(tokens, itertools.count())), dict(zip(specials, itertools.count(len(tokens)))), pattern)

    def encode(self, text: str, allowed_special: Iterable[str] = ()) -> list[int]:
        """The ids of a text. A special token's name becomes its id if allowed ("all": any is), else a ValueError."""
        some = [allowed_special] if isinstance(allowed_special, str) else allowed_special
        allowed = set(self.specials if allowed_special == "all" else some)
        if unknown := allowed - set(self.specials):
            raise ValueError(f"there is no special token {min(unknown)!r}; there are {sorted(self.specials)}")
        ids, start = [], 0
        for found in self._special.finditer(text):
            if found[0] not in allowed:
                raise ValueError(f"the text has the special token {found[0]!r}: allow it, or use encode_ordinary")
            ids += [*self.encode_ordinary(text[start : found.start()]), self.specials[found[0]]]
            start = found.end()
        return ids + self.encode_ordinary(text[start:])

    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of a text in which nothing is special; lone surrogates become U+FFFD."""
        return self.encode_bytes(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode())

    def encode_bytes(self, data: bytes) -> list[int]:
        """The ids of any bytes, UTF-8 or not, from which `decode_bytes` restores them."""
        ids, cache = [], self._cache
        for piece in split_text(data.decode("utf-8", "surrogateescape"), self.pattern):
            if (found := cache.get(piece)) is None:
                found = merge_piece(piece.encode("utf-8", "surrogateescape"), self.ranks)
                if len(cache) >= 2**16:
                    cache.clear()  # if only full, rare pieces could keep out the frequent ones for good
                if len(piece) <= 64:
                    cache[piece] = found
            ids += found
        return ids


def storyteller() -> Tokenizer:
    """The Storyteller's tokenizer: 2,048 ids, the last four for the end of a text and the turns of a conversation."""
    ids = {"<|endoftext|>": 2044, "<|user|>": 2045, "<|assistant|>": 2046, "<|end|>": 2047}
    sha256 = "c3aaee285235102617ae0652294b4cf2a017522ca7b5a25c0901516ea658dcbd"
    return Tokenizer.load(asset_file("tokenizer/storyteller.tiktoken"), ids, sha256=sha256)
