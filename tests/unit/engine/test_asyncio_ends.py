"""An engine keeps no page and no event loop longer than the call that had them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.store_pages import SIZE, noise

from batchzip import (
    CompressBatch,
    Engine,
    EngineBusy,
    Request,
    StoreRejected,
    SwapStore,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


# asyncio


class _Pages(np.ndarray):
    """An array that can be referred to weakly."""


def _pages() -> _Pages:
    return np.frombuffer(noise(1, 4 * SIZE), np.uint8).reshape(4, SIZE).copy().view(_Pages)


async def _cancelled(work: Coroutine[Any, Any, object]) -> None:
    task = asyncio.ensure_future(work)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def _astore(store: SwapStore, pages: Any) -> None:
    with contextlib.suppress(StoreRejected):
        await store.astore(0, pages)
        raise AssertionError("pages of noise were stored")


async def _await_failed(_: SwapStore, pages: Any) -> None:
    requests = [Request(CompressBatch(pages))]
    assert requests[0].take_up()
    requests[0].finish(OSError("failed"))
    with pytest.raises(OSError, match="failed"):
        await requests.pop()


def _wait_failed(_: SwapStore, pages: Any) -> None:
    requests = [Request(CompressBatch(pages))]
    requests[0].add_done_callback(lambda _: None)
    assert requests[0].take_up()
    requests[0].finish(OSError("failed"))
    with pytest.raises(OSError, match="failed"):
        requests.pop().wait()


KEEPERS: dict[str, Callable[[SwapStore, Any], Any]] = {
    "astore, rejected": _astore,
    "astore, cancelled": lambda s, pages: _cancelled(s.astore(0, pages)),
    "compress_async": lambda s, pages: s.engine.compress_async(CompressBatch(pages)),
    "compress_async, cancelled": lambda s, pages: _cancelled(
        s.engine.compress_async(CompressBatch(pages))
    ),
    "submit": lambda s, pages: s.engine.submit(CompressBatch(pages)).wait(),
    "await": lambda s, pages: asyncio.wait_for(s.engine.submit(CompressBatch(pages)), 60),
    "await, failed": _await_failed,
    "wait, failed": _wait_failed,
}


@pytest.mark.slow
@pytest.mark.parametrize("call", KEEPERS)
def test_pages_go_with_the_last_reference_and_need_no_collection(call: str) -> None:
    """cpython#80111, cpython#74028: an exception, its frames and its future kept the data alive."""
    with (
        Engine("lz4", backend="threads", workers=1) as engine,
        SwapStore(engine, keep_incompressible=False) as store,
    ):

        async def alone() -> bool:
            pages = _pages()
            seen = weakref.ref(pages)
            done = KEEPERS[call](store, pages)
            del pages
            if asyncio.iscoroutine(done):
                await done
            del done
            for _ in range(50):  # the thread that did it may be about to let go
                if seen() is None:
                    break
                await asyncio.sleep(0.01)
            return seen() is not None

        gc.collect()
        gc.disable()
        try:
            assert asyncio.run(alone()) is False
        finally:
            gc.enable()


@pytest.mark.slow
def test_event_loops_are_not_kept_by_an_engine_that_they_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """anyio#1203: what a WeakKeyDictionary keeps for a loop refers to the loop."""
    loops = []
    pages = np.zeros((1, SIZE), np.uint8)
    calls = itertools.count()
    with Engine("lz4", backend="threads", workers=1) as engine:
        submit = engine.submit

        def submit_if_there_is_room(batch: CompressBatch, **options: Any) -> Request[CompressBatch]:
            if next(calls) % 5 == 0:
                raise EngineBusy("full")
            return submit(batch, **options)

        monkeypatch.setattr(engine, "submit", submit_if_there_is_room)

        async def crowd() -> None:
            loops.append(weakref.ref(asyncio.get_running_loop()))
            batches = [CompressBatch(pages) for _ in range(20)]
            await asyncio.gather(*map(engine.compress_async, batches))

        for _ in range(3):
            asyncio.run(crowd())
        gc.collect()
        assert [loop() for loop in loops] == [None] * 3


def test_a_loop_that_is_closed_at_the_last_moment_is_no_error(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """anyio#1265, python/asyncio#258: closed between the look whether it is and the call."""
    loop = asyncio.new_event_loop()
    request = Request(CompressBatch(np.zeros((1, SIZE), np.uint8)))
    assert request.take_up()

    async def wait() -> None:
        await request

    task = loop.create_task(wait())
    loop.run_until_complete(asyncio.sleep(0))
    call = loop.call_soon_threadsafe

    def close_and_call(*arguments: Any) -> Any:
        loop.close()
        return call(*arguments)

    monkeypatch.setattr(loop, "call_soon_threadsafe", close_and_call)
    with caplog.at_level(logging.DEBUG, "concurrent.futures"):
        request.finish()
    assert not caplog.records
    task._log_destroy_pending = False  # type: ignore[attr-defined] # nobody is left to end it
