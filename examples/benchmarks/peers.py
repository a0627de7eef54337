"""Compress and restore batches with batchzip and with its alternatives.

    python examples/benchmarks/peers.py [--pid N | --file PATH | --workload KIND]
                                        [--algorithms lz4,zstd:-1,zstd:1,zstd:3,deflate:1]
                                        [--batches 1,2,8,32,64,256,1024] [--pages 4096]
                                        [--rounds 7] [--json FILE] [--plot PNG]

Each contender processes all pages once per round. Contenders take turns in a new random order each
round. batchzip/bench/compressors.py and peers.py describe them. zram is measured if the program
runs as root and the kernel supports it. compress.py compares the engine with its limit and goals.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from batchzip import algorithms
from batchzip.bench import compress, plot
from batchzip.bench.algorithm import parse_algorithms
from batchzip.bench.figure import Result, load
from batchzip.bench.pages import add_source, source_of, work_pages
from batchzip.bench.table import print_result
from batchzip.bench.zram import end_orderly


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_source(parser)
    usual = "lz4,zstd:-1,zstd:1,zstd:3"
    if "deflate" in algorithms():
        usual += ",deflate:1"
    parser.add_argument("--algorithms", default=usual, help="with commas (%(default)s)")
    parser.add_argument("--batches", default="1,2,8,32,64,256,1024", help="pages, with commas")
    parser.add_argument("--pages", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--show", type=Path, help="only show and draw what --json wrote")
    options = parser.parse_args()
    result = load(options.show) if options.show else measured(options)
    print_result(result)
    if options.json:
        result.save(options.json)
    if options.plot:
        plot.plot_compress(result, options.plot)


def measured(options: argparse.Namespace) -> Result:
    """Measure with the given options."""
    end_orderly()
    batches = [int(size) for size in options.batches.split(",")]
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
        batches,
        options.rounds,
        zram=not os.geteuid(),
    )
    return result


if __name__ == "__main__":
    main()
