"""OpenAI's published vocabularies, without a network."""

from pathlib import Path

from llmscratch.kit.packages import package_file

# Name to the name of tiktoken's cache file, which is the sha1 of the address it comes from, and to the file's sha256.
FILES = {
    "cl100k_base": (
        "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    ),
    "o200k_base": (
        "fb374d419588a4632f3f557e76b4b70aebbca790",
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    ),
}


def tiktoken_file(name: str = "cl100k_base") -> Path:
    """The file of a vocabulary in tiktoken's format, "cl100k_base" (GPT-4) or "o200k_base" (GPT-4o).

    Its folder can serve as TIKTOKEN_CACHE_DIR; then `tiktoken.get_encoding(name)` asks no network. ValueError for
    another name; DataUnavailable when the package that brings the files is missing or not whole.
    """
    if name not in FILES:
        raise ValueError(f"the vocabularies are {' and '.join(map(repr, FILES))}, got {name!r}")
    file, sha256 = FILES[name]
    return package_file("tiktoken_file", f"core/_static/tiktoken_cache/{file}", sha256)
