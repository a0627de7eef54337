"""ShardClient: how requests to a shard travel together, and what becomes of each."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from distributed.protocol import to_serialize
from support.cluster.plain import travel

from batchzip import BatchzipError, PageNotStored, StoreRejected
from batchzip.dask.members import Member
from batchzip.dask.shard_client import MESSAGE_BYTES, ShardClient, Unanswered
from batchzip.dask.wire import SHARD, dump, failed

PAGE = 4096
MOST = MESSAGE_BYTES // PAGE


class Worker:
    """A worker whose shard has the pages whose index is even. It answers when it is let."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.answers: list[asyncio.Future[None]] = []

    def __getattr__(self, name: str) -> Any:
        assert name == SHARD

        async def ask(**message: Any) -> Any:
            asked, answer = travel(message), asyncio.get_running_loop().create_future()
            self.asked.append(asked)
            self.answers.append(answer)
            await answer
            return travel(self._answer(**asked))

        return ask

    @staticmethod
    def _answer(method: str, shard: str, **what: Any) -> Any:
        assert shard == "one"
        if method == "get":
            indices = np.frombuffer(what["indices"], np.int64)
            there = indices[indices % 2 == 0]
            pages = np.repeat(there.astype(np.uint8)[:, None], PAGE, axis=1)
            errors = [
                [at, dump(PageNotStored(int(indices[at])))]
                for at in np.flatnonzero(indices % 2).tolist()
            ]
            return {"status": "OK", "pages": to_serialize(pages), "errors": errors}
        refused = dump(StoreRejected("why", "no"))
        outcomes = [refused if number % 2 else None for number, _ in what["folios"]]
        return {"status": "OK", "errors": outcomes}

    def let(self) -> None:
        """Answer the last request."""
        self.answers[-1].set_result(None)


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def opened() -> tuple[ShardClient, Worker]:
    worker = Worker()
    return ShardClient(lambda _: worker, Member("one", "tcp://1"), "me", PAGE), worker


def load(shard: ShardClient, *indices: int, epoch: int = 1) -> asyncio.Future[Any]:
    return shard.load(epoch, np.array(indices, np.int64))


def store(shard: ShardClient, number: int, pages: int, epoch: int = 1) -> asyncio.Future[Any]:
    return shard.store(epoch, number, (number, pages), np.full((pages, PAGE), number, np.uint8))


def test_loads_that_wait_travel_together_and_each_gets_its_own_pages_and_errors() -> None:
    async def run() -> None:
        shard, worker = opened()
        first = [load(shard, 0)]
        await turns()
        first.append(load(shard, 2))
        await turns()
        assert len(worker.asked) == 2, "two messages are under way"
        others = [load(shard, 4, 7, 6), load(shard, 8), load(shard, 11), load(shard, 2, epoch=2)]
        await turns()
        assert len(worker.asked) == 2
        worker.let()
        await turns()
        assert len(worker.asked) == 3
        indices = np.frombuffer(worker.asked[2]["indices"], np.int64).tolist()
        assert (worker.asked[2]["epoch"], indices) == (1, [4, 7, 6, 8, 11]), "one epoch a message"
        worker.let()
        worker.answers[0].set_result(None)
        await turns()
        assert worker.asked[3]["epoch"] == 2
        worker.let()
        (pages, errors), (one, none), (_, missing), _ = [await other for other in others]
        assert pages[[0, 2], 0].tolist() == [4, 6]
        assert {at: str(error) for at, error in errors.items()} == {1: str(PageNotStored(7))}
        assert (one[:, 0].tolist(), none) == ([8], {})
        assert {at: str(error) for at, error in missing.items()} == {0: str(PageNotStored(11))}
        assert [(await one)[0][0, 0] for one in first] == [0, 2]
        shard.close()

    asyncio.run(run())


def test_stores_travel_one_message_at_a_time_of_a_mebibyte_at_most() -> None:
    async def run() -> None:
        shard, worker = opened()
        first = store(shard, 0, 1)
        await turns()
        others = [store(shard, 1, 10), store(shard, 2, MOST - 10), store(shard, 4, 1)]
        await turns()
        assert len(worker.asked) == 1
        for messages in (2, 3):
            worker.let()
            await turns()
            assert len(worker.asked) == messages
        worker.let()
        await turns()
        assert [[folio[0] for folio in one["folios"]] for one in worker.asked] == [[0], [1, 2], [4]]
        assert [one["client"] for one in worker.asked] == ["me"] * 3
        assert [list(map(list, folio[1])) for folio in worker.asked[1]["folios"]] == [
            [[1, 10]],
            [[2, MOST - 10]],
        ]
        assert len(worker.asked[1]["pages"]) == MOST
        assert worker.asked[1]["pages"][[9, 10], 0].tolist() == [1, 2]
        assert [await one for one in (first, others[1], others[2])] == [None] * 3
        assert isinstance(await others[0], StoreRejected)
        shard.close()

    asyncio.run(run())


def test_a_cancelled_store_is_not_sent() -> None:
    async def run() -> None:
        shard, worker = opened()
        store(shard, 0, 1)
        await turns()
        gone, stays = store(shard, 2, 1), store(shard, 4, 1)
        gone.cancel()
        worker.let()
        await turns()
        assert [folio[0] for folio in worker.asked[1]["folios"]] == [4]
        assert shard.sent_at(stays) > shard.sent_at(gone) >= 0
        assert shard.sent_at(asyncio.get_running_loop().create_future()) == 0.0
        worker.let()
        assert await stays is None
        shard.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        ({"status": "stale"}, Unanswered, ""),
        ({"status": "gone"}, Unanswered, "its process no longer has the shard"),
        (None, Unanswered, "its process no longer has the shard"),
        (OSError("the connection broke"), Unanswered, "OSError: the connection broke"),
        (failed(BatchzipError("the disk is full")), BatchzipError, "the disk is full"),
    ],
)
def test_every_waiting_request_gets_the_shard_s_error(
    answer: Any, kind: type[Exception], text: str
) -> None:
    class Answering:
        async def batchzip_shard(self, **_: Any) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

    async def run() -> None:
        shard = ShardClient(lambda _: Answering(), Member("one", "tcp://1"), "me", PAGE)
        for asked in (shard.ask("has"), load(shard, 0), store(shard, 0, 1), load(shard, 0)):
            with pytest.raises(kind) as caught:
                await asked
            assert str(caught.value) == text
        shard.close()

    asyncio.run(run())
