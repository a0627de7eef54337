"""`batchzip advise`: what compressing a process's memory or a file would bring, and with what."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

import batchzip
from batchzip.advice import BLOCK_BYTES, advise, amount
from batchzip.cli.output import make_console, print_json, progress_bars
from batchzip.cli.sampling import sample_file, sample_process
from batchzip.cli.workload import Workload
from batchzip.codecs import make_codec
from batchzip.errors import BadArgument

if TYPE_CHECKING:
    from rich.console import Console

    from batchzip.advice import Advice
    from batchzip.cli.sampling import Sample

_WORKLOAD_MIB = 64


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line said; sizes in bytes."""

    pid: int | None
    file: str | None
    sample: int
    algorithms: list[str] | None
    max_load_us: float
    all: bool
    json: bool
    plot: str | None
    seed: int


def run(options: Options) -> int:
    """Sample, measure, report. Returns 0.

    Raises BatchzipError or OSError for what the user can put right.
    """
    if options.sample < BLOCK_BYTES:
        raise BadArgument(f"a sample of {options.sample} bytes is too small: at least 64K")
    for name in options.algorithms or []:
        make_codec(name)  # before a workload is made
    if options.plot is not None:
        from batchzip.cli.plot import check_plot  # noqa: PLC0415 - matplotlib is an extra, and slow

        check_plot(Path(options.plot))
    sample = _sample(options)
    with progress_bars("trials", shown=not options.json) as bar:
        advance = None

        def progress(_done: int, total: int) -> None:
            nonlocal advance
            advance = advance or bar("storing and loading", total)
            advance(1)

        advice = advise(
            sample.blocks,
            total_bytes=sample.total_bytes,
            algorithms=options.algorithms,
            max_load_us=options.max_load_us,
            progress=progress,
        )
    if options.plot is not None:
        from batchzip.cli.plot import plot  # noqa: PLC0415 - as above

        plot(advice, f"{sample.name}, {amount(sample.total_bytes)}", Path(options.plot))
    console = make_console()
    if options.json:
        print_json(as_document(sample, advice))
    else:
        print_advice(sample, advice, console, every=options.all)
    return 0


def _sample(options: Options) -> Sample:
    if options.file is not None:
        return sample_file(options.file, options.sample, options.seed)
    if options.pid is not None:
        return sample_process(options.pid, options.sample, options.seed)
    with Workload(_WORKLOAD_MIB) as workload:
        name = f"workload process {workload.pid}"
        return sample_process(workload.pid, options.sample, options.seed, name=name)


def as_document(sample: Sample, advice: Advice) -> dict[str, Any]:
    """Return the whole result as plain dicts, ready for JSON."""
    options = [
        {"name": option.name, **asdict(option), "call": option.call} for option in advice.options
    ]
    recommended = advice.recommended
    return {
        "batchzip_version": batchzip.__version__,
        "source": {
            "kind": sample.kind,
            "name": sample.name,
            **sample.details,
            "total_bytes": sample.total_bytes,
            "read_bytes": sample.blocks.nbytes,
            "sample_bytes": advice.sample_bytes,
        },
        "recommendation": advice.sentence,
        "recommended": None if recommended is None else advice.options.index(recommended),
        "options": options,
        "notes": list(advice.notes),
    }


def print_advice(sample: Sample, advice: Advice, console: Console, *, every: bool) -> None:
    """Print a table for each page size, and the recommendation.

    Without `every`, only the plain algorithms, the front and the recommendation are shown.
    """

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    say(
        f"{sample.name}: {amount(sample.total_bytes)}, {amount(sample.blocks.nbytes)} of it looked at, "
        f"{amount(advice.sample_bytes)} stored and loaded"
    )
    for page_size in dict.fromkeys(option.page_size for option in advice.options):
        group = [option for option in advice.options if option.page_size == page_size]
        say(
            f"\npages of {page_size >> 10} KiB: {group[0].same_filled_share:.1%} same-filled; times are µs a page"
        )
        table = Table(box=None, pad_edge=False)
        table.add_column("")
        for heading in ("", "ratio", "RAM saved", "of all", "store", "load"):
            table.add_column(heading, justify="right" if heading else "left")
        for option in group:
            plain = option.shuffle is None and not option.dictionary
            if every or plain or option.on_front:
                table.add_row(
                    "→" if option is advice.recommended else "*" if option.on_front else "",
                    option.name,
                    "-" if option.ratio is None else f"{option.ratio:.2f}",
                    f"{option.saved_share:.1%}",
                    amount(option.saved_bytes) if option.saved_bytes > 0 else "-",
                    f"{option.store_us:.1f}",
                    f"{option.load_us:.1f}",
                )
        console.print(table)
    say("\n* no other setting is as good in RAM saved, store and load, and better in one")
    for note in advice.notes:
        say(note)
    say(f"\n{advice.sentence}")
    if advice.recommended is not None:
        say(advice.recommended.call)
