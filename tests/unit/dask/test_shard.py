"""Shard: requests that come late, twice or at another epoch, without a cluster."""

from __future__ import annotations

import asyncio
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from batchzip import BatchzipError, ClosedError, CorruptPage, PageNotStored, StoreRejected
from batchzip.dask.record import STRIPE
from batchzip.dask.shard import Shard
from batchzip.dask.wire import Stale, error_of
from batchzip.testing.plain import make_pages

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

PAGE = 4096
ONE, OTHER = ["one", "tcp://1"], ["other", "tcp://2"]


class Service:
    """What a shard needs of its worker; the directory agrees to all."""

    def __init__(self) -> None:
        memory = SimpleNamespace(memory_limit=None)
        state = SimpleNamespace(nthreads=1)
        self.worker: Any = SimpleNamespace(memory_manager=memory, state=state, local_directory=None)
        self.threads = ThreadPoolExecutor(1)
        self.shards: dict[str, Shard] = {}
        self.told: list[tuple[str, Any]] = []
        self.asked: list[tuple[str, str, Any]] = []
        """What other shards were asked."""
        self.answers: dict[str, Any] = {}
        self.deaf = False

    async def renew(self, _: str = "") -> None:
        raise Stale

    async def ask_directory(self, method: str, _: float = 0, **what: Any) -> dict[str, Any]:
        self.told.append((method, what))
        if self.deaf:
            raise TimeoutError
        return {"status": "OK"}

    async def ask(self, _: str, shard: str, method: str, **what: Any) -> dict[str, Any]:
        self.asked.append((shard, method, what))
        return {"status": "OK", **self.answers.get(method, {"errors": [None]})}


def state(
    epoch: int, members: list[list[str]], holds: Sequence[int], replicas: int = 1, **more: Any
) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "replicas": replicas,
        "members": members,
        "holds": holds,
        "pulls": [],
        "pushes": [],
        **more,
    }


@asynccontextmanager
async def opened(**store: Any) -> AsyncIterator[tuple[Shard, Service]]:
    service = Service()
    shard = Shard(
        service,  # type: ignore[arg-type] # as much of it as is used
        "one",
        "store",
        engine={"algorithm": "lz4"},
        store={"max_pool_bytes": None, **store},
        memory_fraction=0.5,
        spill=False,
        timeout_s=5.0,
    )
    try:
        shard.learn(state(1, [ONE], []))
        shard.lease_until = math.inf
        yield shard, service
    finally:
        shard.close()
        service.threads.shutdown()


async def put(shard: Shard, number: int, index: int, pages: Any, epoch: int = 1) -> Any:
    answer = await shard.put(epoch, "me", [(number, [(index, len(pages))])], pages)
    (error,) = answer["errors"]
    return error and error_of({"error": error})


async def get(shard: Shard, index: int, epoch: int = 1) -> Any:
    answer = await shard.get(epoch, np.array([index], np.int64).tobytes())
    errors = answer["errors"]
    return error_of({"error": errors[0][1]}) if errors else answer["pages"].data[0].tobytes()


def test_a_folio_that_comes_twice_is_stored_once() -> None:
    pages = make_pages(3)

    async def run() -> None:
        async with opened() as (shard, service):
            assert await put(shard, 0, 5, pages[:1]) is None
            assert await put(shard, 1, 5, pages[1:2]) is None
            assert await put(shard, 0, 5, pages[:1]) is None, "its answer was lost, it was not"
            assert await get(shard, 5) == pages[1].tobytes()
            assert [method for method, _ in service.told] == ["note"]

    asyncio.run(run())


def test_a_folio_that_comes_after_its_undo_is_not_stored() -> None:
    pages = make_pages(1)

    async def run() -> None:
        async with opened() as (shard, _):
            assert (await shard.undo(1, "me", [7], [(0, 1)]))["pages"] == 0
            assert isinstance(await put(shard, 7, 0, pages), BatchzipError)
            assert isinstance(await get(shard, 0), PageNotStored)

    asyncio.run(run())


def test_an_undo_waits_for_what_is_just_being_stored() -> None:
    pages = make_pages(STRIPE)

    async def run() -> None:
        async with opened() as (shard, _):
            storing = asyncio.ensure_future(put(shard, 0, 0, pages))
            await asyncio.sleep(0)
            await shard.undo(1, "me", [0], [(0, STRIPE)])
            await storing
            assert isinstance(await get(shard, 0), PageNotStored)

    asyncio.run(run())


def test_a_rejected_folio_is_kept_in_none_of_its_runs_and_its_answer_stays() -> None:
    pages = make_pages(4)
    pages[:] = pages[0]
    pages[3] = np.random.default_rng(0).integers(0, 256, PAGE, np.uint8)

    async def run() -> None:
        async with opened(keep_incompressible=False) as (shard, _):
            for _ in range(2):
                answer = await shard.put(1, "me", [(0, [(0, 2), (10, 2)])], pages)
                assert isinstance(error_of({"error": answer["errors"][0]}), StoreRejected)
            for index in (0, 1, 10, 11):
                assert isinstance(await get(shard, index), PageNotStored)
            assert (await shard.status(1))["pages"] == 0

    asyncio.run(run())


def test_requests_of_other_epochs_or_without_a_lease_are_stale() -> None:
    pages = make_pages(1)

    async def run() -> None:
        async with opened() as (shard, _):
            for epoch in (0, 2):
                with pytest.raises(Stale):
                    await put(shard, 0, 0, pages, epoch)
            shard.lease_until = 0.0
            for ask in (put(shard, 0, 0, pages), get(shard, 0), shard.has(1, 0)):
                with pytest.raises(Stale):
                    await ask
            shard.lease_until = math.inf
            assert isinstance(await get(shard, 0), PageNotStored)

    asyncio.run(run())


def test_a_stripe_that_left_and_comes_back_has_nothing_of_its_old_pages() -> None:
    """The one that took it over was lost before this shard dropped it, and with it newer pages."""
    pages = make_pages(2)

    async def run() -> None:
        async with opened() as (shard, service):
            await put(shard, 0, 0, pages)
            shard.learn(state(2, [OTHER], [0]))
            shard.learn(state(3, [ONE], []))
            assert isinstance(await get(shard, 0, 3), PageNotStored)
            assert await put(shard, 1, 1, pages[:1], 3) is None
            assert isinstance(await get(shard, 0, 3), PageNotStored)
            assert await get(shard, 1, 3) == pages[0].tobytes()
            notes = [what["epoch"] for method, what in service.told if method == "note"]
            assert notes == [1, 3], "the directory knows of nobody in this stripe any more"

    asyncio.run(run())


def test_a_stripe_whose_pages_are_all_gone_is_noted_again() -> None:
    """It went to another shard while it was empty, and was lost with it."""
    pages = make_pages(1)

    async def run() -> None:
        async with opened() as (shard, service):
            await put(shard, 0, 0, pages)
            await shard.undo(1, "me", [], [(0, 1)])
            shard.learn(state(2, [OTHER], [0]))
            shard.learn(state(3, [ONE], []))
            await put(shard, 1, 0, pages, 3)
            notes = [what["epoch"] for method, what in service.told if method == "note"]
            assert notes == [1, 3]

    asyncio.run(run())


def test_with_two_copies_nothing_is_acknowledged_that_the_other_owner_has_not() -> None:
    """The owners change while a page is being stored; the next ones would not hear of it."""
    pages = make_pages(1)

    async def run() -> None:
        async with opened() as (shard, service):
            both = [ONE, OTHER]
            shard.learn(state(2, both, [], 2))
            stripe = next(s for s in range(99) if shard.members.owners(s)[0].name == "one")
            at = stripe * STRIPE
            assert await put(shard, 0, at, pages, 2) is None
            assert [(name, method) for name, method, _ in service.asked] == [("other", "put_copy")]

            tell = shard._tell_directory

            async def changed_meanwhile(*arguments: Any, **what: Any) -> None:
                await tell(*arguments, **what)
                shard.learn(state(3, [OTHER], [stripe], 2))

            shard._tell_directory = changed_meanwhile  # type: ignore[method-assign]
            with pytest.raises(Stale):
                await shard.put(2, "another", [(0, [(at, 1)])], pages)
            assert len(service.asked) == 1

    asyncio.run(run())


def test_an_undo_of_a_long_range_drops_only_what_it_has_the_locks_of() -> None:
    """It may be the copy of another primary's page, which was stored since."""
    pages = make_pages(1)

    async def run() -> None:
        async with opened() as (shard, _):
            shard.learn(state(2, [ONE, OTHER], [], 2))
            other = next(s for s in range(99) if shard.members.owners(s)[0].name == "other")
            await shard.put_copy(2, "me", [(0, [(other * STRIPE, 1)])], pages)
            assert (await shard.undo(2, "me", [], [(0, 1 << 40)]))["pages"] == 0
            assert shard._record.mask(other) == 1

    asyncio.run(run())


def test_a_directory_that_does_not_answer_is_told_again_and_nothing_is_pulled_twice() -> None:
    """The first one was heard, and its source has dropped the stripe since."""
    pages = make_pages(2)

    async def run() -> None:
        async with opened() as (shard, service):
            indices = np.arange(2, dtype=np.int64).tobytes()
            service.answers["give"] = {"indices": indices, "pages": pages, "corrupt": []}
            service.deaf = True
            shard.learn(state(2, [ONE], [], pulls=[[0, [OTHER]]]))
            with pytest.raises(Stale):
                await shard._pull(0)
            service.answers["give"] = {"indices": b"", "pages": pages[:0], "corrupt": []}
            service.deaf = False
            assert await get(shard, 1, 2) == pages[1].tobytes()
            assert [method for _, method, _ in service.asked].count("give") == 1

    asyncio.run(run())


@pytest.mark.parametrize("how", ["take", "put_copy"])
@pytest.mark.parametrize("holds", [False, True])
def test_pages_that_came_too_late_are_dropped_unless_they_count(how: str, holds: bool) -> None:
    """Another shard owns their stripe since. A shard that is known to hold it keeps it."""
    pages = make_pages(2)
    busy = threading.Event()

    async def run() -> None:
        async with opened() as (shard, service):
            shard.learn(state(2, [ONE, OTHER], [], 2))
            stripe = next(s for s in range(99) if shard.members.owners(s)[0].name == "other")
            first = stripe * STRIPE
            service.threads.submit(busy.wait, 60)
            if how == "take":
                indices = np.array([first, first + 1], np.int64).tobytes()
                coming = shard.take(2, stripe, indices, pages, [])
            else:
                coming = shard.put_copy(2, "me", [(0, [(first, 2)])], pages)
            task = asyncio.ensure_future(coming)
            for _ in range(10):
                await asyncio.sleep(0)
            shard.learn(state(3, [OTHER], [stripe] if holds else []))
            busy.set()
            assert (await task)["status"] == "OK"
            async with shard._locked([stripe]):
                pass
            assert len(shard.pages) == (2 if holds else 0)
            assert shard._record.mask(stripe) == (3 if holds else 0)

    asyncio.run(run())


def test_pages_that_are_still_elsewhere_are_brought_before_they_are_answered() -> None:
    pages = make_pages(20)

    async def run() -> None:
        async with opened() as (shard, service):
            first = 7 * STRIPE
            service.answers["give"] = {
                "indices": np.arange(first, first + 20, dtype=np.int64).tobytes(),
                "pages": pages,
                "corrupt": [first + 30],
            }
            shard.learn(state(2, [ONE], [], pulls=[[7, [OTHER]]]))
            wanted = np.array([3, *range(first, first + 20), first + 30], np.int64)
            answer = await shard.get(2, wanted.tobytes())
            errors = {at: error_of({"error": error}) for at, error in answer["errors"]}
            assert {at: type(error) for at, error in errors.items()} == {
                0: PageNotStored,
                21: CorruptPage,
            }
            np.testing.assert_array_equal(answer["pages"].data, pages)
            assert (await shard.has(2, first))["has"]
            assert (await shard.has(2, first + 30))["has"], "it is there, although it is damaged"
            assert not (await shard.has(2, 3))["has"]
            assert await put(shard, 0, first + 30, pages[:1], 2) is None
            assert await get(shard, first + 30, 2) == pages[0].tobytes()
            status = await shard.status(2)
            assert (status["pages"], status["moving"], status["page_loads"]) == (21, 0, 21)
            pulled = [what for method, what in service.told if method == "pulled"]
            assert [(what["stripe"], what["pages"], what["epoch"]) for what in pulled] == [
                (7, 20, 2)
            ]

    asyncio.run(run())


def test_an_owner_that_lacks_a_stripe_has_it_before_anything_is_stored_there() -> None:
    pages = make_pages(3)

    async def run() -> None:
        async with opened() as (shard, service):
            both = [ONE, OTHER]
            shard.learn(state(2, both, [], 2))
            stripe = next(s for s in range(99) if shard.members.owners(s)[0].name == "one")
            first = stripe * STRIPE
            service.answers["put_copy"] = {"errors": [None]}
            await put(shard, 0, first, pages[:2], 2)
            service.asked.clear()
            third = ["third", "tcp://3"]
            shard.learn(state(3, both, [stripe], 2, pushes=[[stripe, [third]]]))
            assert await put(shard, 1, first + 5, pages[2:], 3) is None
            assert [(name, method) for name, method, _ in service.asked] == [
                ("third", "take"),
                ("other", "put_copy"),
            ]
            taken = service.asked[0][2]
            np.testing.assert_array_equal(taken["pages"].data, pages[:2])
            assert np.frombuffer(taken["indices"], np.int64).tolist() == [first, first + 1]
            assert (taken["epoch"], taken["stripe"], taken["corrupt"]) == (3, stripe, [])
            synced = [what for method, what in service.told if method == "synced"]
            assert [(what["other"], what["pages"]) for what in synced] == [("third", 2)]
            assert (await shard.status(None))["moving"] == 0
            service.asked.clear()
            assert (await shard.undo(3, "me", [1], [(first, 10)]))["pages"] == 3
            ((name, method, what),) = service.asked
            assert (name, method, what["numbers"]) == ("other", "undo_copy", [1])
            assert what["runs"] == [(first, 10)]

    asyncio.run(run())


def test_a_copy_is_stored_and_forgotten_as_its_primary_says() -> None:
    pages = make_pages(2)

    async def run() -> None:
        async with opened() as (shard, _):
            for _ in range(2):
                answer = await shard.put_copy(1, "me", [(0, [(5, 2)])], pages)
                assert answer == {"status": "OK", "errors": [None]}
            assert len(shard.pages) == 2
            given = await shard.give(1, 0)
            assert np.frombuffer(given["indices"], np.int64).tolist() == [5, 6]
            np.testing.assert_array_equal(given["pages"].data, pages)
            assert await shard.undo_copy(1, "me", [0, 1], [(0, 100)]) == {"status": "OK"}
            assert len(shard.pages) == 0
            late = await shard.put_copy(1, "me", [(1, [(5, 1)])], pages[:1])
            assert "undone" in str(error_of({"error": late["errors"][0]}))
            assert len(shard.pages) == 0
            for ask in (
                shard.put_copy(2, "me", [], pages[:0]),
                shard.undo_copy(2, "me", [], []),
                shard.give(2, 0),
                shard.take(2, 0, b"", pages[:0], []),
                shard.has(2, 0),
            ):
                with pytest.raises(Stale):
                    await ask
            assert await shard.ping() == {"status": "OK"}
            shard.close()
            with pytest.raises(ClosedError):
                shard._engine.compress_page(bytes(PAGE))
            with pytest.raises(Stale):
                await get(shard, 0)

    asyncio.run(run())


def test_pages_that_move_have_room_beyond_the_limit_and_later_ones_have_not() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (STRIPE, PAGE), np.uint8)

    async def run() -> None:
        async with opened(max_pool_bytes=1 << 16) as (shard, _):
            indices = np.arange(STRIPE, dtype=np.int64).tobytes()
            await shard.take(1, 0, indices, noise, [])
            assert len(shard.pages) == STRIPE
            assert await get(shard, 100) == noise[100].tobytes()
            assert shard.pages.max_pool_bytes == 1 << 16
            assert isinstance(await put(shard, 0, 5 * STRIPE, noise[:1]), StoreRejected)

    asyncio.run(run())
