"""`batchzip advise`: what compressing values, memory or a file would save, and with what."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import batchzip
from batchzip.advice import BLOCK_BYTES, MAX_LOAD_US, advise
from batchzip.advice.values import SAMPLE_BYTES, weigh_all
from batchzip.codecs import make_codec
from batchzip.errors import BadArgument
from batchzip.sources.sampling import sample_file, sample_process
from batchzip.sources.value_files import open_values
from batchzip.sources.workload import Workload
from batchzip.terminal.console import as_text, print_json, progress_bars
from batchzip.terminal.table import Table
from batchzip.terminal.text import paragraph_columns, size_text, wrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batchzip.advice import Advice, Option
    from batchzip.advice.values import ValuesAdvice
    from batchzip.sources.sampling import Sample

_WORKLOAD_MIB = 64
_PAGES_SAMPLE = 8 << 20

_ABOUT_PAGES = (
    "This is about memory pages: what zswap, a SwapStore or, for arrays, a PagedMemory would save. "
    "It is not what replacing a dict would save. For the values of a cache, use batchzip advise "
    "--values."
)


@dataclass(frozen=True, slots=True)
class Options:
    """The command line; sizes in bytes."""

    pid: int | None
    file: str | None
    values: str | None
    pickle: bool
    parsed: bool
    sample: int | None
    algorithms: list[str] | None
    max_load_us: float | None
    all: bool
    json: bool
    plot: str | None
    seed: int


def run(options: Options) -> int:
    """Sample, measure and report. Return 0.

    Raise BatchzipError or OSError for errors that the user can correct.
    """
    if options.values is not None:
        return _advise_values(options, options.values)
    for option, given in (("--pickle", options.pickle), ("--parsed", options.parsed)):
        if given:
            raise BadArgument(f"{option} describes the FILE of --values FILE: give that, too")
    if options.sample is not None and options.sample < BLOCK_BYTES:
        raise BadArgument(f"a sample of {options.sample} bytes is too small: at least 64K")
    for name in options.algorithms or []:
        make_codec(name)  # a wrong name must fail before a workload is made
    if options.plot is not None:
        from batchzip.cli.plot import check_plot  # noqa: PLC0415 - imports matplotlib, an extra

        check_plot(Path(options.plot))
    sample = _sample(options)
    with progress_bars("trials", shown=not options.json) as bar:
        advice = advise(
            sample.blocks,
            total_bytes=sample.total_bytes,
            algorithms=options.algorithms,
            max_load_us=options.max_load_us or MAX_LOAD_US,
            progress=_progress(bar, "storing and loading"),
        )
    if options.plot is not None:
        from batchzip.cli.plot import plot  # noqa: PLC0415 - as above

        plot(advice, f"{sample.name}, {size_text(sample.total_bytes)}", Path(options.plot))
    if options.json:
        print_json(as_document(sample, advice))
    else:
        _write(report(sample, advice, paragraph_columns(), every=options.all))
    return 0


def _progress(
    bar: Callable[[str, int], Callable[[int], None]], text: str
) -> Callable[[int, int], None]:
    """Return a function that makes a bar at its first call, and advances it at each call."""
    advance = None

    def progress(_done: int, total: int) -> None:
        nonlocal advance
        advance = advance or bar(text, total)
        advance(1)

    return progress


def _write(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _advise_values(options: Options, name: str) -> int:
    for option, value in (
        ("--algorithm", options.algorithms),
        ("--max-load-us", options.max_load_us),
        ("--all", options.all),
        ("--plot", options.plot),
    ):
        if value:
            raise BadArgument(f"{option} is for memory pages: --pid or --file, not --values")
    sample = SAMPLE_BYTES if options.sample is None else options.sample
    source = open_values(
        name, sample, options.seed, is_pickle=options.pickle, is_parsed=options.parsed
    )
    with progress_bars("measured", shown=not options.json) as bar:
        advice = weigh_all(source, sample, _progress(bar, "putting and getting"))
    if options.json:
        print_json(values_document(name, advice))
    else:
        _write(advice.report(paragraph_columns(), name=name))
    return 0


def values_document(name: str, advice: ValuesAdvice) -> dict[str, Any]:
    """Return the advice on values as a JSON document."""
    return {
        "batchzip_version": batchzip.__version__,
        "source": {
            "kind": "values",
            "name": name,
            "total_values": advice.total_values,
            "total_bytes": advice.total_bytes,
            "sample_values": advice.measured_values,
            "sample_bytes": advice.measured_bytes,
        },
        "memory": advice.measure,
        "serializer": advice.serializer,
        "recommendation": advice.sentence,
        "recommended": advice.held.index(advice.recommended),
        "code": advice.code,
        "options": [{"name": held.name, **asdict(held), "code": held.code} for held in advice.held],
        "notes": list(advice.notes),
    }


def _sample(options: Options) -> Sample:
    size = _PAGES_SAMPLE if options.sample is None else options.sample
    if options.file is not None:
        return sample_file(options.file, size, options.seed)
    if options.pid is not None:
        return sample_process(options.pid, size, options.seed)
    with Workload(_WORKLOAD_MIB) as workload:
        name = f"workload process {workload.pid}"
        return sample_process(workload.pid, size, options.seed, name=name)


def as_document(sample: Sample, advice: Advice) -> dict[str, Any]:
    """Return the advice on pages as a JSON document."""
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
        "about": _ABOUT_PAGES,
        "recommendation": advice.sentence,
        "recommended": None if recommended is None else advice.options.index(recommended),
        "options": options,
        "notes": list(advice.notes),
    }


def report(sample: Sample, advice: Advice, width: int, *, every: bool) -> str:
    """Return the tables and the recommendation, in lines of at most `width` columns.

    Without `every`, show only plain algorithms, the Pareto front and the recommendation.
    """
    paragraphs = [
        wrapped(_ABOUT_PAGES, width),
        wrapped(
            f"{sample.name}: {size_text(sample.total_bytes)}, {size_text(sample.blocks.nbytes)} of "
            f"it sampled, {size_text(advice.sample_bytes)} stored and loaded",
            width,
        ),
    ]
    for page_size in dict.fromkeys(option.page_size for option in advice.options):
        group = [option for option in advice.options if option.page_size == page_size]
        title = (
            f"pages of {page_size >> 10} KiB: {group[0].same_filled_share:.1%} same-filled; times "
            "are µs per page"
        )
        table = as_text(_table(group, advice, every=every), width)
        paragraphs.append(f"{wrapped(title, width)}\n{table}")
    front = "* no other setting is at least as good in RAM saved, store and load, and better in one"
    paragraphs.append("\n".join(wrapped(note, width) for note in (front, *advice.notes)))
    sentence = wrapped(advice.sentence, width)
    if advice.recommended is not None:
        sentence += f"\n{wrapped(advice.recommended.call, width, indent='    ')}"
    paragraphs.append(sentence)
    return "\n\n".join(paragraphs)


def _table(group: Sequence[Option], advice: Advice, *, every: bool) -> Table:
    table = Table()
    table.add_column("", rank=0)
    table.add_column("with", rank=0, left=True, wraps=True)
    for rank, heading in ((3, "ratio"), (0, "RAM saved"), (4, "of all"), (2, "store"), (1, "load")):
        table.add_column(heading, rank=rank)
    for option in group:
        if every or option.on_front or (option.shuffle is None and not option.dictionary):
            table.add_row(
                "→" if option is advice.recommended else "*" if option.on_front else "",
                option.name,
                "-" if option.ratio is None else f"{option.ratio:.2f}",
                f"{option.saved_share:.1%}",
                size_text(option.saved_bytes) if option.saved_bytes > 0 else "-",
                f"{option.store_us:.1f}",
                f"{option.load_us:.1f}",
            )
    return table
