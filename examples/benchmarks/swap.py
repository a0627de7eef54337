"""Store whole working sets and load them again, with batchzip and with its alternatives.

    python examples/benchmarks/swap.py [--pid N | --file PATH | --workload KIND] [--pages 16384]
                                       [--algorithms lz4,zstd:1] [--rounds 5]
                                       [--json FILE] [--plot PNG]

In a round, a contender stores all pages in folios of 16 pages (`1 MiB folios`: of 256), loads them
in random order in batches of 256, and loads 10,000 single pages at random, each of which is timed.
In the first round, every loaded page is compared. batchzip/bench/stores.py and peer_stores.py
describe the contenders. `held ÷ size` is memory per byte of the pages, as each contender reports
it. zram is measured if the program runs as root and the kernel supports it.

`workers, half in file` keeps at most half of the compressed bytes in its pool. The rest is in a
file in the directory for temporary files. Writing and syncing the file is included in the times.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from batchzip.bench import plot, swap
from batchzip.bench.algorithm import parse_algorithms
from batchzip.bench.figure import Result, load
from batchzip.bench.pages import add_source, source_of
from batchzip.bench.table import print_result
from batchzip.bench.zram import end_orderly


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_source(parser)
    parser.add_argument("--algorithms", default="lz4,zstd:1")
    parser.add_argument("--pages", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--show", type=Path, help="only show and draw what --json wrote")
    options = parser.parse_args()
    result = load(options.show) if options.show else measured(options)
    print_result(result)
    if options.json:
        result.save(options.json)
    if options.plot:
        plot.plot_swap(result, options.plot)


def measured(options: argparse.Namespace) -> Result:
    """Measure with the given options."""
    end_orderly()
    source = source_of(options)
    pages = source.take(options.pages)
    settings = {"source": source.name, "pages": len(pages), "rounds": options.rounds}
    result = Result(settings, {"swap": swap.BASELINE})
    if os.geteuid():
        result.note("zram: only root may make a device")
    swap.swap(
        result,
        pages,
        parse_algorithms(options.algorithms),
        options.rounds,
        zram=not os.geteuid(),
    )
    return result


if __name__ == "__main__":
    main()
