"""A text as a vector: WordPiece, BERT's encoder with the weights of MiniLM, and the mean over the tokens."""

# Made from 03_for_engineer/04_vector_search.ipynb by `make export`: change the notebook, not this file.

import json
import unicodedata
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from llmscratch.kit import minilm_folder
from llmscratch.scientist.attention import MultiHeadAttention

__all__ = ["Block", "CHINESE", "Characters", "Embedder", "MiniLM", "RENAMED", "WordPiece", "load_minilm", "mean_pool"]


class Characters(dict):
    """A table for `str.translate` that asks `rule` about each character when it first turns up."""

    def __init__(self, rule):
        super().__init__()
        self.rule = rule

    def __missing__(self, code):
        self[code] = self.rule(chr(code))
        return self[code]


CHINESE = [(0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF), (0x2A700, 0x2B81F),
           (0x2B920, 0x2CEAF), (0x2F800, 0x2FA1F)]  # fmt: skip


def _clean(c):
    kind = unicodedata.category(c)
    if c in "\t\n\r" or kind[0] == "Z":
        return " "
    if kind in ("Cc", "Cf", "Co", "Cs") or c == "\ufffd":  # control, format, private use, half a character
        return ""
    return f" {c} " if any(low <= ord(c) <= high for low, high in CHINESE) else c


def _fold(c):
    kind = unicodedata.category(c)
    if kind == "Mn":  # an accent on its own
        return ""
    mark = kind[0] == "P" or (c.isascii() and not c.isalnum() and c != " ")
    return f" {c} " if mark else c.lower()


class WordPiece:
    """BERT's tokenizer for text without capitals (Devlin et al. 2018). vocab: the pieces, in the order of their ids."""

    def __init__(self, vocab):
        self.vocab = list(vocab)
        self.ids = {piece: i for i, piece in enumerate(self.vocab)}
        if missing := [piece for piece in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if piece not in self.ids]:
            raise ValueError(f"the vocabulary lacks {missing[0]}")
        self._clean, self._fold = Characters(_clean), Characters(_fold)
        self._pieces = lru_cache(2**16)(self.pieces)  # words repeat

    def words(self, text):
        """The words and marks of a text: small letters, no accents."""
        if not isinstance(text, str):
            raise ValueError(f"a text must be a string, got {type(text).__name__}")
        return unicodedata.normalize("NFD", text.translate(self._clean)).translate(self._fold).split()

    def pieces(self, word):
        """The ids of the longest known pieces of a word, from the left; one [UNK] when there are none that fit."""
        ids, start = [], 0
        while start < len(word) <= 100:
            for end in range(len(word), start, -1):
                found = self.ids.get("##" * (start > 0) + word[start:end])
                if found is not None:
                    break
            else:
                return [self.ids["[UNK]"]]
            ids.append(found)
            start = end
        return ids or [self.ids["[UNK]"]]

    def encode(self, text, max_length=256):
        """The ids of a text between [CLS] and [SEP], at most `max_length` with these two; the rest is cut off."""
        if max_length < 2:
            raise ValueError(f"max_length must be at least 2, for [CLS] and [SEP]; got {max_length}")
        ids = [i for word in self.words(text) for i in self._pieces(word)]
        return [self.ids["[CLS]"], *ids[: max_length - 2], self.ids["[SEP]"]]


class Block(nn.Module):
    """A block of BERT, with its norms on the stream: attention to all sides, then C → d_ff → C with the exact GELU."""

    def __init__(self, d_model, n_head, d_ff, eps):
        super().__init__()
        self.attn = MultiHeadAttention(d_model, n_head, causal=False)
        self.ln_1 = nn.LayerNorm(d_model, eps)
        self.up, self.down = nn.Linear(d_model, d_ff), nn.Linear(d_ff, d_model)
        self.ln_2 = nn.LayerNorm(d_model, eps)

    def forward(self, x, mask):
        x = self.ln_1(x + self.attn(x, mask))
        return self.ln_2(x + self.down(F.gelu(self.up(x))))


class MiniLM(nn.Module):
    """BERT's encoder (Devlin et al. 2018): token ids (B, T) to vectors (B, T, C). config: as in config.json."""

    def __init__(self, config):
        super().__init__()
        C, eps = config["hidden_size"], config["layer_norm_eps"]
        self.word = nn.Embedding(config["vocab_size"], C)
        self.position = nn.Embedding(config["max_position_embeddings"], C)
        self.kind = nn.Embedding(config["type_vocab_size"], C)
        self.norm = nn.LayerNorm(C, eps)
        sizes = config["num_attention_heads"], config["intermediate_size"], eps
        self.blocks = nn.ModuleList(Block(C, *sizes) for _ in range(config["num_hidden_layers"]))

    def forward(self, tokens, keep):
        """keep (B, T), bool: False at padding, which nothing attends to. ValueError when T exceeds the positions."""
        T, most = tokens.shape[1], self.position.num_embeddings
        if most < T:
            raise ValueError(f"a text of {T} tokens is longer than the {most} positions of the model")
        x = self.norm(self.word(tokens) + self.position.weight[:T] + self.kind.weight[0])
        for block in self.blocks:
            x = block(x, keep[:, None, None])
        return x


RENAMED = {
    "embeddings.word_embeddings": "word", "embeddings.position_embeddings": "position",
    "embeddings.token_type_embeddings": "kind", "embeddings.LayerNorm": "norm", "encoder.layer.": "blocks.",
    "attention.output.dense": "attn.proj", "attention.output.LayerNorm": "ln_1", "intermediate.dense": "up",
    "output.dense": "down", "output.LayerNorm": "ln_2",
}  # fmt: skip


def load_minilm(folder):
    """The model, in evaluation mode, from a folder with config.json and model.safetensors, as transformers saves it.

    ValueError when it is no BERT with the exact GELU, or when arrays are missing or do not fit.
    """
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    kind = config.get("model_type"), config.get("hidden_act"), config.get("position_embedding_type", "absolute")
    if kind != ("bert", "gelu", "absolute"):
        raise ValueError(f"this must be a BERT with the exact GELU and absolute positions; it is {kind}")
    given, ours = load_file(Path(folder) / "model.safetensors"), {}
    for name in list(given):
        if ".self.query." in name:
            parts = [given.pop(name.replace("query", part)) for part in ("query", "key", "value")]
            given[name.replace("attention.self.query", "attn.qkv")] = torch.cat(parts)
    for name, array in given.items():
        for theirs, mine in RENAMED.items():
            name = name.replace(theirs, mine)
        if not name.startswith("pooler.") and not name.endswith("position_ids"):
            ours[name] = array
    model = MiniLM(config).eval()
    try:
        model.load_state_dict(ours)
    except RuntimeError as error:
        raise ValueError(f"the arrays in {folder} do not fit its config.json: {error}") from None
    return model


def mean_pool(states, keep):
    """The mean of states (B, T, C) where keep (B, T) is true, scaled to length 1: (B, C)."""
    keep = keep[..., None]
    return F.normalize((states * keep).sum(dim=1) / keep.sum(dim=1), dim=-1)


class Embedder:
    """Texts to vectors of length 1: all-MiniLM-L6-v2, from the kit's folder or another one of the same kind.

    A text is cut off after `max_length` tokens. ValueError for a folder that does not fit (see load_minilm).
    """

    def __init__(self, folder=None, max_length=256):
        folder = Path(folder or minilm_folder())
        self.model, self.max_length = load_minilm(folder), max_length
        with open(folder / "vocab.txt", encoding="utf-8") as file:
            self.tokenizer = WordPiece(line.rstrip("\n") for line in file)
        self.dim = self.model.norm.normalized_shape[0]

    def __call__(self, texts, batch_size=32):
        """Vectors (n, dim), float32, of n texts. ValueError for one string, or anything but strings."""
        if isinstance(texts, str):
            raise ValueError("texts must be a list of strings; put a single text into a list")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        ids = [self.tokenizer.encode(text, self.max_length) for text in texts]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # similar lengths together
        vectors = np.zeros((len(ids), self.dim), np.float32)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            vectors[rows] = self._batch([ids[i] for i in rows])
        return vectors

    @torch.inference_mode()
    def _batch(self, ids):
        lengths = torch.tensor([len(row) for row in ids])
        tokens = torch.full((len(ids), int(lengths.max())), self.tokenizer.ids["[PAD]"])
        for row, into in zip(ids, tokens):
            into[: len(row)] = torch.tensor(row)
        keep = torch.arange(tokens.shape[1]) < lengths[:, None]  # (B, T)
        return mean_pool(self.model(tokens, keep), keep).numpy()
