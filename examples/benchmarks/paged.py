"""Compare PagedMemory with the kernel's swap and np.memmap, on arrays three times their budget.

    python examples/benchmarks/paged.py [--pid N | --file PATH | --compile ARGS | --workload KIND]
                                        [--rounds 5]
                                        [--works touches,sort,k-means,group-by,"matrix product"]
                                        [--mib 384] [--workload-mib 192] [--folder DIR]
                                        [--json FILE | --show FILE] [--plot PNG]

A third of each array may be in memory. The contenders:

plain        anonymous memory without a limit
kernel swap  anonymous memory in a cgroup with a memory limit, swapped to zram with lz4. It needs
             root. The swap area is always switched off and removed at the end.
memmap       np.memmap on a file in --folder, in a cgroup with the same limit, advised with
             MADV_RANDOM before random touches
paged N KiB  PagedMemory with lz4 and pages of that size

A separate process measures one contender with one work. It enters its group after all imports, so
that the limit applies to the array and to the memory of the work itself. The latter is measured
with plain memory first and added to the limit, so that the array has the same budget everywhere.

touches      fill: write all pages, one MiB after the other. scan: read and add all words, twice.
             Strided scan: read a byte every 68 KiB, like a column of a matrix, for four columns.
             Random read and write: one byte at a random place. Each touch is timed, including the
             cost of the clock and of Python, which the column of plain memory shows. 4 threads:
             each reads at random without the GIL. Random touches end after 5 s.
sort, …      see paged_work.py. Filling the arrays is not timed.

`RAM peak` is the peak memory charged to the group, plus that of zram: resident pages, compressed
pages and tables. All bytes read and all results are compared.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from paged_work import PERCENTS, WORKLOADS

from batchzip.bench.figure import Result
from batchzip.bench.kernel_swap import KernelSwap
from batchzip.bench.pages import add_source, source_of, work_pages
from batchzip.bench.rounds import in_turns
from batchzip.bench.script import Script, chosen, progress
from batchzip.bench.style import OTHERS, OWN, REFERENCE, drawing
from batchzip.bench.table import with_spread
from batchzip.bench.zram import end_orderly
from batchzip.terminal.table import Table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from batchzip.bench.figure import Figure, Labels

PLAIN, KERNEL, MEMMAP = "plain", "kernel swap", "memmap"
PAGED = ("paged 4 KiB", "paged 16 KiB", "paged 64 KiB")
SHARE = 3
"""Size of an array ÷ its budget."""
SOURCE_PAGES = 8192
SLACK = 1 << 20
"""Extra bytes, because each array begins at a page."""
MOST_KILLS = 10
RAM = "RAM peak, MiB"
SHOWN = ("time", "CPU", "p50", "p99", "p99.9", RAM)
"""Quantities in the tables."""

GOALS = {
    ("fill", "time"): 1.0,
    ("scan", "time"): 0.6,
    ("random read", "time"): 0.8,
    ("random read", "p99"): 0.2,
}
"""By row: the maximum of PagedMemory ÷ kernel swap."""


class Killed(Exception):
    """The kernel killed a process at its memory limit."""


class Measurement:
    """All measurements of the program."""

    def __init__(
        self, result: Result, swap: KernelSwap, source: int, folder: str, sizes: dict[str, int]
    ) -> None:
        self.result = result
        self.swap = swap
        self.source = source
        self.folder = folder
        self.sizes = sizes
        self.digests: dict[str, int] = {}
        self.kills: dict[tuple[str, str], int] = {}

    def contenders(self) -> list[str]:
        """Return the names of all contenders available here."""
        names = [PLAIN, KERNEL, MEMMAP, *PAGED]
        for missing in (self.swap.missing, self.swap.groups_missing):
            if missing:
                self.result.note(missing)
        if self.swap.missing:
            names.remove(KERNEL)
        if self.swap.groups_missing:
            self.result.note("memmap: measured without a limit")
        return names

    def measure(self, work: str, names: list[str], rounds: int) -> None:
        """Add the figures of one work."""
        nbytes = self.sizes[work]
        own = max(0, round(self.run(work, PLAIN, None).get(RAM, 0) * 2**20) - nbytes)
        values: dict[tuple[str, str], list[float]] = {}
        for turn, name in in_turns(names, rounds):
            if not turn:  # no warm-up round: each process is new
                continue
            limit = nbytes // SHARE + own if name in {KERNEL, MEMMAP} else None
            progress(f"{work}, round {turn} of {rounds}: {name}")
            for quantity, value in self.repeated(work, name, limit).items():
                values.setdefault((name, quantity), []).append(value)
        for (kind, name), times in self.kills.items():
            if kind == work:
                self.result.note(
                    f"{work}, {name}: repeated after the kernel killed it {times} ×, "
                    "because it found nothing to swap out"
                )
        for (name, quantity), numbers in values.items():
            row, _, what = quantity.rpartition(": ")
            labels: Labels = {"benchmark": "paged", "work": work, "row": row or work}
            self.result.add(labels, name, what, numbers)

    def repeated(self, work: str, name: str, limit: int | None) -> dict[str, float]:
        """Repeat a run that the kernel kills because it finds nothing to swap out."""
        for _ in range(MOST_KILLS):
            try:
                return self.run(work, name, limit)
            except Killed:
                self.kills[work, name] = self.kills.get((work, name), 0) + 1
        return {}

    def run(self, work: str, name: str, limit: int | None) -> dict[str, float]:
        """Run the work with a contender in a process. Return its results."""
        job = {
            "work": work,
            "contender": name,
            "nbytes": self.sizes[work],
            "budget": self.sizes[work] // SHARE,
            "slack": SLACK,
            "folder": self.folder,
            "source": self.source,
        }
        with contextlib.ExitStack() as stack:
            group = (
                None if self.swap.groups_missing else stack.enter_context(self.swap.group(limit))
            )
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, Path(__file__).with_name("paged_work.py")],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    pass_fds=[self.source],
                )
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            process.stdout.readline()
            if group is not None:
                group.take(process.pid)
            if name == KERNEL:
                self.swap.forget_peak()
            output, _ = process.communicate(json.dumps(job) + "\n")
            if process.returncode == -signal.SIGKILL and limit is not None:
                raise Killed
            if process.returncode:
                raise SystemExit(f"{work} with {name}: its process ended with {process.returncode}")
            found = json.loads(output)
            digest = self.digests.setdefault(work, found["digest"])
            assert digest == found["digest"], f"{work} with {name}: another result"
            values: dict[str, float] = found["figures"]
            if group is not None and group.peak_bytes:
                peak = group.peak_bytes + (self.swap.peak_bytes if name == KERNEL else 0)
                values[RAM] = peak / 2**20
        return values


def rows(result: Result) -> dict[tuple[str, str], dict[str, Figure]]:
    """Sort the figures: (row, quantity) → contender → figure."""
    found: dict[tuple[str, str], dict[str, Figure]] = {}
    for one in result.of(benchmark="paged"):
        found.setdefault((str(one.labels["row"]), one.quantity), {})[one.contender] = one
    return found


def tables(result: Result) -> Iterator[Table]:
    """Yield the figures and the goals."""
    found = rows(result)
    shown = {key: row for key, row in found.items() if key[1] in SHOWN}
    for title, of_workloads in (
        ("µs per page of 4 KiB (fill, scans) or per read or write", False),
        ("seconds", True),
    ):
        part = {key: row for key, row in shown.items() if (key[0] in WORKLOADS) == of_workloads}
        if part:
            yield _table(title, part)
    goals = _goals(found)
    if goals.row_count:
        yield goals


def _names(found: dict[tuple[str, str], dict[str, Figure]]) -> list[str]:
    everybody = {name for row in found.values() for name in row}
    return [name for name in (PLAIN, KERNEL, MEMMAP, *PAGED) if name in everybody]


def _table(title: str, found: dict[tuple[str, str], dict[str, Figure]]) -> Table:
    table = Table(title)
    table.add_column("", rank=0)
    table.add_column("", rank=0, left=True)
    names = _names(found)
    for name in names:
        table.add_column(name)
    before = ""
    for (row, quantity), of in found.items():
        if row != before and before:
            table.add_section()
        table.add_row(
            row,
            quantity,
            *(
                with_spread(of[name].spread, 0 if quantity == RAM else 2) if name in of else ""
                for name in names
            ),
        )
        before = row
    return table


def _goals(found: dict[tuple[str, str], dict[str, Figure]]) -> Table:
    table = Table("goals: PagedMemory ÷ kernel swap")
    for heading in ("", "", "at most", *PAGED):
        table.add_column(heading, left=True)
    for (row, quantity), most in GOALS.items():
        of = found.get((row, quantity), {})
        if KERNEL not in of:
            continue
        cells = []
        for name in PAGED:
            ratio = of[name].median / of[KERNEL].median if name in of else None
            verdict = "" if ratio is None else "met" if ratio <= most else "MISSED"
            cells.append("" if ratio is None else f"{ratio:.2f} {verdict}")
        table.add_row(row, quantity, f"{most:g}", *cells)
    return table


_LINES: dict[str, dict[str, Any]] = {
    PLAIN: REFERENCE,
    KERNEL: OTHERS[0],
    MEMMAP: OTHERS[1],
    PAGED[0]: OWN[0],
    PAGED[1]: OWN[2],
    PAGED[2]: OWN[3],
}


def draw(result: Result, path: Path) -> None:
    """Draw the latency of touches against the share of touches that take longer."""
    found = rows(result)
    settings = result.settings
    places = [-np.log10(1 - percent / 100) for percent in PERCENTS]
    ticks = [50, 90, 99, 99.9]
    title = (
        f"How long a read or write takes, {settings['MiB']} MiB in {settings['MiB'] // SHARE} MiB "
        "(less is better)"
    )
    with drawing(path, 4.6, title) as picture:
        axes = picture.subplots(1, 2, sharey=True)
        for one, row in zip(axes, ("random read", "random write"), strict=True):
            for name in _names(found):
                line = [found[row, f"p{percent:g}"][name].median for percent in PERCENTS]
                one.plot(places, line, label=name, **_LINES[name])
            one.set_yscale("log")
            one.yaxis.set_major_formatter("{x:g}")
            one.set_xticks(
                [-np.log10(1 - tick / 100) for tick in ticks], [f"p{tick}" for tick in ticks]
            )
            one.set_title(f"{row}, µs")
            one.grid(visible=True, axis="y")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_source(parser)
    parser.add_argument("--mib", type=int, default=384, help="of the array touched (%(default)s)")
    parser.add_argument(
        "--workload-mib", type=int, default=192, help="of a workload's arrays (%(default)s)"
    )
    works = ["touches", *WORKLOADS]
    parser.add_argument("--works", type=chosen(works), default=works, help="with commas")
    names = [PLAIN, KERNEL, MEMMAP, *PAGED]
    parser.add_argument("--contenders", type=chosen(names), default=names, help="with commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--folder", default=tempfile.gettempdir(), help="of memmap's file (%(default)s)"
    )


def measure(options: argparse.Namespace) -> Result:
    """Measure all contenders."""
    end_orderly()
    sizes = {
        "touches": options.mib << 20,
        **dict.fromkeys(WORKLOADS, options.workload_mib << 20),
    }
    source = source_of(options)
    settings = {
        "source": source.name,
        "MiB": options.mib,
        "workload MiB": options.workload_mib,
        "rounds": options.rounds,
    }
    result = Result(settings, {"paged": KERNEL})
    with (
        tempfile.TemporaryFile(dir="/dev/shm") as file,
        KernelSwap(2 * max(sizes.values())) as swap,
    ):
        work_pages(source, SOURCE_PAGES).tofile(file)
        file.flush()
        measurement = Measurement(result, swap, file.fileno(), options.folder, sizes)
        names = measurement.contenders()
        names = [name for name in names if name in options.contenders]
        for work in options.works:
            measurement.measure(work, names, options.rounds)
    return result


SCRIPT = Script(__doc__, add_options, measure, tables, draw=draw)

if __name__ == "__main__":
    SCRIPT.main()
