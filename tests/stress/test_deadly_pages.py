"""Pages that kill whoever takes them are found, several in a batch; no other is taken for one."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.batch_load import (
    KINDS,
    PAGE,
    Kind,
    Load,
    assert_all_slots_are_free,
    blank,
    do,
    make_pages,
)
from support.codecs.killer import KILLS_COMPRESSOR, KILLS_DECOMPRESSOR, KillerCodec
from support.waiting import await_true

from batchzip import CompressBatch, DecompressBatch, Engine
from batchzip_workers.failpoints import armed, waiting

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchzip.batch import Batch

PAGES = 40
DEADLY = (3, 5, 6, 17, 38)
"""Two that a share of one worker or of three has in common, and two next to each other."""


def make_batch(engine: Engine, kind: Kind) -> tuple[Batch, list[bytes]]:
    """Make a batch with deadly pages; also what each page shall come to."""
    pages = make_pages(PAGES)
    mark = KILLS_COMPRESSOR if kind.compress else KILLS_DECOMPRESSOR
    pages[list(DEADLY), :8] = np.frombuffer(mark, np.uint8)
    compress = engine.codec.compressor(PAGE)
    outputs = [compress(memoryview(page)) for page in pages]
    array = engine.arena if kind.placed else lambda *shape: np.empty(shape, np.uint8)
    if not kind.compress:
        return DecompressBatch(outputs, pages=array(PAGES, PAGE)), [bytes(p) for p in pages]
    placed = array(PAGES, PAGE)
    placed[:] = pages
    return CompressBatch(placed, dsts=array(PAGES, 2 * PAGE)), outputs


def results(batch: Batch, indices: list[int]) -> list[bytes]:
    if isinstance(batch, CompressBatch):
        return [bytes(batch.output(index)) for index in indices]
    assert isinstance(batch, DecompressBatch)
    return [bytes(batch.pages[index]) for index in indices]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "workers"),
    [
        pytest.param(Kind(compress=False, placed=True, submitted=True), 3),
        *(
            pytest.param(kind, workers, marks=pytest.mark.stress)
            for kind in KINDS
            for workers in (1, 3)
        ),
    ],
    ids=str,
)
def test_pages_that_kill_twice_are_isolated_and_their_mates_succeed(
    kind: Kind, workers: int, report: Callable[[str], None]
) -> None:
    with Engine(KillerCodec(os.getpid()), backend="workers", workers=workers) as engine:
        assert engine.wait_ready()
        batch, expected = make_batch(engine, kind)
        blank(batch)
        do(engine, batch, submitted=kind.submitted)
        # Those that fell to the caller did it no harm.
        failed = np.flatnonzero(batch.errors).tolist()
        assert failed
        assert set(failed) <= set(DEADLY)
        assert set(batch.errors[failed].tolist()) == {-errno.EOWNERDEAD}
        assert not batch.dlens[failed].any()
        good = [index for index in range(PAGES) if index not in failed]
        assert results(batch, good) == [expected[index] for index in good]
        assert_all_slots_are_free(engine)
        # A death is counted a moment after batches hear of it.
        await_true(lambda: engine.statistics.restarts >= 2 * len(failed), "two deaths a page")
        died = engine.statistics.restarts
    report(f"deadly pages: {len(failed)} isolated of {PAGES}, {died} workers died")


@pytest.mark.slow
@pytest.mark.parametrize("action", ["kill", "raise"])
@pytest.mark.parametrize(
    "step", ["coded:8", "noted:1"], ids=["behind its last page", "behind all that it says"]
)
@pytest.mark.parametrize("kind", KINDS[::3], ids=str)
def test_pages_of_workers_that_fail_at_the_end_of_every_share_are_not_blamed(
    kind: Kind, step: str, action: str
) -> None:
    # A page that were suspected would go to the next worker alone, which fails then.
    ends = f"{step}:{action}", f"{step[:-1]}1:{action}", f"{step[:-1]}1:{action}"
    with armed(*ends), Engine("lz4", backend="workers", workers=1, isolate=True) as engine:
        assert engine.wait_ready()
        load = Load(engine.codec, 8)
        load.run(engine, kind, 0, 8)
        await_true(lambda: len(waiting) == 1, "the next one's start")
        assert engine.statistics.restarts == 1, "nothing was left to do for the next one"
        load.run(engine, kind, 0, 1)
        load.run(engine, kind, 1, 7)


@pytest.mark.slow
def test_the_page_that_a_worker_was_at_is_done_by_the_next_and_those_before_it_are_done() -> None:
    ends = "took:6:kill", "took:4:kill"
    with armed(*ends), Engine("lz4", backend="workers", workers=1, isolate=True) as engine:
        assert engine.wait_ready()
        load = Load(engine.codec, 8)
        load.run(engine, KINDS[0], 0, 8)
        await_true(lambda: engine.statistics.restarts == 1, "its end")
        assert engine.statistics.compress.pages == 8
