"""A client of cluster.py in a process of its own, which runs jobs from stdin and reports times.

python cluster_client.py SCHEDULER ADDRESS PAGES.npy NUMBER

{"way": "store", "seconds": 1.0}     a job: a line of JSON, with one of WAYS. The answer is a line
                                     of JSON, too: see Work.answer.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket
import stat
import struct
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import lz4.block
import numpy as np
from distributed import Client

from batchzip.dask import ShardedStore

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = 4096
FOLIO = 256
LARGE = 4096
KEPT = 16
"""Folios of each kind that are held at once."""

_SPACE = 1 << 32
_BYTES_ACKED = 120
"""Offset in struct tcp_info of the bytes sent. The bytes received follow."""


def traffic() -> tuple[int, int]:
    """Return the bytes that this process sent and received on its open TCP connections."""
    sent = received = 0
    for number in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208 - of this very moment
        try:
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            with socket.socket(fileno=os.dup(number)) as one:
                info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        except OSError:  # closed meanwhile, or not a TCP socket
            continue
        if len(info) >= _BYTES_ACKED + 16:
            out, into = struct.unpack_from("<QQ", info, _BYTES_ACKED)
            sent, received = sent + out, received + into
    return sent, received


class Work:
    """The jobs of a client."""

    def __init__(self, client: Client, store: ShardedStore, pages: Any, number: int) -> None:
        self._client = client
        self._store = store
        self._pages = pages
        self._base = number * _SPACE
        self._rng = np.random.default_rng(number)
        self._turn = itertools.count()
        self._lock = threading.Lock()
        self._scattered: dict[bool, deque[Any]] = {True: deque(), False: deque()}
        self._single: deque[Any] = deque()
        self.ways: dict[str, Callable[[], int]] = {
            "store": lambda: self._put(FOLIO),
            "store large": lambda: self._put(LARGE),
            "store 1": lambda: self._put(1),
            "load_many": self._get_many,
            "load": self._get,
            "in": self._has,
            "invalidate": self._forget,
            "scatter": lambda: self._scatter(direct=False),
            "scatter direct": lambda: self._scatter(direct=True),
            "gather": lambda: self._gather(direct=False),
            "gather direct": lambda: self._gather(direct=True),
            "scatter 1": self._scatter_one,
            "gather 1": self._gather_one,
        }
        for _ in range(KEPT):
            self._put(FOLIO)

    def _some(self, count: int) -> Any:
        first = int(self._rng.integers(0, max(1, len(self._pages) - count)))
        return self._pages[first : first + count]

    def _put(self, count: int) -> int:
        turn = next(self._turn) % KEPT
        # Large folios and single pages have separate index ranges.
        first = self._base + {FOLIO: 0, LARGE: 1 << 20, 1: 1 << 28}[count] + turn * count
        self._store.store(first, self._some(count))
        return count

    def _held(self, count: int) -> Any:
        return self._base + self._rng.integers(0, KEPT * FOLIO, count)

    def _get_many(self) -> int:
        self._store.load_many(self._held(FOLIO))
        return FOLIO

    def _get(self) -> int:
        self._store.load(int(self._held(1)[0]))
        return 1

    def _has(self) -> int:
        if int(self._held(1)[0]) not in self._store:
            raise AssertionError("a page is missing")
        return 1

    def _forget(self) -> int:
        self._store.invalidate(self._base + (1 << 30) + next(self._turn))
        return 1

    def _scatter(self, *, direct: bool) -> int:
        made = [lz4.block.compress(page, store_size=False) for page in self._some(FOLIO)]
        held = self._scattered[direct]
        # As one object, not as a list: one key per folio.
        held.append(self._client.scatter({"folio": made}, direct=direct, hash=False)["folio"])
        if len(held) > KEPT:
            held.popleft()
        return FOLIO

    def _gather(self, *, direct: bool) -> int:
        held = self._scattered[direct]
        if not held:
            self._scatter(direct=direct)
        which = held[int(self._rng.integers(len(held)))]
        for page in self._client.gather(which, direct=direct):
            lz4.block.decompress(page, PAGE)
        return FOLIO

    def _scatter_one(self) -> int:
        made = lz4.block.compress(self._some(1)[0], store_size=False)
        self._single.append(self._client.scatter(made, direct=True, hash=False))
        if len(self._single) > KEPT:
            self._single.popleft()
        return 1

    def _gather_one(self) -> int:
        if not self._single:
            self._scatter_one()
        which = self._single[int(self._rng.integers(len(self._single)))]
        lz4.block.decompress(self._client.gather(which, direct=True), PAGE)
        return 1

    # For a time.

    def answer(self, way: str, seconds: float, threads: int = 1) -> dict[str, Any]:
        """Run a job for some seconds. Return the work done, times, and bytes on the wire."""
        spent: list[float] = []
        pages = 0
        sent, received = traffic()
        begun = time.perf_counter()
        if way in ("astore", "aload"):
            pages = asyncio.run(self._at_once(way, threads, begun + seconds))
        elif threads > 1:
            pages = self._in_threads(way, threads, begun + seconds)
        else:
            call = self.ways[way]
            while (at := time.perf_counter()) < begun + seconds:
                pages += call()
                spent.append(time.perf_counter() - at)
        took = time.perf_counter() - begun
        sent, received = (
            now - before for now, before in zip(traffic(), (sent, received), strict=True)
        )
        quantiles = np.percentile(spent or [0.0], [50, 99, 100]).tolist()
        return {
            "pages": pages,
            "seconds": took,
            "sent": sent,
            "received": received,
            "quantiles": quantiles,
        }

    def _in_threads(self, way: str, threads: int, end: float) -> int:
        done: list[int] = []

        def work() -> None:
            while time.perf_counter() < end:
                done.append(self.ways[way]())

        several = [threading.Thread(target=work) for _ in range(threads)]
        for thread in several:
            thread.start()
        for thread in several:
            thread.join()
        return sum(done)

    async def _at_once(self, way: str, many: int, end: float) -> int:
        """Keep a number of coroutines in flight, each for one page."""
        done = 0

        async def one(number: int) -> None:
            nonlocal done
            while time.perf_counter() < end:
                if way == "aload":
                    await self._store.aload(int(self._held(1)[0]))
                else:
                    await self._store.astore(self._base + (1 << 29) + number, self._some(1))
                done += 1

        await asyncio.gather(*map(one, range(many)))
        return done

    def until_told(self, way: str) -> dict[str, Any]:
        """Repeat a job until the next line arrives on stdin."""
        over = threading.Event()
        done: list[int] = []

        def work() -> None:
            while not over.is_set():
                done.append(self.ways[way]())

        thread = threading.Thread(target=work)
        thread.start()
        sys.stdin.readline()
        over.set()
        thread.join()
        return {"pages": sum(done)}


def main() -> None:
    """Run from the command line."""
    scheduler, address, pages, number = sys.argv[1:]
    with (
        Client(scheduler, set_as_default=False) as client,
        ShardedStore.attach(address, client) as store,
    ):
        work = Work(client, store, np.load(pages, mmap_mode="r"), int(number))
        print("{}", flush=True)
        while line := sys.stdin.readline().strip():
            asked = json.loads(line)
            if asked.pop("until told", False):
                answer = work.until_told(**asked)
            else:
                answer = work.answer(**asked)
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
