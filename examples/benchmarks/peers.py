"""Everybody who compresses or holds pages, side by side: the long form of `batchzip bench`.

    python examples/benchmarks/peers.py [--pages 8192] [--rounds 9] [--json FILE] [--pictures FOLDER]

All algorithms, batches from 1 to 1024, pages of a real process; then pages made to be hard (random, by turns
hard and easy) at one size of batch. As root, and where the kernel has it, zram takes part.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console

from batchzip.bench.compress import compress
from batchzip.bench.inputs import made_pages, workload_pages
from batchzip.bench.peers import ALGORITHMS
from batchzip.bench.result import Result, machine
from batchzip.bench.tables import compress_tables, swap_table
from batchzip.bench.working_set import working_set

_WIDTH = 130
"""Columns of a table of all batches, where nobody says how wide the terminal is."""


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--pages", type=int, default=8192)
    parser.add_argument("--batches", default="1,2,8,32,64,256,1024", help="with commas")
    parser.add_argument("--algorithms", default=",".join(ALGORITHMS), help="with commas")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pictures", type=Path, help="a folder for a picture of each source")
    options = parser.parse_args()
    batches = [int(size) for size in options.batches.split(",")]
    algorithms = options.algorithms.split(",")
    pages = workload_pages(options.pages - options.pages % max(batches))
    rows = compress(pages, algorithms, batches, options.rounds)
    rows += working_set(pages, algorithms, options.rounds)
    results = [Result("workload", len(pages), options.rounds, rows, machine())]
    for kind in ("random", "alternating"):
        made = made_pages(kind, len(pages))
        rows = compress(made, ["lz4"], [max(batches)], options.rounds)
        results.append(Result(kind, len(made), options.rounds, rows, machine()))
    console = Console()
    if console.width < _WIDTH:
        console = Console(width=_WIDTH)
    for result in results:
        console.print(f"{result.source}: {result.pages:,} pages, {result.machine}", markup=False)
        for table in compress_tables(result.rows):
            console.print(table)
    console.print(swap_table(results[0].rows))
    if options.json:
        options.json.write_text(json.dumps([result.document() for result in results], indent=2))
    if options.pictures:
        from batchzip.bench.pictures import picture  # noqa: PLC0415 - matplotlib is an extra

        picture(results[0], options.pictures / "peers.png")


if __name__ == "__main__":
    main()
