"""`batchzip swap`: real pages through a store and back, with each backend that suits the codec.

    source ──▶ store, in folios ──▶ load, in random order ──▶ compare every byte ──▶ report

The source is read once for all backends. Memory needed: a compressed copy per backend and a few
MiB. A process also needs an uncompressed copy to compare with, because its memory changes.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from batchzip import Engine, SwapStore
from batchzip.cli.report import as_document, print_report
from batchzip.cli.round_trip import ROUND_BYTES, RoundTrip
from batchzip.cli.side import Side
from batchzip.errors import BackendUnavailable, BadArgument
from batchzip.sources.file_pages import FilePages
from batchzip.sources.process_memory import ProcessMemory
from batchzip.sources.workload import Workload
from batchzip.system.cpus import default_lanes
from batchzip.terminal.console import make_console, print_json, progress_bars
from batchzip.terminal.streams import say

if TYPE_CHECKING:
    from batchzip.cli.round_trip import PageSource

_LARGEST_TURN_BYTES = 256 << 20
"""Maximum bytes of a folio or a batch, because a few of them are held uncompressed."""

_WITH_LANES = "threads", "workers"
"""The backends beside `sequential`, in the order of the report."""

_READY_TIMEOUT_S = 30.0
"""Seconds to wait for lanes. Starting a worker takes 0.1 s, but much longer from a cold disk."""


@dataclass(frozen=True, slots=True)
class Options:
    """The command line; sizes in bytes, `folio` and `batch` in pages."""

    pid: int | None
    file: str | None
    algorithm: str
    level: int | None
    shuffle: int | str | None
    batch: int
    folio: int
    workers: int | None
    limit: int | None
    page_size: int
    json: bool
    classes: bool
    seed: int
    workload_mib: int


def run(options: Options) -> int:
    """Store, load, compare and report. Return 0, or 1 if a page came back different.

    Raise BatchzipError or OSError for errors that the user can correct. Leave nothing behind.
    """
    for name, pages in (("folio", options.folio), ("batch", options.batch)):
        if pages * options.page_size > _LARGEST_TURN_BYTES:
            raise BadArgument(
                f"a {name} of {pages} pages of {options.page_size} bytes is too large: at most "
                f"{_LARGEST_TURN_BYTES // options.page_size} pages"
            )
    with ExitStack() as stack:
        # Cheap checks come first, so that a wrong name does not cost a workload.
        sequential = stack.enter_context(_engine(options, "sequential", None))
        source = _open_source(options, stack)
        engines = {"sequential": sequential}
        left_out = {}
        for name in _WITH_LANES:
            try:
                engines[name] = stack.enter_context(_engine(options, name, options.workers))
            except BackendUnavailable as error:
                left_out[name] = str(error)
        sides = []
        for name, engine in engines.items():
            if not engine.wait_ready(timeout_s=_READY_TIMEOUT_S):
                say(f"batchzip: warning: {name} are not ready; the caller works alone meanwhile")
            lanes = 0 if name == "sequential" else options.workers or default_lanes()
            store = stack.enter_context(_store(engine, options))
            sides.append(Side(name, engine, store, lanes))
        trip = RoundTrip(source, sides, folio=options.folio, batch=options.batch, seed=options.seed)
        _round_trip(trip, options)
        document = as_document(trip, _settings(options), left_out)
    if options.json:
        print_json(document)
    else:
        print_report(document, make_console(), classes=options.classes)
    sys.stdout.flush()
    if trip.difference is not None:
        say(f"batchzip: first difference: {trip.difference}")
        return 1
    return 0


def _engine(options: Options, backend: str, workers: int | None) -> Engine:
    level: dict[str, Any] = {} if options.level is None else {"level": options.level}
    return Engine(
        options.algorithm,
        backend=backend,
        workers=workers,
        page_size=options.page_size,
        shuffle=options.shuffle,
        **level,
    )


def _store(engine: Engine, options: Options) -> SwapStore:
    return SwapStore(engine, max_pool_bytes=options.limit, max_batch=options.batch)


def _open_source(options: Options, stack: ExitStack) -> PageSource:
    folio_bytes = options.folio * options.page_size
    chunk_pages = max(1, ROUND_BYTES // folio_bytes) * options.folio
    page_size = options.page_size
    if options.file is not None:
        file = FilePages(options.file, page_size=page_size, chunk_pages=chunk_pages)
        return stack.enter_context(file)
    pid, name = options.pid, ""
    if pid is None:
        workload = stack.enter_context(Workload(options.workload_mib))
        pid = workload.pid
        name = f"workload process {pid} (Python objects, parsed source, JSON text, NumPy arrays)"
    memory = ProcessMemory(pid, page_size=page_size, chunk_pages=chunk_pages, name=name)
    return stack.enter_context(memory)


def _round_trip(trip: RoundTrip, options: Options) -> None:
    with progress_bars("pages", shown=not options.json) as bar:
        trip.store_all(bar("storing", trip.source.pages))
        trip.load_all(bar("loading and comparing", trip.pages))


def _settings(options: Options) -> dict[str, object]:
    chosen = asdict(options)
    return {
        "algorithm": chosen["algorithm"],
        "level": chosen["level"],
        "shuffle": chosen["shuffle"],
        "batch_pages": chosen["batch"],
        "folio_pages": chosen["folio"],
        "workers": options.workers or default_lanes(),
        "limit_bytes": chosen["limit"],
        "seed": chosen["seed"],
    }
