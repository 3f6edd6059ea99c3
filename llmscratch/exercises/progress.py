"""The reader's progress: a small JSON file in the reader's own folder, never half-written."""

import json
import os
import sys
import tempfile

from llmscratch.kit.paths import reader_folder


def _file():
    return reader_folder() / "progress.json"


def load() -> dict[str, dict[str, str]]:
    """{"CB07": {"1": "right", "2": "wrong"}, …}; empty when nothing was checked yet.

    Raises ValueError when the file cannot be read as progress; it is left as it is.
    """
    path = _file()
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a progress file ({error}); move it away to start afresh") from error
    if not isinstance(kept, dict) or not all(isinstance(lesson, dict) for lesson in kept.values()):
        raise ValueError(f"{path} is not a progress file; move it away to start afresh")
    return kept


def record(lesson: str, number: int, state: str) -> None:
    """Keep a verdict. An exercise once right stays right. A folder that cannot be written to is said, not fatal."""
    try:
        kept = load()
        exercises = kept.setdefault(lesson, {})
        if exercises.get(str(number)) in ("right", state):
            return
        exercises[str(number)] = state
        _write(kept)
    except (OSError, ValueError) as error:
        print(f"your progress was not kept: {error}", file=sys.stderr)


def _write(kept: dict) -> None:
    path = _file()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix="progress-", suffix=".json")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(kept, file, indent=1, sort_keys=True)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
