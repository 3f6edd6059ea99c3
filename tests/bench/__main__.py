"""python -m tests.bench: measure every row, print the table, write it as JSON and, when asked, into the README."""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from llmscratch.kit.upkeep import replace_between
from tests import bench

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: list[str] | None = None, rows: list[bench.Row] | None = None) -> int:
    """Run the command over `rows` (default: all that are registered). 1 when a bound is not met or a row failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "bench.json", metavar="FILE")
    parser.add_argument(
        "--readme", type=Path, nargs="?", const=ROOT / "README.md", metavar="FILE",
        help="also rewrite the table between the bench markers of this file (default: the course's README)",
    )  # fmt: skip
    chosen = parser.parse_args(arguments)
    rows = bench.discover() if rows is None else rows
    if not rows:
        print("no benchmarks: no module of tests/bench registers a row", file=sys.stderr)
        return 1
    results = bench.measure(rows)
    said = bench.report(results)
    table = Table(*bench.HEAD, title=f"{said['machine']['cpu']}, {said['machine']['cores']} cores, {said['date']}")
    for result in results:
        table.add_row(*bench.cells(result))
    Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 150).print(table)
    chosen.json.parent.mkdir(parents=True, exist_ok=True)
    chosen.json.write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written: {chosen.json}")
    if chosen.readme:
        text = replace_between(chosen.readme.read_text(encoding="utf-8"), "bench", bench.markdown(results, said))
        chosen.readme.write_text(text, encoding="utf-8", newline="\n")
        print(f"written: {chosen.readme}")
    return 0 if all(result.met for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
