"""How far workers scale: 1 … CPUs lanes, their efficiency, and the owner's serial part per page.

    python examples/benchmarks/scaling.py [--rounds 9] [--pages 8192] [--batch 1024] [--json FILE]
                                          [--plot PNG] [--pid N | --file PATH | --workload KIND]

A lane is a process that compresses: the owner is one, each worker is one more. Efficiency is
bare ÷ (lanes × µs per page), where `bare` is a loop of codec calls on one core; it is one where a
lane more brings all that a core can give. `bare at once` is such a loop in as many processes as there
are lanes: what the machine's cores give when all are busy, with no owner and nothing to hand over.

The serial part is what the owner does for a page that it hands over, and what no further worker can
take from it: staging, the descriptor, looking, collecting. It is timed where it happens, in `post` and
`collect`, with shares as large as a ring takes. While a worker compresses one page, the owner can
hand over (µs a page of a worker) ÷ (serial µs): that many workers it keeps busy, if it does nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loky.backend import get_context
from rich.table import Table

import batchzip
from batchzip.bench import plot
from batchzip.bench.pages import PAGE, add_source, source_of, work_pages
from batchzip.bench.table import console
from batchzip.cpus import usable_cpus
from batchzip_workers.backend import WorkersBackend

sys.path.insert(0, str(Path(__file__).parent))
from compress import ALGORITHMS, each, measure

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from batchzip.buffers import Bytes
    from batchzip.codecs import Codec
    from batchzip_workers.posted import Posted
    from batchzip_workers.ring import Ring

OUTPUT_BYTES = PAGE + 64
"""Room for an output in the arena: what does not compress is the caller's to keep as it is."""


@dataclass
class Step:
    """What was measured with one number of lanes."""

    algorithm: str
    lanes: int
    bare_us: float
    at_once_us: float
    private_us: float
    arena_us: float


@dataclass
class Serial:
    """The owner's part of a page that is handed over, in µs, and what it means."""

    algorithm: str
    private_us: float
    """Pages and outputs in the caller's own memory: staged and collected."""
    staged_us: float
    """Pages in the caller's own memory, outputs in the arena: staged."""
    arena_us: float
    worker_us: float
    """What a worker takes for a page."""


class Crowd:
    """Processes with a bare loop each over a part of the pages, all at once."""

    def __init__(self, codec: Codec, pages: Bytes, lanes: int) -> None:
        context = get_context("loky")
        self._pipes: list[Connection] = []
        self._processes = []
        for lane in range(1, lanes):
            here, there = context.Pipe()
            part = [page.tobytes() for page in pages[lane::lanes]]
            process = context.Process(target=_loop, args=(there, codec, part), daemon=True)
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)
        self._mine = [page.tobytes() for page in pages[::lanes]]
        self._compress = codec.compressor(PAGE)

    def run(self) -> None:
        """Let everybody do his part; returns when all are done."""
        for pipe in self._pipes:
            pipe.send(True)
        each(self._compress, self._mine)
        for pipe in self._pipes:
            pipe.recv()

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.send(False)
        for process in self._processes:
            process.join()
        for pipe in self._pipes:
            pipe.close()


def _loop(pipe: Connection, codec: Codec, pages: list[bytes]) -> None:
    compress = codec.compressor(PAGE)
    while pipe.recv():
        each(compress, pages)
        pipe.send(True)


def whole(engine: batchzip.Engine, pages: Bytes, size: int, dsts: Bytes | None) -> None:
    """Compress all pages in batches of `size`, with one descriptor, as a store does."""
    batch = batchzip.CompressBatch(pages[:size], dsts=dsts)
    for at in range(0, len(pages), size):
        batch.refill(pages[at : at + size])
        engine.compress(batch)


def steps(
    algorithm: str, parameters: dict[str, Any], pages: Bytes, size: int, rounds: int, cpus: int
) -> list[Step]:
    """Measure each number of lanes beside the bare loop."""
    found = []
    for lanes in range(1, cpus + 1):
        backend, workers = ("workers", lanes - 1) if lanes > 1 else ("sequential", None)
        with batchzip.Engine(algorithm, backend=backend, workers=workers, **parameters) as engine:
            engine.wait_ready(60)
            flat = memoryview(pages).cast("B")  # type: ignore[arg-type] # arrays are buffers
            views = [flat[at : at + PAGE] for at in range(0, len(flat), PAGE)]
            shared = engine.arena(len(pages))
            shared[:] = pages
            with contextlib.closing(Crowd(engine.codec, pages, lanes)) as crowd:
                contenders: dict[str, Callable[[], object]] = {
                    "bare": partial(each, engine.codec.compressor(PAGE), views),
                    "at once": crowd.run,
                    "private": partial(whole, engine, pages, size, None),
                    "arena": partial(whole, engine, shared, size, engine.arena(size, OUTPUT_BYTES)),
                }
                seconds = measure(contenders, len(pages), rounds)
        us = {name: statistics.median(s) * 1e6 for name, s in seconds.items()}
        found.append(Step(algorithm, lanes, us["bare"], us["at once"], us["private"], us["arena"]))
    return found


def serial(algorithm: str, parameters: dict[str, Any], pages: Bytes, rounds: int) -> Serial:
    """Time the owner's part of handing pages to one worker, and the worker's."""
    with batchzip.Engine(algorithm, backend="workers", workers=1, **parameters) as engine:
        engine.wait_ready(60)
        backend = engine.backend
        assert isinstance(backend, WorkersBackend)
        shared = engine.arena(len(pages))
        shared[:] = pages
        outputs = engine.arena(len(pages), OUTPUT_BYTES)
        cases = {
            "private": batchzip.CompressBatch(pages),
            "staged": batchzip.CompressBatch(pages, dsts=outputs),
            "arena": batchzip.CompressBatch(shared, dsts=outputs),
        }
        us: dict[str, list[float]] = {name: [] for name in cases}
        for turn in range(rounds + 1):
            for name, batch in cases.items():
                spent = hand_over(backend, batch)
                if turn:
                    us[name].append(spent / len(pages) * 1e6)
        (worker,) = engine.statistics.workers
        return Serial(
            algorithm,
            statistics.median(us["private"]),
            statistics.median(us["staged"]),
            statistics.median(us["arena"]),
            worker.busy_s / worker.pages * 1e6,
        )


def hand_over(backend: WorkersBackend, batch: batchzip.CompressBatch) -> float:
    """Have a worker do all of a batch; the owner's seconds for it, without those it waits."""
    (ring,) = backend.rings
    batch.reset()
    placement, share_pages = backend.locate(batch), backend.share_pages
    spent = 0.0
    behind: list[Posted] = []
    for start in range(0, len(batch), share_pages):
        while len(behind) > 1:
            spent += collect(ring, behind)
        share = range(start, min(start + share_pages, len(batch)))
        started = time.perf_counter()
        ring.post(batch, share, placement, behind)
        spent += time.perf_counter() - started
    while behind:
        spent += collect(ring, behind)
    return spent


def collect(ring: Ring, behind: list[Posted]) -> float:
    """Wait for the oldest share and collect it; the seconds of the collecting."""
    oldest = behind.pop(0)
    ring.wait(oldest, 60)
    started = time.perf_counter()
    ring.collect(oldest)
    return time.perf_counter() - started


def show(found: list[Step], parts: list[Serial]) -> None:
    """Print both tables."""
    table = Table(title="µs per page of 4 KiB, medians; efficiency against lanes × bare")
    for heading in ("", "lanes", "bare", "bare at once", "", "private", "", "arena", ""):
        table.add_column(heading, justify="right")
    for step in found:
        cells = [f"{step.bare_us:.2f}"]
        for us in (step.at_once_us, step.private_us, step.arena_us):
            cells += [f"{us:.2f}", f"{step.bare_us / us / step.lanes:.2f}"]
        table.add_row(step.algorithm, str(step.lanes), *cells)
    other = Table(title="the owner's serial part, µs per page that is handed over")
    for heading in ("", "private", "staged", "arena", "a worker's page", "workers kept busy"):
        other.add_column(heading, justify="right")
    for part in parts:
        busy = [part.worker_us / us for us in (part.private_us, part.staged_us, part.arena_us)]
        other.add_row(
            part.algorithm,
            *(f"{us:.2f}" for us in (part.private_us, part.staged_us, part.arena_us)),
            f"{part.worker_us:.2f}",
            " / ".join(f"{count:.0f}" for count in busy),
        )
    console().print(table)
    console().print(other)


def draw(found: list[Step], path: Path) -> None:
    """Draw how many times as fast as one bare loop each number of lanes is."""
    algorithms = list(dict.fromkeys(step.algorithm for step in found))
    picture = plot.new_picture(6.5 * len(algorithms), 4.4)
    row = picture.subplots(1, len(algorithms), squeeze=False)[0]
    for axes, algorithm in zip(row, algorithms, strict=True):
        steps_of = [step for step in found if step.algorithm == algorithm]
        lanes = [step.lanes for step in steps_of]
        axes.plot(lanes, lanes, color="0.6", linestyle=":", label="limit")
        for name, marker, line, shade in (
            ("at_once", "s", "--", "0.45"),
            ("private", "o", "-", "black"),
            ("arena", "D", "-.", "0.2"),
        ):
            speed = [step.bare_us / getattr(step, f"{name}_us") for step in steps_of]
            label = name.replace("at_once", "bare at once")
            axes.plot(lanes, speed, marker=marker, linestyle=line, color=shade, label=label)
        axes.set_xticks(lanes)
        axes.set_ylim(0)
        axes.set_xlabel("lanes: the caller and its workers")
        axes.set_title(f"{algorithm}: times as fast as one bare loop", loc="left")
        plot.tidy(axes)
    picture.draw_without_rendering()
    for axes in row:
        plot.label_ends(axes, plot.ends_of(axes))
    plot.save(picture, path)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_source(parser)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--pages", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    pages = work_pages(source_of(options), options.pages)
    pages = pages[: len(pages) - len(pages) % options.batch]
    cpus = usable_cpus()
    print(
        f"{platform.platform()}, Python {platform.python_version()}, {cpus} of {os.cpu_count()} CPUs"
    )
    print(f"{len(pages)} pages, batches of {options.batch}, {options.rounds} rounds", flush=True)
    found: list[Step] = []
    parts: list[Serial] = []
    for algorithm, parameters in ALGORITHMS.items():
        found += steps(algorithm, parameters, pages, options.batch, options.rounds, cpus)
        parts.append(serial(algorithm, parameters, pages, options.rounds))
    show(found, parts)
    if options.json:
        rows = {"steps": [asdict(s) for s in found], "serial": [asdict(p) for p in parts]}
        options.json.write_text(json.dumps(rows, indent=2))
    if options.plot:
        draw(found, options.plot)


if __name__ == "__main__":
    main()
