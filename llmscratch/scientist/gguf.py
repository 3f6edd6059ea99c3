"""GGUF files: the format read by hand, packed weights made numbers again, and the tokenizer that travels in them."""

import math
import mmap
import struct
from pathlib import Path

import numpy as np
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmscratch.scientist.tokenizer import BYTES, Tokenizer

__all__ = ["BLOCKS", "GGUF", "ChatTokenizer", "SMOLLM_PATTERN", "unpack"]

# How a tensor's numbers are packed, by the format's code: a name, the numbers in a block, and the block's layout.
BLOCKS = {
    0: ("F32", 1, np.dtype("<f4")),
    1: ("F16", 1, np.dtype("<f2")),
    3: ("Q4_1", 32, np.dtype([("scale", "<f2"), ("least", "<f2"), ("pairs", "u1", 16)])),
    8: ("Q8_0", 32, np.dtype([("scale", "<f2"), ("codes", "i1", 32)])),
}
# How a field's value is stored, by the format's code; 8 is a string, 9 an array.
VALUES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# Each digit alone, then GPT-2's pattern: a run of spaces leaves its last one to a word, but not to a digit.
SMOLLM_PATTERN = r"\p{N}|'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"


def unpack(blocks: np.ndarray) -> np.ndarray:
    """The float32 numbers in an array of blocks, each of one of the layouts in BLOCKS, in order."""
    if blocks.dtype.names is None:
        return blocks.astype(np.float32)
    scale = blocks["scale"].astype(np.float32)[:, None]  # (n, 1)
    if "codes" in blocks.dtype.names:
        return (scale * blocks["codes"]).ravel()
    pairs = blocks["pairs"]  # (n, 16): in byte i the low half is number i, the high half number i + 16
    numbers = scale * np.concatenate([pairs & 15, pairs >> 4], axis=1)
    return (numbers + blocks["least"].astype(np.float32)[:, None]).ravel()


class GGUF:
    """A GGUF file, version 2 or 3. fields: value by key; file[name]: that tensor as a float32 array.

    tensors: (shape, code of its packing, where it starts) by name. ValueError when the file is none, or cut off.
    """

    def __init__(self, path: str | Path):
        self.path, self.fields, self.tensors = Path(path), {}, {}
        with open(path, "rb") as file:
            start = file.read(24)
            if len(start) < 24 or start[:4] != b"GGUF":
                raise ValueError(f"{path} is no GGUF file: it begins with {start[:4]!r}, not with b'GGUF'")
            self._data, self._at = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), 24
        version, n_tensors, n_fields = struct.unpack("<4xIQQ", start)
        if version not in (2, 3):
            raise ValueError(f"{path} is GGUF version {version}; only 2 and 3 can be read")
        for _ in range(n_fields):
            key = self._string()
            self.fields[key] = self._value(self._number("I"))
        for _ in range(n_tensors):
            name = self._string()
            shape = [self._number("Q") for _ in range(self._number("I"))][::-1]  # the file has the last axis first
            self.tensors[name] = (shape, self._number("I"), self._number("Q"))
        align = self.fields.get("general.alignment", 32)
        self._start = -(-self._at // align) * align
        for name in self.tensors:
            self._blocks(name)

    def _take(self, n):
        if n > len(self._data) - self._at:
            raise ValueError(f"{self.path} is cut off or damaged: {n} bytes expected at {self._at}")
        self._at += n
        return self._data[self._at - n : self._at]

    def _number(self, code):
        return struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]

    def _string(self):
        return self._take(self._number("Q")).decode()

    def _value(self, code):
        if code == 8:
            return self._string()
        if code == 9:
            code, n = self._number("I"), self._number("Q")
            return [self._value(code) for _ in range(n)]
        if code not in VALUES:
            raise ValueError(f"{self.path} is damaged: there is no type {code} of values, at {self._at}")
        return self._number(VALUES[code])

    def _blocks(self, name):
        shape, code, start = self.tensors[name]
        if code not in BLOCKS:
            known = ", ".join(kind for kind, _, _ in BLOCKS.values())
            raise ValueError(f"{self.path}: {name} is packed as type {code}; only {known} can be read")
        _, size, layout = BLOCKS[code]
        n, start = math.prod(shape) // size, self._start + start
        if start + n * layout.itemsize > len(self._data):
            raise ValueError(f"{self.path} is cut off: {name} ends at {start + n * layout.itemsize:,} bytes, the file at {len(self._data):,}")
        return np.frombuffer(self._data, layout, n, start)

    def __getitem__(self, name):
        if name not in self.tensors:
            raise ValueError(f"{self.path} has no tensor {name!r}")
        return unpack(self._blocks(name)).reshape(self.tensors[name][0])


class ChatTokenizer:
    """Byte-level BPE and the chat template of a GGUF file. special: id by name of each special token."""

    def __init__(self, fields: dict):
        kind = [fields.get(f"tokenizer.ggml.{key}") for key in ("model", "pre")]
        if kind != ["gpt2", "smollm"]:
            raise ValueError(f"this tokenizer is {kind[0]!r} with {kind[1]!r}; only 'gpt2' with 'smollm' can be read")
        tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
        ids = {token: i for i, token in enumerate(tokens)}
        signs = {chr(b if k < 188 else 68 + k): bytes([b]) for k, b in enumerate(BYTES)}  # GPT-2's letter of each byte
        words = [*signs, *(merge.replace(" ", "") for merge in fields["tokenizer.ggml.merges"])]
        ranks = {b"".join(map(signs.get, word)): rank for rank, word in enumerate(words)}
        names = [token for token, kind in zip(tokens, kinds) if kind in (3, 4)]  # control, and user defined
        self._bpe = Tokenizer(ranks, {name: len(ranks) + k for k, name in enumerate(names)}, SMOLLM_PATTERN)
        self._id = {rank: ids[word] for rank, word in enumerate([*words, *names]) if word in ids}
        self._rank = {i: rank for rank, i in self._id.items()}
        self.n_vocab, self.special = len(tokens), {name: ids[name] for name in names}
        jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        self._template = jinja.from_string(fields["tokenizer.chat_template"])

    def encode(self, text: str, *, allowed_special=()) -> list[int]:
        """The ids of a text. A special token's name becomes its id if allowed ("all": any is), else a ValueError.

        Bytes for which the vocabulary has no token are left out, as llama.cpp does.
        """
        ranks = self._bpe.encode(text, allowed_special)
        return [self._id[rank] for rank in ranks if rank in self._id]

    def decode_bytes(self, ids) -> bytes:
        """The bytes that the ids stand for. ValueError for an id that stands for nothing."""
        try:
            return self._bpe.decode_bytes([self._rank[int(i)] for i in ids])
        except KeyError as error:
            raise ValueError(f"no token has the id {error}; the largest is {self.n_vocab - 1}") from None

    def decode(self, ids) -> str:
        """The text that the ids stand for; bytes that are not UTF-8, such as half a character, become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def chat(self, messages: list[dict], add_generation_prompt: bool = True) -> str:
        """The prompt for messages {"role": …, "content": …}, by the file's template; encode it with all specials allowed.

        ValueError when a message has another form, or a special token in its content: it could not be told apart.
        """
        for message in messages:
            if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
                raise ValueError(f'a message is {{"role": …, "content": …}}, both strings; got {message!r}')
            for name in self.special:
                if name in message["role"] + message["content"]:
                    raise ValueError(f"a message holds the special token {name!r}, and could end its turn: remove it")
        try:
            return self._template.render(messages=messages, add_generation_prompt=add_generation_prompt)
        except TemplateError as error:
            raise ValueError(f"the file's chat template fails on these messages: {error}") from error
