"""Engines and readers stay whole if the n-th allocation of the core fails, for every n."""

from __future__ import annotations

import errno
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.dividing import divide_always

from batchzip import (
    BatchzipError,
    CompressBatch,
    DecompressBatch,
    Engine,
    SwapStore,
    WorkerWarning,
    attach,
)
from batchzip.core.memory import allocations, fail_allocation
from batchzip.store.remote import share_server
from batchzip.testing.plain import PAGE, SLACK_S, make_layered_codec, make_pages

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.reporting import Report

PAGES = make_pages(30, seed=4)


def whole(batch: CompressBatch | DecompressBatch) -> None:
    """Raise MemoryError where pages of a batch failed for want of memory, and for nothing else."""
    assert set(batch.errors.tolist()) <= {0, -errno.ENOMEM}
    assert batch.has_errors == bool(batch.errors.any())
    if batch.has_errors:
        raise MemoryError("of some pages")


def do_batches(engine: Engine) -> None:
    for pages in (PAGES, [bytes(page) for page in PAGES]):
        batch = CompressBatch(pages)
        engine.compress(batch)
        whole(batch)
        for sources in (batch.outputs(), (batch.dsts, batch.dlens)):
            back = DecompressBatch(sources)
            engine.decompress(back)
            whole(back)
            assert (np.asarray(back.pages) == PAGES).all()


def do_requests(engine: Engine) -> None:
    requests = [engine.submit(CompressBatch(PAGES)) for _ in range(3)]
    for request in requests:
        whole(request.wait(SLACK_S))


def do_pages(engine: Engine) -> None:
    for page in PAGES[:3]:
        assert engine.decompress_page(engine.compress_page(page)) == page.tobytes()


def use_the_arena(engine: Engine) -> None:
    pages = engine.arena(*PAGES.shape)
    pages[:] = PAGES
    batch = CompressBatch(pages, dsts=engine.arena(len(PAGES), 2 * PAGE))
    engine.compress(batch)
    whole(batch)
    back = DecompressBatch((batch.dsts, batch.dlens), pages=engine.arena(*PAGES.shape))
    engine.decompress(back)
    whole(back)
    assert (np.asarray(back.pages) == PAGES).all()


WORK = [do_batches, do_requests, do_pages, use_the_arena]

ENGINES: dict[str, Callable[[], Engine]] = {
    "sequential": lambda: Engine("lz4", backend="sequential"),
    "layers": lambda: Engine(make_layered_codec(), backend="sequential", verify=True),
    "threads": lambda: Engine("zstd", backend="threads", workers=1),
    "in Python": lambda: Engine("deflate", backend="sequential"),
    "workers": lambda: Engine("lz4", backend="workers", workers=1),
}


def fail_each(work: Callable[[], object], report: Report) -> int:
    """Have each allocation fail that some work makes. Return how often it could not be done."""
    failed = number = 0
    reached = True
    while reached:
        number += 1
        before = allocations()
        fail_allocation(number)
        try:
            work()
        except (MemoryError, OSError, BatchzipError):
            failed += 1
        reached = allocations() - before >= number
        fail_allocation(0)
        work()
    report(
        f"memory: each of {number - 1} allocations, {failed} errors",
        allocations_failed=number - 1,
    )
    return failed


@pytest.mark.slow
@pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize("work", WORK)
def test_an_allocation_that_fails_leaves_an_engine_whole(
    work: Callable[[Engine], None],
    make: Callable[[], Engine],
    monkeypatch: pytest.MonkeyPatch,
    report: Report,
) -> None:
    divide_always(monkeypatch)
    with make() as engine:
        assert engine.wait_ready(SLACK_S)
        failed = fail_each(lambda: work(engine), report)
        assert failed or work is not do_batches


@pytest.mark.slow
@pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)
def test_an_engine_that_is_made_when_memory_is_out_works_or_leaves_nothing(
    make: Callable[[], Engine], report: Report
) -> None:
    def work() -> None:
        with make() as engine:
            do_batches(engine)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WorkerWarning)
        assert fail_each(work, report)


def test_a_reader_without_memory_reads_later(
    monkeypatch: pytest.MonkeyPatch, report: Report
) -> None:
    monkeypatch.setattr(share_server, "_PAUSE_S", 0.001)
    with Engine("lz4", backend="sequential") as engine, SwapStore(engine) as store:
        store.store(0, PAGES)
        store.group("far").store(10**9, PAGES)
        address = store.share().address

        def work() -> None:
            with attach(address) as view:
                assert (view.load_many(range(len(PAGES))) == PAGES).all()
                assert view.group("far").load(10**9) == PAGES[0].tobytes()

        assert fail_each(work, report) > 5
        open_view: list[Any] = [attach(address)]
        store.store(100_000, PAGES)

        def read() -> None:
            assert (open_view[0].load_many(range(100_000, 100_000 + len(PAGES))) == PAGES).all()

        fail_each(read, report)
        open_view[0].close()
