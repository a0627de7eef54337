"""Request: what the contract suite leaves open, above all races of an end with a wait."""

from __future__ import annotations

import asyncio
import errno
import math
import os
import subprocess
import sys
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np
import pytest

from batchzip import CompressBatch, Engine, Request, RequestCancelled, RequestTimeout

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine("zstd", level=1, backend="sequential") as engine:
        yield engine


@pytest.fixture
def batch() -> CompressBatch:
    return CompressBatch(np.zeros((3, 4096), np.uint8))


def finish(request: Request[CompressBatch], error: BaseException | None = None) -> None:
    """Do a backend's part, when the test says so."""
    assert request.take_up()
    request.finish(error)


def test_a_request_of_the_sequential_backend_is_done_at_once(
    engine: Engine, batch: CompressBatch
) -> None:
    request = engine.submit(batch)
    assert request.done()
    assert request.cancel() is False
    assert request.wait(timeout_s=0) is batch


def test_a_wait_that_times_out_says_for_how_many_pages_and_how_long(
    batch: CompressBatch,
) -> None:
    request = Request(batch)
    with pytest.raises(RequestTimeout, match=r"3 pages is not done after 0\.01 s"):
        request.wait(timeout_s=0.01)
    with pytest.raises(TimeoutError):
        request.wait(timeout_s=0)
    assert not request.done()
    finish(request)
    assert request.wait(timeout_s=0) is batch


@pytest.mark.parametrize("timeout_s", [1e12, math.inf])
def test_a_wait_may_be_as_long_as_one_likes(batch: CompressBatch, timeout_s: float) -> None:
    request = Request(batch)
    threading.Timer(0.05, finish, [request]).start()
    assert request.wait(timeout_s) is batch


def test_a_cancelled_request_is_not_taken_up_and_one_taken_up_is_not_cancelled(
    batch: CompressBatch,
) -> None:
    request = Request(batch)
    assert request.cancel()
    assert not request.take_up()
    assert request.cancel()
    other = Request(CompressBatch(bytes(4096), page_size=4096))
    assert other.take_up()
    assert not other.cancel()
    other.finish()
    assert not other.cancel()


class DoneJustAfterTheWait(Future[None]):
    """Finishes in the moment between a wait's end and what comes after it."""

    def exception(self, timeout: float | None = None) -> BaseException | None:
        try:
            return super().exception(timeout)
        except TimeoutError:
            self.set_result(None)
            raise


def test_a_request_done_in_the_moment_a_wait_gives_up_is_a_timeout_or_a_result(
    batch: CompressBatch,
) -> None:
    request = Request(batch)
    request._future = DoneJustAfterTheWait()
    try:
        assert request.wait(timeout_s=0) is batch
    except RequestTimeout:
        assert request.wait(timeout_s=0) is batch


def test_an_exception_that_failed_the_batch_is_raised_where_it_is_waited_for(
    batch: CompressBatch,
) -> None:
    request = Request(batch)
    finish(request, OSError(errno.ENOMEM, "no memory"))
    with pytest.raises(OSError, match="no memory"):
        request.wait()
    with pytest.raises(OSError, match="no memory"):
        asyncio.run(_await(request))


def test_a_timeout_that_failed_the_batch_is_not_taken_for_one_of_the_wait(
    batch: CompressBatch,
) -> None:
    request = Request(batch)
    finish(request, TimeoutError("the batch's own"))
    with pytest.raises(TimeoutError, match="the batch's own") as failure:
        request.wait()
    assert not isinstance(failure.value, RequestTimeout)


async def _await(request: Request[CompressBatch]) -> CompressBatch:
    return await request


def test_a_cancelled_request_raises_requestcancelled_also_where_it_is_awaited(
    batch: CompressBatch,
) -> None:
    request = Request(batch)
    assert request.cancel() is True
    with pytest.raises(RequestCancelled):
        request.wait()
    # CancelledError would tell the awaiting task that itself was cancelled.
    with pytest.raises(RequestCancelled):
        asyncio.run(_await(request))


def test_every_page_is_ecanceled_before_anybody_hears_of_it(
    batch: CompressBatch,
) -> None:
    request = Request(batch)
    seen: list[list[int]] = []
    request.add_done_callback(lambda r: seen.append(r.batch.errors.tolist()))
    assert request.cancel() is True
    assert seen == [[-errno.ECANCELED] * 3]


def test_a_request_cancelled_by_its_awaiting_task_has_ecanceled_too(
    batch: CompressBatch,
) -> None:
    request = Request(batch)

    async def cancel_the_task() -> None:
        task = asyncio.ensure_future(_await(request))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel_the_task())
    assert request.done()
    with pytest.raises(RequestCancelled):
        request.wait()
    assert batch.errors.tolist() == [-errno.ECANCELED] * 3


def test_several_threads_and_tasks_may_wait_for_one_request(
    batch: CompressBatch,
) -> None:
    request = Request(batch)
    results: list[CompressBatch] = []
    threads = [threading.Thread(target=lambda: results.append(request.wait())) for _ in range(4)]
    for thread in threads:
        thread.start()

    async def several() -> None:
        tasks = [asyncio.ensure_future(_await(request)) for _ in range(4)]
        await asyncio.sleep(0)
        finish(request)
        results.extend(await asyncio.gather(*tasks))

    asyncio.run(several())
    for thread in threads:
        thread.join()
    assert all(result is batch for result in results)
    assert len(results) == 8


FORKED_WAIT = """
import os, warnings
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
import numpy as np
from batchzip import CompressBatch, Engine, ForkedProcess

engine = Engine("zstd", level=19, backend="workers", workers=1)
engine.wait_ready()
pages = np.random.default_rng(1).integers(0, 9, (2000, 4096), np.uint8)
requests = [engine.submit(CompressBatch(pages)) for _ in range(2)]
child = os.fork()
if child == 0:
    try:
        requests[-1].wait(timeout_s=5)
    except ForkedProcess:
        os._exit(0)
    except BaseException as error:
        os.write(2, repr(error).encode())
    os._exit(1)
status = os.waitpid(child, 0)[1]
requests[-1].wait()
engine.close()
assert status == 0
"""


@pytest.mark.slow
def test_a_request_under_way_is_refused_in_a_forked_child() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKED_WAIT], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), os.linesep + done.stderr
