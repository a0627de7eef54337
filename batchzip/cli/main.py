"""The `batchzip` command.

Exit codes: 0 all went well, 1 a page came back different (swap) or something got slower (bench), 2 something the user can put right
(one line on stderr says what), 130 interrupted with Ctrl-C, 141 the reader of the output went away.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import warnings
from typing import TYPE_CHECKING, NoReturn

import batchzip
from batchzip.errors import BatchzipError

if TYPE_CHECKING:
    from collections.abc import Sequence

_EXAMPLES = """\
examples:
  batchzip swap                                  a workload of its own, both backends
  batchzip swap --pid 4711 --algorithm lz4       the memory of a running process
  batchzip swap --file dump.bin --level 3        a file, however large
  batchzip swap --limit 16M                      see what a small pool rejects
  batchzip swap --json | python -m json.tool     every figure, for programs

exit codes: 0 every page came back as it went in; 1 one did not; 2 bad input; 130 interrupted
"""

_SWAP = """\
Store all pages of a process or a file in a compressed store, load them back in random
order, compare every byte, and say how long it took: with worker processes and, beside
it, with the sequential backend. Without --pid and --file the pages are those of a small
workload started for it.

Memory needed: two compressed copies, one for each backend; of a process one uncompressed
copy, too, of a file only a few MiB.
"""

_BENCH_EXAMPLES = """\
examples:
  batchzip bench                                 everybody, on a workload of its own
  batchzip bench --pid 4711 --algorithms zstd:3  on the memory of a running process
  batchzip bench --plot bench.png                pictures, too: bench.png and bench-swap.png
  batchzip bench --json >old.json                keep the result …
  batchzip bench --compare old.json              … measure again, and see what got slower
  batchzip bench --compare old.json new.json     compare two results without measuring

exit codes: 0 all went well; 1 with --compare, something got slower; 2 bad input; 130 interrupted
"""

_BENCH = """\
Compress and restore batches, and store and load a working set, with batchzip and with what
one would use instead: a bare loop of codec calls, a thread pool, loky, python-zstandard, a dict of
bytes; blosc2, if it is installed; zram with --zram. They take turns; figures are medians of
the rounds. Absolute times mean nothing on another machine, or in another hour: read across a row.

--compare divides each figure by its baseline of the same run (the bare loop, the dict). Slower is
what is worse by more than 5 % with quartiles that do not overlap.
"""

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like every other error of the command."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"batchzip: {message} (see {self.prog} --help)\n")


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text, re.IGNORECASE | re.ASCII)
    if match is None or not (size := int(float(match[1]) * _UNITS[match[2].upper()])):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write bytes, or 512K, 64M, 1.5G")
    return size


def _page_size(text: str) -> int:
    size = int(text) if text.isascii() and text.isdigit() else 0
    if not 512 <= size <= 2 << 20 or size & (size - 1):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no page size: a power of two from 512 to {2 << 20} bytes is"
        )
    return size


def _positive(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() else 0
    if not 0 < number < 1 << 31:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return number


def _natural(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 up")
    return int(text)


def _positives(text: str) -> list[int]:
    return [_positive(part.strip()) for part in text.split(",")]


def _png(text: str) -> str:
    if not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a picture: let it end in .png")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="batchzip",
        description="Keep many page-sized buffers compressed in RAM.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = f"batchzip {batchzip.__version__}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    swap = commands.add_parser(
        "swap",
        help="store the memory of a process or a file, load it back, compare, measure",
        description=_SWAP,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = swap.add_mutually_exclusive_group()
    add = source.add_argument
    add("--pid", type=_positive, metavar="N", help="anonymous memory of process N")
    add("--file", metavar="PATH", help="a file of any size; its last page is filled up with zeros")
    add = swap.add_argument
    add("--algorithm", default="zstd", metavar="NAME", help="zstd or lz4, … (%(default)s)")
    add("--level", type=int, metavar="N", help="level of the algorithm, if it has any")
    add(
        "--shuffle",
        type=int,
        choices=(2, 4, 8),
        help="bytes of the numbers in the pages: compressed with their bytes sorted by place",
    )
    add(
        "--batch",
        type=_positive,
        default=256,
        metavar="N",
        help="pages loaded together (%(default)s)",
    )
    add(
        "--folio",
        type=_positive,
        default=16,
        metavar="N",
        help="pages stored together (%(default)s)",
    )
    add(
        "--workers",
        type=_positive,
        metavar="N",
        help="worker processes (one less than CPUs, at least 1)",
    )
    add("--limit", type=_size, metavar="SIZE", help="most bytes a pool may hold, as in 64M (none)")
    add("--page-size", type=_page_size, default=4096, metavar="N", help="bytes (%(default)s)")
    add("--json", action="store_true", help="one JSON document with all figures instead of a table")
    add("--seed", type=_natural, default=0, metavar="N", help="of the random order (%(default)s)")
    add(
        "--workload-mib",
        type=_positive,
        default=64,
        metavar="N",
        help="size of the workload in MiB (%(default)s)",
    )
    _add_bench(commands)
    return parser


def _add_bench(commands: argparse._SubParsersAction[_Parser]) -> None:
    bench = commands.add_parser(
        "bench",
        help="measure batchzip beside what one would use instead; compare two results",
        description=_BENCH,
        epilog=_BENCH_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = bench.add_mutually_exclusive_group()
    add = source.add_argument
    add("--pid", type=_positive, metavar="N", help="anonymous memory of process N")
    add("--file", metavar="PATH", help="pages drawn from a file")
    add(
        "--workload",
        choices=("captured", "random", "zeros", "alternating"),
        default="captured",
        help="pages of a process started for it, or what is hard on purpose (%(default)s)",
    )
    add = bench.add_argument
    add(
        "--algorithms",
        default="lz4,zstd:1",
        metavar="LIST",
        help="with commas, a level after a colon (%(default)s)",
    )
    add(
        "--batches",
        type=_positives,
        default=[8, 64, 256],
        metavar="LIST",
        help="pages of a batch, with commas (8,64,256)",
    )
    add("--pages", type=_positive, default=2048, metavar="N", help="pages measured (%(default)s)")
    add("--rounds", type=_positive, default=5, metavar="N", help="(%(default)s)")
    add("--zram", action="store_true", help="make a zram device and measure it; root only")
    add("--json", action="store_true", help="the result as JSON, instead of tables")
    add("--plot", type=_png, metavar="PNG", help="draw pictures: PNG, and beside it …-swap.png")
    add(
        "--compare",
        nargs="+",
        action=_OneOrTwo,
        metavar="JSON",
        help="say what got slower since this result; with a second one nothing is measured",
    )


class _OneOrTwo(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[str] | None,
        option_string: str | None = None,
    ) -> None:
        if values is None or len(values) > 2:
            parser.error(f"{option_string} takes one or two results, not {len(values or ())}")
        setattr(namespace, self.dest, values)


def _swap(arguments: argparse.Namespace) -> int:
    # Imported here: --help and a mistyped option must not wait for rich and the engine.
    from batchzip.cli.swap import Options, run  # noqa: PLC0415

    values = vars(arguments)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning  # type: ignore[assignment] # *_where takes them all
        return run(Options(**{name: values[name] for name in Options.__dataclass_fields__}))


def _bench(arguments: argparse.Namespace) -> int:
    from batchzip.cli.bench import Options, run  # noqa: PLC0415 - as for swap

    values = vars(arguments)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning  # type: ignore[assignment] # *_where takes them all
        return run(Options(**{name: values[name] for name in Options.__dataclass_fields__}))


def _show_warning(message: Warning | str, *_where: object) -> None:
    sys.stderr.write(f"batchzip: warning: {message}\n")


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        name = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        return name + error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv`, default that of the process, and return its exit code."""
    try:
        arguments = _parser().parse_args(argv)
        return _bench(arguments) if arguments.command == "bench" else _swap(arguments)
    except BrokenPipeError:
        # What is still buffered has no reader: without this, closing stdout at exit fails, too.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return 141
    except KeyboardInterrupt:
        sys.stderr.write("batchzip: interrupted\n")
        return 130
    except (BatchzipError, OSError, MemoryError) as error:
        sys.stderr.write(f"batchzip: {_one_line(error)}\n")
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
