"""Where the course's files are: the checkout, the data and assets, the reader's own folder."""

import os
from pathlib import Path

import platformdirs

PACKAGE = Path(__file__).resolve().parent.parent
SERIES = {"01_common_basis": "basis", "02_for_scientist": "scientist", "03_for_engineer": "engineer"}


def checkout() -> Path | None:
    """The root of the checkout that this package is imported from; None for an installed copy (a wheel, Colab)."""
    root = PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() and (root / "01_common_basis").is_dir() else None


def _shipped(folder: str, name: str) -> Path:
    root = checkout()
    base = root / folder if root else PACKAGE / "_shipped" / folder
    path = base / name
    if not path.exists():
        there = sorted(p.relative_to(base).as_posix() for p in base.rglob("*") if p.is_file())
        raise FileNotFoundError(
            f"the course ships no {folder}/{name}; it ships: {', '.join(there) or 'nothing'}. "
            "If the file should be there, install the course again."
        )
    return path


def data_file(name: str) -> Path:
    """Path of `data/<name>`, in a checkout and in an installed copy alike. FileNotFoundError lists what there is."""
    return _shipped("data", name)


def asset_file(name: str) -> Path:
    """Path of `assets/<name>` (pictures, checkpoints). FileNotFoundError lists what there is."""
    return _shipped("assets", name)


def reader_folder() -> Path:
    """The folder that keeps the reader's progress: `LLMSCRATCH_HOME`, or the system's place for user data."""
    chosen = os.environ.get("LLMSCRATCH_HOME")
    return Path(chosen).expanduser() if chosen else platformdirs.user_data_path("llmscratch", appauthor=False)
