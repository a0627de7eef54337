"""A ring's life at its edges: an arena that grows, a lane that never finishes, memory that lies."""

from __future__ import annotations

import mmap
import struct

import numpy as np
import pytest
from support.dividing import divide_always

from batchzip import CompressBatch, Engine
from batchzip.codecs.lz4 import Lz4
from batchzip.core.batch import Blocks
from batchzip.core.coder import Coders
from batchzip.core.division import DONE, Divider
from batchzip.core.ring import Ring, ring_bytes
from batchzip.testing.plain import PAGE, SLACK_S, check_compressed, make_pages

CONTROL, SLOT_0 = 0, 4096
DONE_WORD = 128


@pytest.mark.slow
def test_a_worker_reads_where_pages_lie_after_the_arena_has_grown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    divide_always(monkeypatch)
    with Engine("lz4", backend="workers", workers=1) as engine:
        assert engine.wait_ready(SLACK_S)
        pages = engine.arena(8, PAGE)
        pages[:] = make_pages(8)
        for rows in (8, 4096):  # the second array lies behind what the worker has mapped
            dsts = engine.arena(rows, 2 * PAGE)[-8:]
            batch = CompressBatch(pages, dsts=dsts)
            engine.compress(batch)
            check_compressed(engine, batch, pages)
        assert engine.statistics.restarts == 0


@pytest.mark.slow
def test_a_lane_that_finishes_after_its_job_was_dropped_goes_on_taking_shares() -> None:
    memory = mmap.mmap(-1, ring_bytes(PAGE))
    ring = Ring(PAGE, 0, memory)
    struct.pack_into("<I", memory, CONTROL, 1)  # the lane is ready
    coders = Coders(Lz4(), PAGE)
    shared = Blocks()
    divider = Divider(coders, shared)
    divider.generous = True

    def batch() -> CompressBatch:
        return CompressBatch(np.zeros((2, PAGE), np.uint8), dsts=np.zeros((2, 2 * PAGE), np.uint8))

    first = batch()
    shared.add(first.dsts, 0)  # as if they lay in the arena: what is written there is waited for
    job = divider.start(first.pointers, (ring,))
    struct.pack_into("<I", memory, SLOT_0, 1)  # the lane takes a page
    del job
    struct.pack_into("<I", memory, CONTROL + DONE_WORD, 1)  # and finishes late
    others = [batch() for _ in range(4)]
    jobs = [divider.start(other.pointers, (ring,)) for other in others]
    assert ring.posted == 5, "the slot is free again"
    ring.mark_gone()
    for other, job in zip(others, jobs, strict=True):
        assert job.run(SLACK_S) == DONE
        assert not other.errors.any()
