"""The blocks of documents that render.py makes from results.

Markers in the documents call them:

    <!-- [[[cog section("usemem") ]]] -->
    …
    <!-- [[[end]]] -->

A block whose results are missing says so.
"""

from __future__ import annotations

import importlib
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress import cells_of

from batchzip.bench.figure import load
from batchzip.bench.pages import PAGE
from batchzip.bench.table import heading
from batchzip.terminal.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchzip.bench.figure import Result
    from batchzip.bench.script import Script

FOLDER = Path(__file__).parent
results = FOLDER / "results"
"""Where the results are."""

absent: list[str] = []
"""Results that are missing."""

UNMEASURED = "*Not measured yet: `all.py` measures it.*"


def script_of(name: str) -> Script:
    """Return the benchmark that made a result: `16-cores/scaling-8` is one of scaling.py."""
    script: Script = importlib.import_module(Path(name).name.partition("-")[0]).SCRIPT
    return script


def _block(names: tuple[str, ...], make: Callable[[list[Result]], str]) -> None:
    paths = [results / f"{name}.json" for name in names]
    if missing := [path for path in paths if not path.exists()]:
        absent.extend(path.relative_to(results).with_suffix("").as_posix() for path in missing)
        _write(UNMEASURED)
    else:
        _write(make([load(path) for path in paths]))


def _write(text: str) -> None:
    """Write a text between empty lines, which a table needs beside a marker."""
    _cog().out(f"\n{text}\n\n")


def section(*names: str, only: tuple[str, ...] = (), remarks: bool = True) -> None:
    """Write command, machine, tables, remarks and notes of results.

    `only` chooses the tables whose titles contain one of its texts.
    """

    def make(found: list[Result]) -> str:
        parts = []
        for name, result in zip(names, found, strict=True):
            script = script_of(name)
            parts += [f"`{result.command}`", about(result)]
            for table in script.tables(result):
                text = table.as_markdown()
                title = text.partition("\n")[0]
                if not only or any(words in title for words in only):
                    parts.append(text)
            lines = [*script.remarks(result)] * remarks
            lines += [f"note: {note}" for note in result.notes]
            if lines:
                parts.append("\n".join(_filled(f"* {line}", "  ") for line in lines))
        return "\n\n".join(parts)

    _block(names, make)


def about(result: Result) -> str:
    """Return a paragraph with the date, the machine, the versions and the settings."""
    machine, versions, settings = heading(result)
    return _filled(f"{result.date[:10]}: {machine}; {versions}; {settings}.")


def _filled(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def limits(name: str) -> None:
    """Write the table of engines beside the limit and the best of the others, of compress.py."""

    def make(found: list[Result]) -> str:
        table = Table()
        engines = "threads", "workers", "workers, arena"
        ratios = [f"{engine} ÷ limit" for engine in engines]
        heads = ("batch", "bare, µs", "sequential ÷ bare", *ratios, "threads, µs", "best other, µs")
        table.add_column("")
        for head in heads:
            table.add_column(head)
        for cell in cells_of(found[0]):
            if cell.batch not in {8, 64, 256}:
                continue
            us = {name: sorted(values)[len(values) // 2] for name, values in cell.us.items()}
            best = min(cell.peers, key=lambda name: us[name])
            table.add_row(
                f"{cell.algorithm} {cell.operation}",
                str(cell.batch),
                f"{us['bare']:.2f}",
                f"{cell.speed('sequential', 'bare').median:.2f}",
                *(f"{cell.speed(engine, 'limit').median:.2f}" for engine in engines),
                f"{us['threads']:.2f}",
                f"{us[best]:.2f} ({best})",
            )
        return f"`{found[0].command}`\n\n{about(found[0])}\n\n{table.as_markdown()}"

    _block((name,), make)


def lanes(*names: str) -> None:
    """Write the speed of threads by lanes and batch size, of several results of scaling.py."""

    def make(found: list[Result]) -> str:
        from scaling import steps_of  # noqa: PLC0415 - only here

        steps = [(result.settings["batch"], steps_of(result)) for result in found]
        counts = sorted({one.lanes for _, some in steps for one in some if "threads" in one.us})
        table = Table("`threads`: times as fast as bare (÷ limit)")
        table.add_column("")
        for head in ("batch", *(f"{count} lanes" for count in counts)):
            table.add_column(head)
        for algorithm, operation in dict.fromkeys(
            (one.algorithm, one.operation) for _, some in steps for one in some
        ):
            for batch, some in steps:
                cells = []
                for count in counts:
                    key = algorithm, operation, count
                    one = next(s for s in some if (s.algorithm, s.operation, s.lanes) == key)
                    times = one.speed("threads", "bare").median
                    cells.append(f"{times:.1f} ({one.speed('threads', 'limit').median:.2f})")
                table.add_row(f"{algorithm} {operation}", str(batch), *cells)
        commands = "\n".join(f"* `{result.command}`" for result in found)
        return f"{commands}\n\n{about(found[-1])}\n\n{table.as_markdown()}"

    _block(names, make)


def folios(name: str) -> None:
    """Write throughput and CPU time of the ways with folios of 2 MiB, of usemem.py."""

    def make(found: list[Result]) -> str:
        from usemem import CPU, TIME, WAYS, by_case  # noqa: PLC0415 - only here

        table = Table()
        for head in ("folios of 2 MiB", *WAYS):
            table.add_column(head)
        for (algorithm, backend, folio), of in by_case(found[0]).items():
            if folio == "2 MiB":
                medians = [(of[way, TIME].median, of[way, CPU].median) for way in WAYS]
                name = f"{algorithm}, {backend}"
                table.add_row(f"{name}: MB/s", *(f"{PAGE / us:,.0f}" for us, _ in medians))
                table.add_row(f"{name}: CPU, µs per page", *(f"{us:.1f}" for _, us in medians))
        return table.as_markdown()

    _block((name,), make)


def recorded(name: str) -> None:
    """Write what a command printed, as results/NAME.txt has it."""
    text = (results / f"{name}.txt").read_text(encoding="utf-8")
    _write(f"```text\n{text}```")


def _cog() -> Any:
    """Return the module through which a block writes. It is there while cogapp runs."""
    return importlib.import_module("cog")
