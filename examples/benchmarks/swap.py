"""Store whole working sets and load them again, with batchzip and with its alternatives.

    python examples/benchmarks/swap.py [--pid N | --file PATH | --compile ARGS | --workload KIND]
                                       [--pages 16384] [--algorithms lz4,zstd:1] [--rounds 5]
                                       [--json FILE | --show FILE] [--plot PNG]

In a round, a contender stores all pages in folios of 16 pages (`1 MiB folios`: of 256), loads them
in random order in batches of 256, and loads 10,000 single pages at random, each of which is timed.
In the first round, every loaded page is compared. batchzip/bench/stores.py and peer_stores.py
describe the contenders. `held ÷ size` is memory per byte of the pages, as each contender reports
it. zram and the kernel's swap on zram are measured if the program runs as root and the kernel
supports them.

The kernel's swap takes no pages by number. Its rows are anonymous memory with these pages: to store
is to swap out a folio, or a page, by MADV_PAGEOUT, and to load is to touch a page. Filling the
memory beforehand, and swapping out again what was loaded, are not timed.

`workers, half in file` keeps at most half of the compressed bytes in its pool. The rest is in a
file in the directory for temporary files. Writing and syncing the file is included in the times.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from batchzip.bench import plot, swap
from batchzip.bench.ahead import ahead
from batchzip.bench.algorithm import DEFAULT, parse_algorithms
from batchzip.bench.figure import Result
from batchzip.bench.kernel_swap import KernelSwap
from batchzip.bench.pages import add_source, source_of
from batchzip.bench.script import Script
from batchzip.bench.table import swap_tables
from batchzip.bench.zram import end_orderly

if TYPE_CHECKING:
    import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_source(parser)
    parser.add_argument("--algorithms", default=DEFAULT, help="with commas (%(default)s)")
    parser.add_argument("--pages", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=5)


def measure(options: argparse.Namespace) -> Result:
    """Measure with the given options."""
    end_orderly()
    source = source_of(options)
    pages = source.take(options.pages)
    settings = {"source": source.name, "pages": len(pages), "rounds": options.rounds}
    result = Result(settings, {"swap": swap.BASELINE})
    if os.geteuid():
        result.note("zram: only root may make a device")
    with KernelSwap(2 * pages.nbytes) as kernel:
        if kernel.missing:
            result.note(kernel.missing)
        swap.swap(
            result,
            pages,
            parse_algorithms(options.algorithms),
            options.rounds,
            zram=not os.geteuid(),
            kernel=None if kernel.missing else kernel,
        )
    return result


SCRIPT = Script(__doc__, add_options, measure, swap_tables, ahead, plot.plot_swap)

if __name__ == "__main__":
    SCRIPT.main()
