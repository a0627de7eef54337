"""The commands: their arguments, examples and help. What they do is imported when one is run."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from batchzip.cli.arguments import (
    OneOrTwo,
    Parser,
    microseconds,
    natural,
    page_size,
    png,
    positive,
    positives,
    seconds,
    size,
)
from batchzip.cli.version import ShowVersion
from batchzip.codecs.shuffled import ELEMENT_SIZES, FLOATS

if TYPE_CHECKING:
    from typing import Any

_EXIT_CODES = """
exit codes: 0 all went well; 1 a page came back different, or something got slower; 2 bad input, said in one line;
130 interrupted with Ctrl-C; 143 ended by SIGTERM; 141 the reader of the output went away
"""

_EXAMPLES = """\
examples:
  batchzip advise --values FILE    what the values of a cache would take, and in what to keep them
  batchzip advise --pid 4711       what compressing a process's memory would bring, and with what
  batchzip swap                    a workload of its own through a store and back
  batchzip bench                   how it stands beside what you would use instead
  batchzip top                     a store while it runs
  batchzip algorithms              what pages can be compressed with here
  batchzip swap --help             every option of a command, with more examples
"""

_SWAP_EXAMPLES = """\
examples:
  batchzip swap                                  a workload of its own, every backend
  batchzip swap --pid 4711 --algorithm lz4       the memory of a running process
  batchzip swap --file dump.bin --level 3        a file, however large
  batchzip swap --limit 16M                      see what a small pool rejects
  batchzip swap --classes                        and how the pool's memory is divided
  batchzip swap --json | python -m json.tool     every figure, for programs
"""

_SWAP = """\
Store all pages of a process or a file in a compressed store, load them back in random
order, compare every byte, and say how long it took: with the sequential backend and, beside
it, with threads and with worker processes. Threads are left out for an algorithm that runs in
Python (batchzip algorithms says which). Without --pid and --file the pages are those of a
small workload started for it.

Memory needed: a compressed copy for each backend; of a process one uncompressed copy, too,
of a file only a few MiB.
"""
_ALGORITHMS = """\
List the registered algorithms with their parameters and their defaults, and how to install
what those that cannot be used here need. Say which of them are C functions that run without the
interpreter here, so that threads can use several CPUs, and which C libraries were found.
"""

_ALGORITHMS_EXAMPLES = """\
examples:
  batchzip algorithms             a table
  batchzip algorithms --json      the same for programs
"""


_ADVISE = """\
With --values: measure what the values of a cache take in a dict, in a dict of compressed bytes
and in a CompressedMapping of several kinds, each in a fresh process, with the cost of put and
get, and print code for the best one. FILE has one JSON value in each line, or is a folder
of files, a table of an SQLite file (FILE:TABLE), or with --pickle a pickled dict or list. If values are
objects, the serializers that take all of them are tried. Lines are bytes, with --parsed objects.

With --pid or --file: sample memory pages, and say what zswap or a SwapStore would bring, which
is not what replacing a dict would: memory saved, and what a store and a load of one page cost,
for each algorithm with pages of 4, 16 and 64 KiB, with and without shuffled bytes and a
dictionary trained on other pages of the sample. Without a source the pages are those of a small
workload started for it. Costs are processor time of one core, in process.
"""

_ADVISE_EXAMPLES = """\
examples:
  batchzip advise --values values.jsonl           what to keep these values in
  batchzip advise --values values.jsonl --parsed  the same, if it holds them as dicts and lists
  batchzip advise --values cache.sqlite:entries   the rows of a table
  batchzip advise --values cache.pickle --pickle  a pickled dict that you trust
  batchzip advise --pid 4711                      the memory of a running process
  batchzip advise --file dump.bin --sample 32M    a file, looked at more closely
  batchzip advise --algorithm lz4 --algorithm zstd --all
  batchzip advise --pid 4711 --plot advice.png    a picture (pip install matplotlib)
  batchzip advise --file dump.bin --json | python -m json.tool
"""


_BENCH = """\
Compress and restore batches, and store and load a working set, with batchzip and with what
one would use instead: a bare loop of codec calls, a thread pool, loky, python-zstandard, a dict of
bytes; blosc2, if it is installed; zram with --zram. They take turns; figures are medians of
the rounds. Absolute times mean nothing on another machine, or in another hour: read across a row.

--compare divides each figure by its baseline of the same run (the bare loop, the dict). Slower is
what is worse by more than 5 % with quartiles that do not overlap.
"""

_BENCH_EXAMPLES = """\
examples:
  batchzip bench                                 everybody, on a workload of its own
  batchzip bench --pid 4711 --algorithms zstd:3  on the memory of a running process
  batchzip bench --plot bench.png                pictures, too: bench.png and bench-swap.png
  batchzip bench --json > old.json               keep the result …
  batchzip bench --compare old.json              … measure again, and see what got slower
  batchzip bench --compare old.json new.json     compare two results without measuring
"""


_COMPLETION = """\
Print a script that teaches a shell the commands, options and algorithms there are now. It
needs shtab: pip install shtab
"""

_COMPLETION_EXAMPLES = """\
examples:
  eval "$(batchzip completion bash)"                     in ~/.bashrc
  batchzip completion zsh > ~/.zsh/functions/_batchzip   in a folder of fpath
"""


_TOP = """\
Show how a store stands while it runs: its size against its limit, ratio, pages stored, loaded
and written back a second, rejections by cause, workers and their load, groups, size classes; and
how long calls take, of a random one in 64 since the last look, or ever if none was timed since.
The store's process has to call store.share(), and belong to the same user. Without an address
the one store that is shared is shown. q quits.

--dask shows the sharded stores (batchzip.dask.ShardedStore) of a Dask cluster: of each shard its pages,
its pool against its limit, what it has spilt to disk, and pages stored and loaded a second.
"""

_TOP_EXAMPLES = """\
examples:
  batchzip top                       the one store that is shared
  batchzip top 4711                  that of process 4711
  batchzip top /proc/4711/fd/12      by its address: store.share().address
  batchzip top --once                one look, for pipes and files
  batchzip top --dask tcp://host:8786   the sharded stores of a Dask cluster
"""


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the whole command line."""
    parser = Parser(
        prog="batchzip",
        description="Keep many page-sized buffers compressed in RAM.",
        epilog=_EXAMPLES + _EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version",
        action=ShowVersion,
        nargs=0,
        dest=argparse.SUPPRESS,
        default=argparse.SUPPRESS,
        help="print the version, the C libraries that were found and how the core was built",
    )
    commands = parser.add_subparsers(dest="command", metavar="command")
    _add_advise(commands)
    _add_swap(commands)
    _add_bench(commands)
    _add_top(commands)
    _add_algorithms(commands)
    _add_completion(commands)
    return parser


def _add(commands: Any, name: str, summary: str, description: str, examples: str) -> Any:
    return commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=examples + _EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_source(parser: Any) -> Any:
    group = parser.add_mutually_exclusive_group()
    add = group.add_argument
    add("--pid", type=positive, metavar="N", help="anonymous memory of process N")
    add("--file", metavar="PATH", help="a file of any size; its last page is filled up with zeros")
    return group


def _add_advise(commands: Any) -> None:
    summary = "say what compressing values, a process's memory or a file would bring, and with what"
    parser = _add(commands, "advise", summary, _ADVISE, _ADVISE_EXAMPLES)
    group = _add_source(parser)
    group.add_argument(
        "--values", metavar="FILE", help="values of a cache; see above for the kinds"
    )
    add = parser.add_argument
    add(
        "--pickle",
        action="store_true",
        help="FILE is a pickle that you trust: reading it runs whatever code it holds",
    )
    add(
        "--parsed",
        action="store_true",
        help="the cache holds what the lines of FILE say, as dicts and lists, and not their bytes",
    )
    add("--sample", type=size, metavar="SIZE", help="bytes looked at (8M, of values 64M)")
    add(
        "--algorithm",
        action="append",
        dest="algorithms",
        metavar="NAME",
        help="try this one; may be given more than once (all that batchzip algorithms lists)",
    )
    add(
        "--max-load-us",
        type=microseconds,
        metavar="US",
        help="most that a load of a page may take to be recommended (25 µs)",
    )
    add("--all", action="store_true", help="print every setting, not only those of interest")
    add("--json", action="store_true", help="one JSON document with all figures instead of a table")
    add("--plot", metavar="FILE", help="draw memory saved against time of a load, as .png, .svg, …")
    add("--seed", type=natural, default=0, metavar="N", help="of where to look (%(default)s)")


def _add_algorithms(commands: Any) -> None:
    summary = "list the algorithms there are, and how to install those there are not"
    parser = _add(commands, "algorithms", summary, _ALGORITHMS, _ALGORITHMS_EXAMPLES)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")


def _add_swap(commands: Any) -> None:
    summary = "store the memory of a process or a file, load it back, compare, measure"
    swap = _add(commands, "swap", summary, _SWAP, _SWAP_EXAMPLES)
    _add_source(swap)
    add = swap.add_argument
    add("--algorithm", default="zstd", metavar="NAME", help="see batchzip algorithms (%(default)s)")
    add("--level", type=int, metavar="N", help="level of the algorithm, if it has any")
    add(
        "--shuffle",
        type=lambda text: int(text) if text.isdecimal() else text,
        choices=(*ELEMENT_SIZES, *FLOATS),
        help="bytes of the numbers in the pages, f2, f4 or f8 for floating-point ones: compressed with "
        "their bytes sorted by place",
    )
    add(
        "--batch",
        type=positive,
        default=256,
        metavar="N",
        help="pages loaded together (%(default)s)",
    )
    add(
        "--folio",
        type=positive,
        default=256,
        metavar="N",
        help="pages stored together (%(default)s)",
    )
    add(
        "--workers",
        type=positive,
        metavar="N",
        help="threads, and worker processes, besides the caller (one less than CPUs, at least 1)",
    )
    add("--limit", type=size, metavar="SIZE", help="most bytes a pool may hold, as in 64M (none)")
    add("--page-size", type=page_size, default=4096, metavar="N", help="bytes (%(default)s)")
    add("--json", action="store_true", help="one JSON document with all figures instead of a table")
    add("--classes", action="store_true", help="print what each size class of the pools holds, too")
    add("--seed", type=natural, default=0, metavar="N", help="of the random order (%(default)s)")
    add(
        "--workload-mib",
        type=positive,
        default=64,
        metavar="N",
        help="size of the workload in MiB (%(default)s)",
    )


def _add_bench(commands: Any) -> None:
    summary = "measure batchzip beside what one would use instead; compare two results"
    parser = _add(commands, "bench", summary, _BENCH, _BENCH_EXAMPLES)
    add = parser.add_mutually_exclusive_group().add_argument
    add("--pid", type=positive, metavar="N", help="anonymous memory of process N")
    add("--file", metavar="PATH", help="pages drawn from a file")
    add(
        "--workload",
        choices=("captured", "random", "zeros", "alternating"),
        default="captured",
        help="pages of a process started for it, or what is hard on purpose (%(default)s)",
    )
    add = parser.add_argument
    add(
        "--algorithms",
        default="lz4,zstd:1",
        metavar="LIST",
        help="with commas, a level after a colon (%(default)s)",
    )
    add(
        "--batches",
        type=positives,
        default=[8, 64, 256],
        metavar="LIST",
        help="pages of a batch, with commas (8,64,256)",
    )
    add("--pages", type=positive, default=2048, metavar="N", help="pages measured (%(default)s)")
    add("--rounds", type=positive, default=5, metavar="N", help="(%(default)s)")
    add("--zram", action="store_true", help="make a zram device and measure it; root only")
    add("--json", action="store_true", help="the result as JSON, instead of tables")
    add("--plot", type=png, metavar="PNG", help="draw pictures: PNG, and beside it …-swap.png")
    add(
        "--compare",
        nargs="+",
        action=OneOrTwo,
        metavar="JSON",
        help="say what got slower since this result; with a second one nothing is measured",
    )


def _add_top(commands: Any) -> None:
    summary = "show a running store: size, ratio, traffic, rejections, workers, size classes"
    parser = _add(commands, "top", summary, _TOP, _TOP_EXAMPLES)
    add = parser.add_argument
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "address", nargs="?", metavar="ADDRESS", help="of store.share(), or a process id"
    )
    group.add_argument(
        "--dask", metavar="SCHEDULER", help="address of a Dask scheduler, or of a sharded store"
    )
    add(
        "--interval",
        type=seconds,
        default=1.0,
        metavar="S",
        help="seconds between two looks (%(default)g)",
    )
    add("--once", action="store_true", help="print one look and end")


def _add_completion(commands: Any) -> None:
    summary = "print a completion script for a shell"
    parser = _add(commands, "completion", summary, _COMPLETION, _COMPLETION_EXAMPLES)
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell")
