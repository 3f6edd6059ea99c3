"""The notebooks as the course sees them: where they are and what their metadata says."""

import json
from dataclasses import dataclass
from pathlib import Path

from llmscratch.kit.paths import SERIES, checkout

PREFIX = {"01_common_basis": "CB", "02_for_scientist": "4S", "03_for_engineer": "4E"}


@dataclass(frozen=True)
class Notebook:
    """One notebook: `id` is "CB09"; `about` its `llmscratch` metadata (CONTRIBUTING.md lists the keys)."""

    path: Path
    id: str
    title: str
    about: dict

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def series(self) -> str:
        return self.path.parent.name

    @property
    def number(self) -> str:
        return self.path.name[:2]


def course_root() -> Path:
    """The checkout that holds the notebooks: this package's, else the current folder's. Else FileNotFoundError."""
    for root in (checkout(), Path.cwd()):
        if root and (root / "01_common_basis").is_dir():
            return root
    raise FileNotFoundError(
        "no notebooks here: this copy of the course is the installed library alone. Clone the repository (its address "
        "is in the package's metadata) and run the command inside it."
    )


def notebooks(root: Path | None = None) -> list[Notebook]:
    """Every lesson in reading order. ValueError names a notebook that cannot be read."""
    root = root or course_root()
    found = []
    for series in SERIES:
        for path in sorted((root / series).glob("[0-9][0-9]_*.ipynb")):
            try:
                nb = json.loads(path.read_text(encoding="utf-8"))
                first = "".join(nb["cells"][0]["source"])
            except (json.JSONDecodeError, UnicodeDecodeError, KeyError, IndexError, TypeError) as error:
                problem = f"{type(error).__name__}: {error}"
                raise ValueError(f"{path} is not a notebook that can be read: {problem}") from error
            title = first.splitlines()[0].removeprefix("# ").strip() if first else path.stem
            about = nb.get("metadata", {}).get("llmscratch", {})
            found.append(Notebook(path, PREFIX[series] + path.name[:2], title, about))
    return found


def select(wanted: list[str], among: list[Notebook]) -> list[Notebook]:
    """The notebooks that the words name, in reading order, each once.

    A word is "tour", "all", a series ("01_common_basis", "CB"), an id ("CB09"), a name ("autograd", "09_autograd") or a
    path. ValueError for a word that names none, with the nearest that exist.
    """
    chosen = set()
    for word in wanted:
        hits = [nb for nb in among if _names(word, nb)]
        if not hits:
            raise ValueError(f"no lesson is called {word!r}. {_nearest(word, among)}")
        chosen.update(nb.path for nb in hits)
    return [nb for nb in among if nb.path in chosen]


def _names(word: str, nb: Notebook) -> bool:
    lower = word.lower().rstrip("/")
    if lower == "all" or (lower == "tour" and nb.about.get("tour")):
        return True
    if lower in (nb.series, PREFIX[nb.series].lower(), nb.id.lower(), nb.name.lower(), nb.name[3:].lower()):
        return True
    return Path(word).suffix == ".ipynb" and Path(word).resolve() == nb.path.resolve()


def _nearest(word: str, among: list[Notebook]) -> str:
    import difflib

    names = {key.lower(): nb for nb in among for key in (nb.id, nb.name[3:], nb.name)}
    close = difflib.get_close_matches(word.lower(), names, n=3, cutoff=0.5)
    near = list(dict.fromkeys(f"{names[key].id} {names[key].name[3:]}" for key in close))
    if near:
        return f"Did you mean {', or '.join(near)}?"
    return "`llmscratch list` shows them all; `tour` and `all` name groups."
