"""Callers that keep all CPUs busy share no batches: each does its own alone."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pytest
from support.waiting import await_true

from batchzip import Codec, CompressedMapping, Engine, SwapStore
from batchzip.testing.plain import PAGE, SLACK_S, in_threads, make_pages

if TYPE_CHECKING:
    from batchzip.arguments.buffers import Flat
    from batchzip.codecs.codec import Transcode


@dataclass(frozen=True, slots=True)
class GatedCodec(Codec):
    """Drops every second byte. In the process `owner`, it waits while the file `gate` exists."""

    name: ClassVar[str] = "gated"

    owner: int
    gate: str

    WAITING: ClassVar[list[None]] = []

    def compressor(self, page_size: int) -> Transcode:  # noqa: ARG002 - for all sizes
        def compress(page: Flat) -> bytes:
            if os.getpid() == self.owner and Path(self.gate).exists():
                self.WAITING.append(None)
                while Path(self.gate).exists():
                    time.sleep(0.001)
                self.WAITING.pop()
            return bytes(page)[::2]

        return compress

    def decompressor(self, page_size: int) -> Transcode:  # noqa: ARG002 - as above
        def restore(src: Flat) -> bytes:
            return bytes(np.repeat(np.frombuffer(src, np.uint8), 2))

        return restore


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_not_divided_while_callers_keep_all_cpus_busy(
    tmp_path: Path, workers: int
) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    callers: list[threading.Thread] = []
    codec = GatedCodec(os.getpid(), str(gate))

    def waits(count: int) -> bool:
        return len(codec.WAITING) == count

    with Engine(codec, backend="workers", workers=workers) as engine:
        try:
            for number in range(workers + 1):
                assert engine.works_alone(1)
                assert not engine.works_alone(2)
                caller = threading.Thread(target=engine.compress_page, args=(bytes(PAGE),))
                callers.append(caller)
                caller.start()
                await_true(partial(waits, number + 1))
            assert engine.works_alone(2)
        finally:
            gate.unlink()
            for caller in callers:
                caller.join(SLACK_S)
        assert not engine.works_alone(2)
        assert engine.statistics.compress.pages == workers + 1


def test_coders_that_mappings_keep_for_lanes_are_no_callers() -> None:
    with Engine("lz4", backend="threads", workers=1) as engine, SwapStore(engine) as store:
        assert engine.wait_ready(SLACK_S)
        mappings = [CompressedMapping(store, name=str(number)) for number in range(3)]
        for mapping in mappings:
            mapping.update((number, make_pages(1, seed=number).tobytes()) for number in range(64))
            for _ in range(8):
                assert len(mapping.get_many(range(64))) == 64
        assert not engine.works_alone(2)
        for mapping in mappings:
            mapping.close()


def test_a_caller_does_nothing_alone_if_the_codec_is_isolated(tmp_path: Path) -> None:
    codec = GatedCodec(os.getpid(), str(tmp_path / "no gate"))
    with Engine(codec, backend="workers", workers=1, isolate=True) as engine:
        assert not engine.works_alone(1)
        assert not engine.works_alone(2)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["threads", "workers"])
def test_a_crowd_stores_and_loads_its_own_pages(backend: str) -> None:
    with Engine("lz4", backend=backend, workers=1) as engine, SwapStore(engine) as store:
        done = [0] * 8

        def work(number: int) -> None:
            room = np.empty((16, PAGE), np.uint8)
            first, until = number * 16, time.monotonic() + 1
            while time.monotonic() < until:
                pages = make_pages(16, seed=number + done[number])
                store.store(first, pages)
                store.load_many(range(first, first + 16), room)
                assert np.array_equal(room, pages)
                done[number] += 16

        in_threads(8, work)
        store.check_invariants()
        assert all(done)
        assert store.counters.stored_pages == len(store) == 128
        assert not engine.statistics.errors
