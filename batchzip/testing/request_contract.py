"""The contract of requests: submit, wait, await, callbacks, cancel."""

from __future__ import annotations

import asyncio
import errno
import math
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from batchzip.batch import CompressBatch, DecompressBatch
from batchzip.errors import BadArgument, RequestCancelled, RequestTimeout
from batchzip.testing.plain import (
    PAGE,
    SLACK_S,
    Plain,
    check_compressed,
    check_restored,
    make_pages,
)

if TYPE_CHECKING:
    from batchzip.arguments.buffers import Bytes
    from batchzip.engine import Engine
    from batchzip.request import Request


class RequestContract:
    """Promises about requests. BackendContract inherits them, and has the fixture `engine`."""

    def test_a_submitted_batch_has_the_results_of_a_run_one(self, engine: Engine) -> None:
        for count in (1, 2, 300):
            pages = make_pages(count)
            batch = CompressBatch(pages)
            request = engine.submit(batch)
            assert request.wait(SLACK_S) is batch is request.batch
            assert request.done()
            check_compressed(engine, batch, pages)
            check_restored(engine.submit(DecompressBatch(batch.outputs())).wait(SLACK_S), pages)

    def test_a_submitted_batch_has_errors_of_its_pages_and_does_not_raise(
        self, engine: Engine
    ) -> None:
        batch = CompressBatch([b"x", *map(bytes, make_pages(9))], page_size=PAGE)
        errors = engine.submit(batch).wait(SLACK_S).errors
        assert errors.tolist() == [-errno.EINVAL] + [0] * 9

    def test_many_requests_in_flight_each_get_their_own_results(self, engine: Engine) -> None:
        work = [make_pages(1 + 13 * seed, seed=seed) for seed in range(20)]
        requests = [engine.submit(CompressBatch(pages)) for pages in work]
        for pages, request in reversed(list(zip(work, requests, strict=True))):
            check_compressed(engine, request.wait(SLACK_S), pages)

    def test_requests_are_awaited_several_at_once(self, engine: Engine) -> None:
        work = [make_pages(40, seed=seed) for seed in range(8)]

        async def one(pages: Bytes) -> None:
            batch = await engine.submit(CompressBatch(pages))
            check_compressed(engine, batch, pages)
            check_restored(await engine.submit(DecompressBatch(batch.outputs())), pages)

        async def all_of_them() -> None:
            await asyncio.wait_for(asyncio.gather(*map(one, work)), SLACK_S)

        asyncio.run(all_of_them())

    def test_a_callback_is_called_once_whenever_it_was_added(self, engine: Engine) -> None:
        pages = make_pages(200)
        request = engine.submit(CompressBatch(pages))
        calls: list[tuple[str, Request[CompressBatch], bool]] = []
        early = threading.Event()

        def note(which: str, seen: Request[CompressBatch]) -> None:
            calls.append((which, seen, seen.done()))

        request.add_done_callback(lambda seen: note("early", seen))
        request.add_done_callback(lambda _: early.set())
        request.wait(SLACK_S)
        assert early.wait(SLACK_S)
        request.add_done_callback(lambda seen: note("late", seen))
        request.wait(SLACK_S)
        assert calls == [("early", request, True), ("late", request, True)]

    def test_a_callback_that_raises_harms_nothing(self, engine: Engine) -> None:
        pages = make_pages(200)
        request = engine.submit(CompressBatch(pages))
        after = threading.Event()
        request.add_done_callback(lambda _: 1 // 0)
        request.add_done_callback(lambda _: after.set())
        check_compressed(engine, request.wait(SLACK_S), pages)
        assert after.wait(SLACK_S)
        request.add_done_callback(lambda _: 1 // 0)
        check_restored(engine.submit(DecompressBatch(request.batch.outputs())).wait(SLACK_S), pages)

    def test_a_request_is_cancelled_with_every_page_or_done(self, engine: Engine) -> None:
        work = [make_pages(200, seed=seed) for seed in range(10)]
        requests = [engine.submit(CompressBatch(pages)) for pages in work]
        told: list[tuple[Request[CompressBatch], set[int]]] = []
        for request in requests:
            request.add_done_callback(lambda r: told.append((r, set(r.batch.errors.tolist()))))
        cancelled = [request.cancel() for request in reversed(requests)][::-1]
        for request, pages, was_cancelled in zip(requests, work, cancelled, strict=True):
            if was_cancelled is True:
                assert request.done()
                with pytest.raises(RequestCancelled):
                    request.wait(SLACK_S)
                assert (request.batch.errors == -errno.ECANCELED).all()
                assert not request.batch.dlens.any()
                assert request.cancel() is True
            else:
                assert was_cancelled is False
                check_compressed(engine, request.wait(SLACK_S), pages)
        engine.submit(CompressBatch(make_pages(2))).wait(SLACK_S)  # all callbacks before are over
        assert len(told) == len(requests)
        for request, errors in told:
            was_cancelled = cancelled[requests.index(request)]
            assert errors == ({-errno.ECANCELED} if was_cancelled else {0}), "seen by a callback"

    def test_a_deadline_of_none_left_leaves_each_page_timed_out_or_done(
        self, engine: Engine
    ) -> None:
        for count in (1, 8, 1000):
            pages = make_pages(count)
            batch = engine.submit(CompressBatch(pages), deadline_s=0).wait(SLACK_S)
            assert set(batch.errors.tolist()) <= {0, -errno.ETIMEDOUT}
            assert not batch.dlens[batch.errors != 0].any()
            plain = Plain(engine)
            for index in np.flatnonzero(batch.errors == 0).tolist():
                assert plain.restore(bytes(batch.output(index))) == pages[index].tobytes()
            back = engine.submit(DecompressBatch(plain.compress(pages)), deadline_s=0).wait(SLACK_S)
            assert set(back.errors.tolist()) <= {0, -errno.ETIMEDOUT}
            done = back.errors == 0
            np.testing.assert_array_equal(back.pages[done], pages[done])
            engine.compress(batch)  # the engine and the batch are as usable as before
            check_compressed(engine, batch, pages)

    @pytest.mark.parametrize(
        "options",
        [
            {"timeout_s": 0},
            {"timeout_s": SLACK_S},
            {"timeout_s": math.inf},
            {"block": False},
            {"block": False, "timeout_s": 0.0, "deadline_s": SLACK_S},
            {"deadline_s": math.inf},
            {"timeout_s": None, "deadline_s": None, "block": True},
        ],
        ids=repr,
    )
    def test_where_there_is_room_and_time_no_option_of_submit_changes_anything(
        self, engine: Engine, options: dict[str, Any]
    ) -> None:
        pages = make_pages(100)
        request = engine.submit(CompressBatch(pages), **options)
        check_compressed(engine, request.wait(SLACK_S), pages)

    @pytest.mark.parametrize("name", ["timeout_s", "deadline_s"])
    @pytest.mark.parametrize("seconds", [-1, -1e-9, math.nan])
    def test_seconds_that_cannot_be_are_refused_by_name(
        self, engine: Engine, name: str, seconds: float
    ) -> None:
        options: dict[str, Any] = {name: seconds}
        with pytest.raises(BadArgument, match=f"^{name} must be seconds"):
            engine.submit(CompressBatch(make_pages(1)), **options)

    def test_a_wait_without_time_returns_or_raises_and_the_request_goes_on(
        self, engine: Engine
    ) -> None:
        pages = make_pages(1000)
        request = engine.submit(CompressBatch(pages))
        deadline = time.monotonic() + SLACK_S
        while time.monotonic() < deadline:
            try:
                batch = request.wait(timeout_s=0)
            except RequestTimeout:
                time.sleep(0.0001)  # a loop without it would take the GIL from whoever works
                continue
            check_compressed(engine, batch, pages)
            return
        pytest.fail("the request is never done")
