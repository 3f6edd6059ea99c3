"""GGUF files: the format read by hand, packed weights made numbers again, and the tokenizer that travels in them."""

# Made from 02_for_scientist/20_llama.ipynb by `make export`: change the notebook, not this file.

import struct

import numpy as np
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmscratch.scientist.tokenizer import BYTES, Tokenizer

__all__ = ["ARRAY", "BLOCKS", "ChatTokenizer", "GGUF", "SMOLLM_PATTERN", "STRING", "TYPES", "U32", "U64", "unpack"]


BLOCKS = {  # how numbers are packed, by the format's code: a name, how many stand in a block, the block's layout
    0: ("F32", 1, np.dtype("<f4")),
    1: ("F16", 1, np.dtype("<f2")),
    3: ("Q4_1", 32, np.dtype([("scale", "<f2"), ("least", "<f2"), ("pairs", "u1", 16)])),
    8: ("Q8_0", 32, np.dtype([("scale", "<f2"), ("codes", "i1", 32)])),
}
TYPES = "BbHhIif???Qqd"  # struct's letter for each type of value, but for strings and arrays
U32, STRING, ARRAY, U64 = 4, 8, 9, 10


class GGUF:
    """A GGUF file. fields: value by key; tensors: shape, code of the packing and start by name; file[name]: float32.

    ValueError when it is no GGUF file of version 2 or 3, is cut off, or packs numbers in a way that BLOCKS has not.
    """

    def __init__(self, path):
        self.path, self._data, self._at = path, memoryview(np.memmap(path, mode="r")), 4
        version, n_tensors, n_fields = self._read(U32), self._read(U64), self._read(U64)
        if self._data[:4] != b"GGUF" or version not in (2, 3):
            raise ValueError(f"{path} is no GGUF file of version 2 or 3: it begins with {bytes(self._data[:8])}")
        self.fields = {self._read(STRING): self._read(self._read(U32)) for _ in range(n_fields)}
        self.tensors = {self._read(STRING): self._entry() for _ in range(n_tensors)}
        self._start = self._at + -self._at % (self.fields.get("general.alignment") or 32)
        for name in self.tensors:
            self._blocks(name)

    def _read(self, code, listed=False):
        if code >= len(TYPES) or listed and code == ARRAY:  # a list of lists: not needed
            raise ValueError(f"{self.path} is damaged, or nests lists: no value has the type {code}, at {self._at}")
        item = self._read(U32) if code == ARRAY else None
        n = self._read(U64) if code in (STRING, ARRAY) else struct.calcsize("<" + TYPES[code])
        if n > len(self._data) - self._at:
            raise ValueError(f"{self.path} is cut off or damaged: it ends at byte {len(self._data)}, too early")
        if code == ARRAY:
            return [self._read(item, True) for _ in range(n)]
        self._at += n
        raw = self._data[self._at - n : self._at]
        return str(raw, "utf-8") if code == STRING else struct.unpack("<" + TYPES[code], raw)[0]

    def _entry(self):
        shape = [self._read(U64) for _ in range(self._read(U32))][::-1]  # in the file the last axis comes first
        return shape, self._read(U32), self._read(U64)

    def _blocks(self, name):
        shape, code, start = self.tensors[name]
        if code not in BLOCKS:
            raise ValueError(f"{self.path}: {name} is packed in the way {code}; only {[*BLOCKS]} can be read")
        _, size, layout = BLOCKS[code]
        n, rest, start = np.prod(shape, dtype=object) // size, (shape or [1])[-1] % size, self._start + start
        if start + n * layout.itemsize > (end := len(self._data)) or rest:
            raise ValueError(f"{self.path} is cut off or damaged: {name}, {shape}, is not whole before byte {end}")
        return np.frombuffer(self._data, layout, n, start)

    def __getitem__(self, name):
        return unpack(self._blocks(name)).reshape(self.tensors[name][0])


def unpack(blocks):
    """The float32 numbers, in order, in an array of blocks of one of the layouts in BLOCKS."""
    if blocks.dtype.names is None:
        return blocks.astype(np.float32)
    scale = blocks["scale"].astype(np.float32)[:, None]  # (n, 1)
    if "codes" in blocks.dtype.names:
        return (scale * blocks["codes"]).ravel()
    codes = np.concatenate([blocks["pairs"] & 15, blocks["pairs"] >> 4], axis=1)  # (n, 32): all low halves, all high
    return (scale * codes + blocks["least"].astype(np.float32)[:, None]).ravel()


# Each digit alone; else GPT-2's pattern: a run of blanks leaves its last one to a word, but none to a digit.
SMOLLM_PATTERN = r"\p{N}|'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"


class ChatTokenizer:
    """The byte-level BPE and chat template in the fields of a GGUF file. special: id by name; n_vocab: how many ids."""

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
        template = fields.get("tokenizer.chat_template", "{{ this_file_has_no_chat_template() }}")
        self._template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template)

    def encode(self, text, *, allowed_special=()):
        """The ids; bytes without a token are left out. ValueError for a special token not allowed ("all": any is)."""
        return [self._id[rank] for rank in self._bpe.encode(text, allowed_special) if rank in self._id]

    def decode_bytes(self, ids):
        """The bytes that the ids stand for. ValueError for an id that stands for nothing."""
        try:
            return self._bpe.decode_bytes([self._rank[int(i)] for i in ids])
        except KeyError as error:
            raise ValueError(f"no token has the id {error}; the largest is {self.n_vocab - 1}") from None

    def decode(self, ids):
        """The text that the ids stand for; bytes that are not UTF-8, such as half a character, become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def chat(self, messages, add_generation_prompt=True):
        """The prompt for messages {"role": …, "content": …}, to be encoded with allowed_special="all".

        ValueError for other messages, and for special tokens in them, which would read as the template's own.
        """
        for message in messages:
            told = [message.get(key) for key in ("role", "content")] if isinstance(message, dict) else [None]
            if not all(isinstance(text, str) and not any(name in text for name in self.special) for text in told):
                raise ValueError(f"expected a dict of role and content, texts without special tokens, not {message!r}")
        return self._template.render(messages=messages, add_generation_prompt=add_generation_prompt)
