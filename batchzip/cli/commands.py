"""The commands: their arguments, examples and help. A command's module is imported when it runs."""

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
    shuffle,
    size,
)
from batchzip.cli.help import HelpFormatter
from batchzip.cli.version import ShowVersion

if TYPE_CHECKING:
    from typing import Any

_EXIT_CODES = """
exit codes:
  0    success
  1    a page came back different (swap), or a figure became slower (bench --compare)
  2    bad input; one line on stderr says what to change
  3    a figure of the old result was not measured (bench --compare)
  130  interrupted by Ctrl-C
  141  the reader of the output closed it
  143  ended by SIGTERM
"""

_EXAMPLES = """\
examples:
  batchzip advise --values FILE    how to keep the values of a cache, and what that saves
  batchzip advise --pid 4711       what compressing a process's memory would save, and with what
  batchzip swap                    store a sample workload, load it back and compare
  batchzip bench                   measure batchzip beside its alternatives
  batchzip top                     watch a running store
  batchzip algorithms              list the algorithms that are usable here
  batchzip swap --help             show every option of a command, with more examples
"""

_SWAP_EXAMPLES = """\
examples:
  batchzip swap                                  a sample workload, every backend
  batchzip swap --pid 4711 --algorithm lz4       the memory of a running process
  batchzip swap --file dump.bin --level 3        a file of any size
  batchzip swap --limit 16M                      see what a small pool rejects
  batchzip swap --classes                        see how the pool's memory is divided, too
  batchzip swap --json | python -m json.tool     every figure, for programs
"""

_SWAP = """\
Store all pages of a process or a file in a compressed store, load them back in random order,
compare every byte, and report the times: with the sequential backend and, beside it, with threads
and with worker processes. Threads are left out for an algorithm that runs in Python (see batchzip
algorithms). Without --pid and --file, a small sample workload is started and its pages are used.

Memory needed: a compressed copy per backend. A process needs an uncompressed copy, too; a file
needs only a few MiB more.
"""
_ALGORITHMS = """\
List the registered algorithms with their parameters and defaults, and the command that installs
what is missing. The table tells which of them are C functions that run without the interpreter, so
that threads can use several CPUs. The C libraries that were found are listed below it.
"""

_ALGORITHMS_EXAMPLES = """\
examples:
  batchzip algorithms             a table
  batchzip algorithms --json      the same for programs
"""


_ADVISE = """\
With --values: measure the memory that the values of a cache take in a dict, in a dict of compressed
bytes and in several kinds of CompressedMapping, each in a fresh process, and the time of a put and
a get. Print the code of the best one. FILE has one JSON value per line, or is a folder of files, a
table of an SQLite file (FILE:TABLE) or, with --pickle, a pickled dict or list. If values are
objects, every serializer that accepts all of them is tried. Lines count as bytes, with --parsed as
objects.

With --pid or --file: sample memory pages and report what zswap or a SwapStore would save, which is
not what replacing a dict would save. Each algorithm is tried with pages of 4, 16 and 64 KiB, with
and without shuffled bytes, and with and without a dictionary trained on other pages of the sample.
Without a source, a small sample workload is started and its pages are used. Times are processor
time of one core, in process.
"""

_ADVISE_EXAMPLES = """\
examples:
  batchzip advise --values values.jsonl           how to keep these values
  batchzip advise --values values.jsonl --parsed  the same for a cache of dicts and lists
  batchzip advise --values cache.sqlite:entries   the rows of a table
  batchzip advise --values cache.pickle --pickle  a pickled dict that you trust
  batchzip advise --pid 4711                      the memory of a running process
  batchzip advise --file dump.bin --sample 32M    a file, with a larger sample
  batchzip advise --algorithm lz4 --algorithm zstd --all
  batchzip advise --pid 4711 --plot advice.png    a picture (pip install matplotlib)
  batchzip advise --file dump.bin --json | python -m json.tool
"""


_BENCH = """\
Compress and restore batches, and store and load a working set, with batchzip and with its
alternatives: a bare loop of codec calls, a thread pool, loky, python-zstandard, a dict of bytes,
blosc2 if it is installed, and zram with --zram. They take turns, and each figure is the median of
the rounds. Absolute times depend on the machine and the hour: compare the lines of one table.

--compare divides each figure by its baseline of the same run (the bare loop, the dict). A figure is
slower if it is worse by more than 5 % and its quartiles do not overlap the old ones. The exit code
is 1 if a figure became slower, and 3 if a figure of the old result was not measured.
"""

_BENCH_EXAMPLES = """\
examples:
  batchzip bench                                 everything, on a sample workload
  batchzip bench --pid 4711 --algorithms zstd:3  on the memory of a running process
  batchzip bench --plot bench.png                pictures, too: bench.png and bench-swap.png
  batchzip bench --json old.json                 keep the result …
  batchzip bench --compare old.json              … measure again, and list what became slower
  batchzip bench --compare old.json new.json     compare two results without measuring
"""


_COMPLETION = """\
Print a script that completes the commands, the options and the algorithms that are usable now. It
needs shtab: pip install shtab
"""

_COMPLETION_EXAMPLES = """\
examples:
  eval "$(batchzip completion bash)"                     in ~/.bashrc
  batchzip completion zsh > ~/.zsh/functions/_batchzip   in a folder of fpath
"""


_TOP = """\
Show a running store: its size against its limit, its ratio, the pages stored, loaded and written
back per second, rejections by cause, latencies, groups, workers, paged memories and size classes.
One call in 64 is timed. Latencies are those since the last look or, if none was timed since then,
of all time.

The store's process must call store.share() and run as the same user. Without an address, the only
shared store is shown. The full view needs textual: pip install textual. Without it, and where
stdout is no terminal or TERM is dumb, one look is printed.

--dask shows the sharded stores (batchzip.dask.ShardedStore) of a Dask cluster: for each shard its
pages, its pool against its limit, the bytes spilled to disk, and the pages stored and loaded per
second.
"""

_TOP_EXAMPLES = """\
examples:
  batchzip top                          the only store that is shared
  batchzip top 4711                     the store of process 4711
  batchzip top /proc/4711/fd/12         a store by its address: store.share().address
  batchzip top --once                   one look, for pipes and files
  batchzip top --dask tcp://host:8786   the sharded stores of a Dask cluster

keys:
  1 … 9        show a table
  left, right  show the table before or after
  s, r         sort by the next column; reverse the order (or click on a heading)
  /            show only lines that contain a text
  space        pause
  q            quit
"""


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the whole command line."""
    parser = Parser(
        prog="batchzip",
        description="Keep many page-sized buffers compressed in RAM.",
        epilog=_EXAMPLES + _EXIT_CODES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--version",
        action=ShowVersion,
        nargs=0,
        dest=argparse.SUPPRESS,
        default=argparse.SUPPRESS,
        help="print the version, the C libraries that were found and how the core was built",
    )
    commands = parser.add_subparsers(dest="command", metavar="command", prog="batchzip")
    _add_advise(commands)
    _add_swap(commands)
    _add_bench(commands)
    _add_top(commands)
    _add_algorithms(commands)
    _add_completion(commands)
    return parser


def _add(
    commands: Any,
    name: str,
    summary: str,
    description: str,
    examples: str,
    usage: str = "[options]",
) -> Any:
    return commands.add_parser(
        name,
        help=summary,
        usage=f"%(prog)s {usage}",
        description=description,
        epilog=examples + _EXIT_CODES,
        formatter_class=HelpFormatter,
    )


def _add_source(parser: Any) -> Any:
    group = parser.add_mutually_exclusive_group()
    add = group.add_argument
    add("--pid", type=positive, metavar="N", help="anonymous memory of process N")
    add("--file", metavar="PATH", help="a file of any size; its last page is padded with zeros")
    return group


def _add_advise(commands: Any) -> None:
    summary = "tell what compressing values, a process's memory or a file would save, and with what"
    parser = _add(commands, "advise", summary, _ADVISE, _ADVISE_EXAMPLES)
    group = _add_source(parser)
    group.add_argument("--values", metavar="FILE", help="values of a cache, of the kinds above")
    add = parser.add_argument
    add(
        "--pickle",
        action="store_true",
        help="FILE is a pickle that you trust: reading it runs the code that it holds",
    )
    add(
        "--parsed",
        action="store_true",
        help="the cache holds the lines of FILE as dicts and lists instead of their bytes",
    )
    add("--sample", type=size, metavar="SIZE", help="bytes to sample (8M; for values 64M)")
    add(
        "--algorithm",
        action="append",
        dest="algorithms",
        metavar="NAME",
        help="try this algorithm; may be repeated (all that batchzip algorithms lists)",
    )
    add(
        "--max-load-us",
        type=microseconds,
        metavar="US",
        help="longest load of a page that may be recommended, in µs (25)",
    )
    add("--all", action="store_true", help="print every setting, not only those of interest")
    add("--json", action="store_true", help="one JSON document with all figures instead of a table")
    add(
        "--plot",
        metavar="FILE",
        help="draw the memory saved over the time of a load, as .png, .svg, …",
    )
    add("--seed", type=natural, default=0, metavar="N", help="seed of the sample (%(default)s)")


def _add_algorithms(commands: Any) -> None:
    summary = "list the algorithms, and how to install what is missing"
    parser = _add(commands, "algorithms", summary, _ALGORITHMS, _ALGORITHMS_EXAMPLES)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")


def _add_swap(commands: Any) -> None:
    summary = "store the memory of a process or a file, load it back, compare, measure"
    swap = _add(commands, "swap", summary, _SWAP, _SWAP_EXAMPLES)
    _add_source(swap)
    add = swap.add_argument
    add("--algorithm", default="zstd", metavar="NAME", help="see batchzip algorithms (%(default)s)")
    add("--level", type=int, metavar="N", help="level of the algorithm, if it has levels")
    add(
        "--shuffle",
        type=shuffle,
        metavar="KIND",
        help="group the bytes of numbers by position before compressing: the size of a number "
        "(2, 4, 8), or f2, f4, f8 for floating point",
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
        help="threads, and worker processes, besides the caller (CPUs − 1, at least 1)",
    )
    add("--limit", type=size, metavar="SIZE", help="largest size of a pool, as in 64M (unlimited)")
    add(
        "--page-size",
        type=page_size,
        default=4096,
        metavar="N",
        help="bytes of a page (%(default)s)",
    )
    add("--json", action="store_true", help="one JSON document with all figures instead of a table")
    add("--classes", action="store_true", help="print what each size class of the pools holds, too")
    add(
        "--seed",
        type=natural,
        default=0,
        metavar="N",
        help="seed of the random order (%(default)s)",
    )
    add(
        "--workload-mib",
        type=positive,
        default=64,
        metavar="N",
        help="size of the workload in MiB (%(default)s)",
    )


def _add_bench(commands: Any) -> None:
    summary = "measure batchzip beside its alternatives; compare two results"
    parser = _add(commands, "bench", summary, _BENCH, _BENCH_EXAMPLES)
    add = parser.add_mutually_exclusive_group().add_argument
    add("--pid", type=positive, metavar="N", help="anonymous memory of process N")
    add("--file", metavar="PATH", help="pages drawn from a file")
    add(
        "--workload",
        choices=("captured", "random", "zeros", "alternating"),
        default="captured",
        metavar="KIND",
        help="captured: pages of a sample workload; random, zeros, alternating: deliberately hard "
        "pages (%(default)s)",
    )
    add = parser.add_argument
    add(
        "--algorithms",
        default="lz4,zstd:1",
        metavar="LIST",
        help="separated by commas, a level after a colon (%(default)s)",
    )
    add(
        "--batches",
        type=positives,
        default=[8, 64, 256],
        metavar="LIST",
        help="pages per batch, separated by commas (8,64,256)",
    )
    add("--pages", type=positive, default=2048, metavar="N", help="number of pages (%(default)s)")
    add("--rounds", type=positive, default=5, metavar="N", help="number of rounds (%(default)s)")
    add("--zram", action="store_true", help="create a zram device and measure it; root only")
    add(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="keep the result in a file; without FILE, print it instead of tables",
    )
    add("--plot", type=png, metavar="PNG", help="draw two pictures: PNG, and beside it …-swap.png")
    add(
        "--compare",
        nargs="+",
        action=OneOrTwo,
        metavar="JSON",
        help="list what became slower since this result; with a second one, nothing is measured",
    )


def _add_top(commands: Any) -> None:
    summary = (
        "watch a running store: size, ratio, traffic, rejections, groups, workers, size classes"
    )
    parser = _add(commands, "top", summary, _TOP, _TOP_EXAMPLES, "[options] [ADDRESS]")
    add = parser.add_argument
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "address",
        nargs="?",
        metavar="ADDRESS",
        help="the address of store.share(), or a process id",
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
    parser = _add(
        commands, "completion", summary, _COMPLETION, _COMPLETION_EXAMPLES, "{bash,zsh,tcsh}"
    )
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell")
