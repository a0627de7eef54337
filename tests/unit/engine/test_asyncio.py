"""asyncio: thousands of calls at once leave the loop free, and cancelling is all or nothing."""

from __future__ import annotations

import asyncio
import errno
import itertools
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.codecs.slow import SlowCodec
from support.faulty_file import FaultyFile
from support.store_pages import noise, text

from batchzip import (
    BadBatch,
    ClosedError,
    CompressBatch,
    DecompressBatch,
    Engine,
    PageNotStored,
    StoreRejected,
    SwapStore,
)
from batchzip.asynchronous import CallThreads

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGE = 4096
BACKENDS = ["sequential", "workers"]


@pytest.fixture(params=BACKENDS)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine("lz4", backend=request.param) as engine:
        yield engine


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SwapStore]:
    with (
        Engine("lz4", backend="sequential") as engine,
        SwapStore(engine, backing=tmp_path) as store,
    ):
        yield store
        store.check_invariants()


def pages_of(seed: int, count: int) -> list[bytes]:
    return [text(seed * 1000 + n) for n in range(count)]


def test_batches_go_out_and_come_back(engine: Engine) -> None:
    async def there_and_back() -> None:
        batch = CompressBatch(pages_of(1, 50))
        assert await engine.compress_async(batch) is batch
        assert not batch.errors.any()
        out = np.empty((50, PAGE), np.uint8)
        back = DecompressBatch([*batch.outputs()], pages=out)
        assert await engine.decompress_async(back) is back
        assert out.tobytes() == b"".join(pages_of(1, 50))

    asyncio.run(there_and_back())


@pytest.mark.slow
def test_two_thousand_batches_at_once_need_no_thread_each(engine: Engine) -> None:
    threads = []

    async def one(seed: int) -> bool:
        batch = CompressBatch(pages_of(seed, 8))
        await engine.compress_async(batch)
        threads.append(threading.active_count())
        return batch.output(7) == engine.compress_page(text(seed * 1000 + 7))

    async def all_of_them() -> list[bool]:
        return await asyncio.gather(*(one(seed) for seed in range(2000)))

    before = threading.active_count()
    assert all(asyncio.run(all_of_them()))
    assert max(threads) - before <= 6


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_loop_is_free_meanwhile(backend: str) -> None:
    async def ticks(engine: Engine) -> int:
        work = asyncio.create_task(engine.compress_async(CompressBatch(pages_of(1, 40))))
        for turn in itertools.count():
            if work.done():
                await work
                return turn
            await asyncio.sleep(0)
        raise AssertionError

    with Engine(SlowCodec(0.002), backend=backend) as engine:
        assert asyncio.run(ticks(engine)) > 100


def test_four_calls_block_at_once() -> None:
    threads = CallThreads()
    meeting = threading.Barrier(4)

    async def meet() -> None:
        await asyncio.gather(*(threads.call(lambda: meeting.wait(10)) for _ in range(4)))

    asyncio.run(meet())
    threads.close()


@pytest.mark.slow
def test_loops_in_several_threads_use_one_engine(engine: Engine) -> None:
    done: list[bool] = []

    async def many() -> None:
        batches = [CompressBatch(pages_of(n, 64)) for n in range(50)]
        await asyncio.gather(*map(engine.compress_async, batches))
        done.extend(not batch.errors.any() for batch in batches)

    threads = [threading.Thread(target=asyncio.run, args=(many(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [True] * 150


def test_the_wrong_kind_of_batch_and_a_closed_engine_are_refused(engine: Engine) -> None:
    batch = CompressBatch([text(1)])
    with pytest.raises(BadBatch, match="takes a DecompressBatch"):
        asyncio.run(engine.decompress_async(batch))  # type: ignore[arg-type] # which is refused
    with pytest.raises(BadBatch, match="takes a CompressBatch"):
        asyncio.run(engine.compress_async(b""))  # type: ignore[arg-type] # as above
    engine.close()
    with pytest.raises(ClosedError):
        asyncio.run(engine.compress_async(batch))


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_cancelled_batches_are_done_or_cancelled_as_a_whole(backend: str) -> None:
    async def cancel_most(engine: Engine) -> set[int]:
        batches = [CompressBatch(pages_of(n, 4)) for n in range(500)]
        tasks = [asyncio.create_task(engine.compress_async(batch)) for batch in batches]
        await asyncio.sleep(0)  # each is submitted, or waits its turn
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        codes = set()
        for batch in batches:
            # Nobody writes to it any more, whatever became of it.
            before = batch.dlens.copy(), batch.errors.copy()
            assert len({*batch.errors.tolist()}) == 1
            codes.add(int(batch.errors[0]))
            assert ((batch.dlens == 0) == (batch.errors != 0)).all()
            await asyncio.sleep(0)
            assert (batch.dlens == before[0]).all()
            assert (batch.errors == before[1]).all()
        return codes

    with Engine(SlowCodec(0.002), backend=backend) as engine:
        codes = asyncio.run(cancel_most(engine))
    assert -errno.ECANCELED in codes <= {0, -errno.ECANCELED}


@pytest.mark.slow
def test_a_timeout_leaves_the_buffers_to_their_owner() -> None:
    async def hurry(engine: Engine) -> None:
        await engine.compress_async(CompressBatch(pages_of(1, 1)))  # its thread has started
        batch = CompressBatch(pages_of(1, 10))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await engine.compress_async(batch)
        assert not batch.errors.any()  # it had begun
        assert batch.dlens.all()

    with Engine(SlowCodec(0.03), backend="sequential") as engine:
        asyncio.run(hurry(engine))


@pytest.mark.slow
def test_pages_are_stored_and_loaded_by_thousands_of_tasks(store: SwapStore) -> None:
    threads = []

    async def one(index: int) -> None:
        await store.astore(index * 2, [text(index), noise(index)])
        assert await store.aload(index * 2) == text(index)
        pages = await store.aload_many([index * 2 + 1, index * 2])
        assert pages.tobytes() == noise(index) + text(index)
        threads.append(threading.active_count())

    async def all_of_them() -> None:
        await asyncio.gather(*(one(index) for index in range(2000)))

    before = threading.active_count()
    asyncio.run(all_of_them())
    assert len(store) == 4000
    assert max(threads) - before <= 4


def test_a_page_in_the_file_is_loaded_by_a_thread(store: SwapStore) -> None:
    store.store(0, pages_of(0, 20))
    store.writeback(10)

    async def load() -> list[bytes]:
        return await asyncio.gather(*map(store.aload, range(20)))

    assert asyncio.run(load()) == pages_of(0, 20)


def test_the_loop_is_free_while_the_file_is_read() -> None:
    class Slow(FaultyFile):
        def __init__(self) -> None:
            super().__init__()
            self.asked, self.answer = threading.Event(), threading.Event()
            self.was_told = False

        def pread(self, length: int, offset: int) -> bytes:
            self.asked.set()
            self.was_told = self.answer.wait(5)
            return super().pread(length, offset)

    async def load(store: SwapStore, file: Slow) -> bytes:
        page = asyncio.create_task(store.aload(0))
        assert await asyncio.to_thread(file.asked.wait, 5)
        file.answer.set()
        return await page

    file = Slow()
    with Engine("lz4", backend="sequential") as engine, SwapStore(engine, backing=file) as store:
        store.store(0, text(0))
        assert store.writeback(1) == 1
        assert asyncio.run(load(store, file)) == text(0)
    assert file.was_told, "the loop answered while it waited"


def test_groups_have_the_same_calls(store: SwapStore) -> None:
    async def there_and_back() -> bytes:
        await store.group("tiles").astore(7, text(7))
        return await store.group("tiles").aload(7)

    assert asyncio.run(there_and_back()) == text(7)
    assert 7 not in store


def test_pages_larger_than_a_loop_should_restore_are_loaded_too(tmp_path: Path) -> None:
    with (
        Engine("zstd", page_size=1 << 16, backend="sequential") as engine,
        SwapStore(engine, backing=tmp_path) as store,
    ):
        store.store(3, text(3, 1 << 16))
        assert asyncio.run(store.aload(3)) == text(3, 1 << 16)


def test_awaited_calls_raise_the_errors_of_plain_ones(store: SwapStore) -> None:
    out = np.empty((2, PAGE), np.uint8)
    store.store(0, text(0))
    with pytest.raises(PageNotStored):
        asyncio.run(store.aload(5))
    with pytest.raises(PageNotStored):
        asyncio.run(store.aload_many([0, 5], out))
    with pytest.raises(BadBatch):
        asyncio.run(store.astore(0, b"short"))
    assert store.load(0) == text(0)
    with (
        Engine("lz4", backend="sequential") as engine,
        SwapStore(engine, max_pool_bytes=0) as full,
        pytest.raises(StoreRejected),
    ):
        asyncio.run(full.astore(0, text(1)))


@pytest.mark.slow
def test_a_cancelled_store_keeps_the_folio_whole_or_not_at_all() -> None:
    async def cancel_most(store: SwapStore) -> None:
        mine = [bytearray(text(n) * 4) for n in range(60)]
        tasks = [asyncio.create_task(store.astore(n * 4, pages)) for n, pages in enumerate(mine)]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
            task.cancel()  # once more while it waits
        await asyncio.gather(*tasks, return_exceptions=True)
        for pages in mine:
            pages[:] = bytes(len(pages))  # they are ours again
        stored = [n for n in range(60) if n * 4 in store]
        assert 0 < len(stored) < 60
        assert len(store) == len(stored) * 4
        for n in stored:
            assert store.load_many(range(n * 4, n * 4 + 4)).tobytes() == text(n) * 4

    with Engine(SlowCodec(0.002), backend="sequential") as engine, SwapStore(engine) as store:
        asyncio.run(cancel_most(store))
        store.check_invariants()


def test_a_store_that_is_closed_meanwhile_says_so_to_every_task() -> None:
    async def close_early(store: SwapStore) -> list[object]:
        tasks = [asyncio.create_task(store.astore(n, text(n))) for n in range(100)]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.to_thread(store.close)
        with pytest.raises(ClosedError):
            await store.aload(0)
        return await asyncio.gather(*tasks, return_exceptions=True)

    with Engine(SlowCodec(0.002), backend="sequential") as engine:
        results = asyncio.run(close_early(SwapStore(engine)))
    assert {type(result) for result in results} <= {type(None), ClosedError}
    assert ClosedError in map(type, results)
