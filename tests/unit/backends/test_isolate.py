"""isolate=True: the owner never runs the codec; what workers cannot do fails with -EOWNERDEAD."""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.codecs.faulty import KILL, FaultyCodec
from support.codecs.recording import RecordingCodec

from batchzip import (
    BadArgument,
    CompressBatch,
    DecompressBatch,
    Engine,
    PageError,
    StoreRejected,
    SwapStore,
    WorkerWarning,
)
from batchzip.lanes import watch
from batchzip.testing.plain import PAGE, SLACK_S, check_restored
from batchzip_workers import backend as backend_module
from batchzip_workers.ring import WorkerRing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from batchzip.arguments.buffers import Bytes


def some_pages(count: int, *deadly: int) -> Bytes:
    pages = np.random.default_rng(count).integers(0, 6, (count, PAGE), np.uint8)
    pages[:, :4] = 0
    for index in deadly:
        pages[index, :4] = np.frombuffer(KILL, np.uint8)
    return pages


@pytest.fixture
def codec(tmp_path: Path) -> RecordingCodec:
    return RecordingCodec(str(tmp_path / "log"))


@pytest.fixture
def deadly() -> Iterator[Engine]:
    """An engine whose codec kills the process that does a marked page, the owner excepted."""
    codec = FaultyCodec(os.getpid())
    with Engine(codec, backend="workers", workers=1, isolate=True) as engine:
        yield engine


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("ready", [True, False])
def test_the_owner_never_runs_the_codec(codec: RecordingCodec, workers: int, ready: bool) -> None:
    done = 0
    with Engine(codec, workers=workers, isolate=True) as engine, SwapStore(engine) as store:
        assert engine.backend.name == "workers"
        if ready:
            assert engine.wait_ready(SLACK_S)
        for count in (1, 2, 9, 300):
            pages = some_pages(count)
            batch = CompressBatch(pages)
            engine.compress(batch)
            assert not batch.errors.any()
            back = DecompressBatch(batch.outputs())
            engine.submit(back).wait(SLACK_S)
            check_restored(back, pages)
            done += 2 * count
        output = engine.compress_page(pages[0])
        assert output == batch.output(0)
        assert engine.decompress_page(output) == pages[0].tobytes()
        store.store(0, pages[:20])
        store.store(100, pages[20:21])
        assert store.load(3) == pages[3].tobytes()
        assert store.load(100) == pages[20].tobytes()
        np.testing.assert_array_equal(store.load_many(range(20)), pages[:20])
        done += 2 + 20 + 1 + 2 + 20
        processes = codec.processes()
        assert os.getpid() not in processes
        assert sum(processes.values()) == done
        statistics = engine.statistics
        assert statistics.compress.inline_pages == statistics.decompress.inline_pages == 0
        assert statistics.compress.pages + statistics.decompress.pages == done


@pytest.mark.slow
def test_pages_that_kill_get_eownerdead_alone_and_are_never_run_here(deadly: Engine) -> None:
    pages = some_pages(40, 0, 7, 39)
    batch = CompressBatch(pages)
    deadly.compress(batch)
    assert np.flatnonzero(batch.errors).tolist() == [0, 7, 39]
    assert (batch.errors[[0, 7, 39]] == -errno.EOWNERDEAD).all()
    good = [index for index in range(40) if index not in (0, 7, 39)]
    back = DecompressBatch([batch.output(index) for index in good])
    deadly.decompress(back)
    check_restored(back, pages[good])


@pytest.mark.slow
def test_a_single_page_that_kills_is_an_error(deadly: Engine) -> None:
    page = some_pages(1, 0)[0]
    with pytest.raises(PageError) as failure:
        deadly.compress_page(page)
    assert failure.value.errno == -errno.EOWNERDEAD
    with SwapStore(deadly) as store, pytest.raises(StoreRejected) as rejected:
        store.store(0, [page, some_pages(1)[0]])
    assert rejected.value.errors == [-errno.EOWNERDEAD, 0]
    assert deadly.compress_page(some_pages(1)[0])


@pytest.mark.slow
def test_a_single_source_that_cannot_be_decoded_is_an_error(deadly: Engine) -> None:
    with pytest.raises(PageError) as failure:
        deadly.decompress_page(b"\xff" * 9)
    assert failure.value.errno == -errno.EBADMSG


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["batch", "request", "page"])
def test_where_no_worker_can_be_started_pages_fail_in_time(
    codec: RecordingCodec, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_memory = False

    def make_ring(*arguments: Any) -> WorkerRing:
        if not has_memory:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return WorkerRing(*arguments)

    monkeypatch.setattr(backend_module, "WorkerRing", make_ring)
    monkeypatch.setattr(watch, "REPLACE_S", 0.2)
    with Engine(codec, backend="workers", workers=1, isolate=True) as engine:
        with pytest.warns(WorkerWarning, match="No space left"):
            assert not engine.wait_ready()
        batch = CompressBatch(some_pages(8))
        if kind == "page":
            with pytest.raises(PageError) as failure:
                engine.compress_page(some_pages(1)[0])
            assert failure.value.errno == -errno.EOWNERDEAD
        else:
            if kind == "batch":
                engine.compress(batch)
            else:
                engine.submit(batch).wait(SLACK_S)
            assert (batch.errors == -errno.EOWNERDEAD).all()
            assert not batch.dlens.any()
        has_memory = True
        deadline = time.monotonic() + SLACK_S
        while not engine.wait_ready(1):
            assert time.monotonic() < deadline, "no worker came"
        engine.compress(batch)
        assert not batch.errors.any()
    assert os.getpid() not in codec.processes()


@pytest.mark.slow
def test_a_deadline_is_kept_where_no_worker_is_there(codec: RecordingCodec) -> None:
    with Engine(codec, backend="workers", workers=1, isolate=True) as engine:
        assert engine.wait_ready(SLACK_S)
        batch = engine.submit(CompressBatch(some_pages(50)), deadline_s=0).wait(SLACK_S)
        assert (batch.errors == -errno.ETIMEDOUT).all()


@pytest.mark.parametrize("backend", ["sequential", "threads"])
def test_only_workers_isolate(backend: str) -> None:
    with pytest.raises(BadArgument, match=r"isolate=True needs .*workers"):
        Engine("lz4", backend=backend, isolate=True)
