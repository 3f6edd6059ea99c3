"""GGUF files: the format read by hand, packed weights made numbers again, and the tokenizer that travels in them."""

import math
import struct

import numpy as np
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmscratch.scientist.tokenizer import BYTES, Tokenizer

__all__ = ["BLOCKS", "ChatTokenizer", "GGUF", "SMOLLM_PATTERN", "VALUES", "unpack"]

# How numbers are packed, by the format's code: a name, how many stand in a block, and the block's layout.
BLOCKS = {
    0: ("F32", 1, np.dtype("<f4")),
    1: ("F16", 1, np.dtype("<f2")),
    3: ("Q4_1", 32, np.dtype([("scale", "<f2"), ("least", "<f2"), ("pairs", "u1", 16)])),
    8: ("Q8_0", 32, np.dtype([("scale", "<f2"), ("codes", "i1", 32)])),
}
VALUES = "BbHhIif?s.Qqd"  # a field's type: struct's letter at the place of the format's code; 8 string, 9 array


def unpack(blocks):
    """The float32 numbers, in order, in an array of blocks of one of the layouts in BLOCKS."""
    if blocks.dtype.names is None:
        return blocks.astype(np.float32)
    scale = blocks["scale"].astype(np.float32)[:, None]  # (n, 1)
    if "codes" in blocks.dtype.names:
        return (scale * blocks["codes"]).ravel()
    codes = np.concatenate([blocks["pairs"] & 15, blocks["pairs"] >> 4], axis=1)  # (n, 32): all low halves, all high
    return (scale * codes + blocks["least"].astype(np.float32)[:, None]).ravel()


class GGUF:
    """A GGUF file. fields: value by key; tensors: shape, code of the packing and start by name; file[name]: float32.

    ValueError when it is no GGUF file of version 2 or 3, is cut off, or packs numbers in a way that BLOCKS has not.
    """

    def __init__(self, path):
        self.path, self._data, self._at = path, memoryview(np.memmap(path, mode="r")), 0
        magic, version, n_tensors, n_fields = (self._read(code) for code in ("4s", "I", "Q", "Q"))
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"{path} is no GGUF file of version 2 or 3: it begins with {magic}, version {version}")
        self.fields = {self._read("s"): self._value(self._read("I")) for _ in range(n_fields)}
        self.tensors = {}
        for _ in range(n_tensors):
            name = self._read("s")
            shape = [self._read("Q") for _ in range(self._read("I"))][::-1]  # in the file the last axis comes first
            self.tensors[name] = shape, self._read("I"), self._read("Q")
        align = self.fields.get("general.alignment", 32)
        self._start = -(-self._at // align) * align
        for name in self.tensors:
            self._blocks(name)

    def _read(self, code):
        n = self._read("Q") if code == "s" else struct.calcsize("<" + code)
        if n > len(self._data) - self._at:
            raise ValueError(f"{self.path} is cut off or damaged: it ends at byte {len(self._data)}, too early")
        self._at += n
        raw = self._data[self._at - n : self._at]
        return str(raw, "utf-8") if code == "s" else struct.unpack("<" + code, raw)[0]

    def _value(self, code):
        if code == 9:
            code, n = self._read("I"), self._read("Q")
            return [self._value(code) for _ in range(n)]
        if code >= len(VALUES):
            raise ValueError(f"{self.path} is damaged: no field has the type {code}, at byte {self._at}")
        return self._read(VALUES[code])

    def _blocks(self, name):
        shape, code, start = self.tensors[name]
        if code not in BLOCKS:
            known = ", ".join(kind for kind, _, _ in BLOCKS.values())
            raise ValueError(f"{self.path}: {name} is packed in the way {code}; only {known} can be read")
        _, size, layout = BLOCKS[code]
        n, start = math.prod(shape) // size, self._start + start
        if start + n * layout.itemsize > len(self._data):
            raise ValueError(f"{self.path} is cut off: it ends at byte {len(self._data)}, within {name} or before it")
        return np.frombuffer(self._data, layout, n, start)

    def __getitem__(self, name):
        return unpack(self._blocks(name)).reshape(self.tensors[name][0])


# Each digit alone; else GPT-2's pattern: a run of spaces leaves its last one to a word, but none to a digit.
SMOLLM_PATTERN = r"\p{N}|'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"


class ChatTokenizer:
    """The byte-level BPE and chat template in the fields of a GGUF file. special: id by name; n_vocab: how many ids.

    ValueError for fields of another kind of tokenizer.
    """

    def __init__(self, fields):
        model, pre = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
        if (model, pre) != ("gpt2", "smollm"):
            raise ValueError(f"only a 'gpt2' tokenizer with pre 'smollm' can be read, not {model!r} with {pre!r}")
        tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
        ids = {token: i for i, token in enumerate(tokens)}
        names = [token for token, kind in zip(tokens, kinds) if kind in (3, 4)]  # control tokens, the user's own
        signs = {chr(b if k < 188 else 68 + k): bytes([b]) for k, b in enumerate(BYTES)}  # GPT-2's letter of a byte
        words = [*signs, *(merge.replace(" ", "") for merge in fields["tokenizer.ggml.merges"])]
        ranks = {b"".join(map(signs.get, word)): rank for rank, word in enumerate(words)}
        self._bpe = Tokenizer(ranks, {name: len(ranks) + k for k, name in enumerate(names)}, SMOLLM_PATTERN)
        self._id = {rank: ids[word] for rank, word in enumerate(words + names) if word in ids}
        self._rank = {i: rank for rank, i in self._id.items()}
        self.special, self.n_vocab = {name: ids[name] for name in names}, len(tokens)
        jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        self._template = jinja.from_string(fields["tokenizer.chat_template"])

    def encode(self, text, *, allowed_special=()):
        """The ids of a text. A special token's name becomes its id if allowed ("all": any is), else a ValueError.

        A byte that the vocabulary has no token for is left out.
        """
        return [self._id[rank] for rank in self._bpe.encode(text, allowed_special) if rank in self._id]

    def decode_bytes(self, ids):
        """The bytes that the ids stand for. ValueError for an id that stands for nothing."""
        ids = [int(i) for i in ids]
        if unknown := set(ids) - self._rank.keys():
            raise ValueError(f"no token has the id {min(unknown)}; the largest is {self.n_vocab - 1}")
        return self._bpe.decode_bytes(self._rank[i] for i in ids)

    def decode(self, ids):
        """The text that the ids stand for; bytes that are not UTF-8, such as half a character, become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def chat(self, messages, add_generation_prompt=True):
        """The prompt for messages {"role": …, "content": …}; encode it with allowed_special="all".

        ValueError when a message is no such dict, or holds a special token, which would read as the template's own.
        """
        for message in messages:
            told = [message.get(key) for key in ("role", "content")] if isinstance(message, dict) else [None]
            if not all(isinstance(text, str) for text in told) or any(name in text for name in self.special for text in told):
                raise ValueError(f"a message is a dict of role and content, strings without special tokens, not {message!r}")
        try:
            return self._template.render(messages=messages, add_generation_prompt=add_generation_prompt)
        except TemplateError as error:
            raise ValueError(f"the chat template does not take these messages: {error}") from error
