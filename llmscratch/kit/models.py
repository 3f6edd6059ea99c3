"""Real models and word vectors, without a network: where their files are, checked by their sha256."""

from pathlib import Path

import numpy as np
import pyarrow.parquet

from llmscratch.kit.packages import package_file


def smollm2_file() -> Path:
    """The GGUF file (98 MB, mostly Q4_1) of SmolLM2-135M-Instruct: weights, tokenizer and chat template.

    DataUnavailable when the package that brings it is missing, or when the file is damaged.
    """
    sha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    return package_file("smollm2_file", "SmolLM2-135M-Instruct.Q4_1.gguf", sha256)


def minilm_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 as transformers reads it: model.safetensors (91 MB), config.json, vocab.txt …

    DataUnavailable when the package that brings it is missing, or when the weights are damaged.
    """
    sha256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    return package_file("minilm_folder", "model/model.safetensors", sha256).parent


def glove() -> tuple[list[str], np.ndarray]:
    """GloVe's 400,000 words, the most frequent first, and their vectors (400,000, 50), float32, read-only.

    The vectors stay on disk until they are read. DataUnavailable when the package that brings them is missing, or
    when a file is damaged.
    """
    names = package_file(
        "glove", "data/glove_6B_index.parquet", "02fd68e35358e9c8f75300bf0aec89c92de00bb446f1298c0e5de65f5f0e1e39"
    )
    vectors = package_file(
        "glove", "data/glove_6B_50d_emb.npy", "2d85b9db2ad8ddeb2e07474af9c9fb45a925d21c40878d4b365d189f13eb5a15"
    )
    return pyarrow.parquet.read_table(names)["index"].to_pylist(), np.load(vectors, mmap_mode="r")
