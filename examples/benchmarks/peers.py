"""Compress and restore batches with batchzip and with its alternatives.

    python examples/benchmarks/peers.py [--pid N | --file PATH | --compile ARGS | --workload KIND]
                                        [--algorithms lz4,zstd:-1,zstd:1,zstd:3,deflate:1]
                                        [--batches 1,2,8,32,64,256,1024] [--pages 4096]
                                        [--rounds 7] [--json FILE | --show FILE] [--plot PNG]

Each contender processes all pages once per round. Contenders take turns in a new random order each
round. batchzip/bench/compressors.py and peers.py describe them. zram is measured if the program
runs as root and the kernel supports it. compress.py compares the engine with its limit and goals.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from batchzip import algorithms
from batchzip.bench import compress, plot
from batchzip.bench.ahead import ahead
from batchzip.bench.algorithm import parse_algorithms
from batchzip.bench.figure import Result
from batchzip.bench.pages import add_source, source_of, work_pages
from batchzip.bench.script import Script, integers
from batchzip.bench.table import compress_tables
from batchzip.bench.zram import end_orderly

if TYPE_CHECKING:
    import argparse

BATCHES = [1, 2, 8, 32, 64, 256, 1024]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_source(parser)
    usual = "lz4,zstd:-1,zstd:1,zstd:3"
    if "deflate" in algorithms():
        usual += ",deflate:1"
    parser.add_argument("--algorithms", default=usual, help="with commas (%(default)s)")
    parser.add_argument("--batches", type=integers, default=BATCHES, help="pages, with commas")
    parser.add_argument("--pages", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=7)


def measure(options: argparse.Namespace) -> Result:
    """Measure with the given options."""
    end_orderly()
    source = source_of(options)
    pages = work_pages(source, options.pages)
    settings = {"source": source.name, "pages": len(pages), "rounds": options.rounds}
    result = Result(settings, {"compress": compress.BASELINE})
    if os.geteuid():
        result.note("zram: only root may make a device")
    compress.compress(
        result,
        pages,
        parse_algorithms(options.algorithms),
        options.batches,
        options.rounds,
        zram=not os.geteuid(),
    )
    return result


SCRIPT = Script(__doc__, add_options, measure, compress_tables, ahead, plot.plot_compress)

if __name__ == "__main__":
    SCRIPT.main()
