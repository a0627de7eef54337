"""The commands: their arguments, examples and help. What they do is imported when one is run."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import batchzip
from batchzip.cli.arguments import Parser, natural, page_size, positive, size

if TYPE_CHECKING:
    from typing import Any

_EXIT_CODES = """
exit codes: 0 all went well; 1 a page came back different; 2 bad input, said in one line;
130 interrupted with Ctrl-C; 141 the reader of the output went away
"""

_EXAMPLES = """\
examples:
  batchzip swap                    a workload of its own through a store and back
  batchzip algorithms              what pages can be compressed with here
  batchzip swap --help             every option of a command, with more examples
"""

_SWAP_EXAMPLES = """\
examples:
  batchzip swap                                  a workload of its own, both backends
  batchzip swap --pid 4711 --algorithm lz4       the memory of a running process
  batchzip swap --file dump.bin --level 3        a file, however large
  batchzip swap --limit 16M                      see what a small pool rejects
  batchzip swap --classes                        and how the pool's memory is divided
  batchzip swap --json | python -m json.tool     every figure, for programs
"""

_SWAP = """\
Store all pages of a process or a file in a compressed store, load them back in random
order, compare every byte, and say how long it took: with worker processes and, beside
it, with the sequential backend. Without --pid and --file the pages are those of a small
workload started for it.

Memory needed: two compressed copies, one for each backend; of a process one uncompressed
copy, too, of a file only a few MiB.
"""
_ALGORITHMS = """\
List the registered algorithms with their parameters and their defaults, and how to install
what those that cannot be used here need.
"""

_ALGORITHMS_EXAMPLES = """\
examples:
  batchzip algorithms             a table
  batchzip algorithms --json      the same for programs
"""


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the whole command line."""
    parser = Parser(
        prog="batchzip",
        description="Keep many page-sized buffers compressed in RAM.",
        epilog=_EXAMPLES + _EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = f"batchzip {batchzip.__version__}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    _add_swap(commands)
    _add_algorithms(commands)
    return parser


def _add(commands: Any, name: str, summary: str, description: str, examples: str) -> Any:
    return commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=examples + _EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_algorithms(commands: Any) -> None:
    summary = "list the algorithms there are, and how to install those there are not"
    parser = _add(commands, "algorithms", summary, _ALGORITHMS, _ALGORITHMS_EXAMPLES)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")


def _add_swap(commands: Any) -> None:
    summary = "store the memory of a process or a file, load it back, compare, measure"
    swap = _add(commands, "swap", summary, _SWAP, _SWAP_EXAMPLES)
    source = swap.add_mutually_exclusive_group()
    add = source.add_argument
    add("--pid", type=positive, metavar="N", help="anonymous memory of process N")
    add("--file", metavar="PATH", help="a file of any size; its last page is filled up with zeros")
    add = swap.add_argument
    add("--algorithm", default="zstd", metavar="NAME", help="see batchzip algorithms (%(default)s)")
    add("--level", type=int, metavar="N", help="level of the algorithm, if it has any")
    add(
        "--shuffle",
        type=int,
        choices=(2, 4, 8),
        help="bytes of the numbers in the pages: compressed with their bytes sorted by place",
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
        default=16,
        metavar="N",
        help="pages stored together (%(default)s)",
    )
    add(
        "--workers",
        type=positive,
        metavar="N",
        help="worker processes (one less than CPUs, at least 1)",
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
