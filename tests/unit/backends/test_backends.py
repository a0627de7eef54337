"""The backends of this project, held to the contract."""

from __future__ import annotations

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.codecs.faulty import KILL, FaultyCodec
from support.codecs.slow import SlowCodec
from support.dividing import divide_always

from batchzip import ClosedError, CompressBatch, Engine, algorithms
from batchzip.testing import BackendContract
from batchzip.testing.plain import SLACK_S, make_layered_codec, make_pages
from batchzip_sequential import SequentialBackend
from batchzip_threads import ThreadsBackend
from batchzip_workers.backend import WorkersBackend

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchzip import Backend, Codec


FEW: list[str | Callable[[], Codec]] = ["lz4", "zstd", "deflate", make_layered_codec]
"""Two libraries, a codec that does not always make the same bytes, and one of all layers."""

NATIVE: list[str | Callable[[], Codec]] = ["lz4", "zstd", "lz4hc", make_layered_codec]

FAST: list[str | Callable[[], Codec]] = ["lz4", make_layered_codec]


class TestSequential(BackendContract):
    codecs = FAST

    @classmethod
    def make_backend(cls) -> Backend:
        return SequentialBackend()


@pytest.mark.slow
class TestSequentialWithEveryOtherCodec(TestSequential):
    codecs = [name for name in algorithms() if name not in FAST]  # noqa: RUF012 - as in the contract


@pytest.mark.slow
class TestOneWorker(BackendContract):
    codecs = FEW

    @classmethod
    def make_backend(cls) -> Backend:
        return WorkersBackend(workers=1)


@pytest.mark.slow
class GetTheirShare(BackendContract):
    """Lanes that always get their share, whatever it costs."""

    @classmethod
    def make_engine(cls, algorithm: str | Codec = "lz4", page_size: int = 4096) -> Engine:
        with pytest.MonkeyPatch.context() as patch:
            divide_always(patch)
            return super().make_engine(algorithm, page_size)


class TestThreeWorkersThatAlwaysGetTheirShare(GetTheirShare):
    codecs = FEW

    @classmethod
    def make_backend(cls) -> Backend:
        return WorkersBackend(workers=3)


@pytest.mark.slow
class TestIsolatedWorkers(BackendContract):
    codecs = FEW

    @classmethod
    def make_backend(cls) -> Backend:
        return WorkersBackend(workers=2, isolate=True)


class TestOneThread(BackendContract):
    codecs = FAST

    @classmethod
    def make_backend(cls) -> Backend:
        return ThreadsBackend(workers=1)


@pytest.mark.slow
class TestOneThreadWithEveryOtherCodec(TestOneThread):
    codecs = [codec for codec in NATIVE if codec not in FAST]  # noqa: RUF012 - as in the contract


class TestThreeThreadsThatAlwaysGetTheirShare(GetTheirShare):
    codecs = NATIVE

    @classmethod
    def make_backend(cls) -> Backend:
        return ThreadsBackend(workers=3)


@pytest.mark.slow
def test_a_batch_that_isolated_workers_have_not_begun_is_refused_when_their_engine_is_closed() -> (
    None
):
    engine = Engine(SlowCodec(0.01), backend=WorkersBackend(workers=1, isolate=True))
    assert engine.wait_ready(60)
    assert isinstance(engine.backend, WorkersBackend)
    (ring,) = engine.backend.rings

    def compress() -> None:
        with pytest.raises(ClosedError):
            engine.compress(CompressBatch(make_pages(500)))

    def close() -> None:
        deadline = time.monotonic() + SLACK_S
        while not ring.posted and time.monotonic() < deadline:
            time.sleep(0.001)
        engine.close()

    with ThreadPoolExecutor() as threads:
        for done in [threads.submit(compress), threads.submit(close)]:
            done.result(SLACK_S)


@pytest.mark.slow
def test_a_request_of_isolated_workers_is_finished_when_their_engine_is_closed() -> None:
    engine = Engine(SlowCodec(0.002), backend=WorkersBackend(workers=1, isolate=True))
    assert engine.wait_ready(60)
    request = engine.submit(CompressBatch(make_pages(500)))
    engine.close()
    assert not request.wait(SLACK_S).errors.any()


@pytest.mark.slow
@pytest.mark.parametrize("_time", range(3))
def test_a_page_that_killed_its_worker_is_never_run_in_the_owner(
    _time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    divide_always(monkeypatch)
    pages = np.zeros((16, 4096), np.uint8)
    pages[1, :4] = np.frombuffer(KILL, np.uint8)  # the first half of the pages is the worker's
    with Engine(FaultyCodec(os.getpid()), backend="workers", workers=1) as engine:
        assert engine.wait_ready(60)
        batch = CompressBatch(pages)
        engine.compress(batch)
        assert batch.errors.tolist() == [0, -errno.EOWNERDEAD] + [0] * 14
