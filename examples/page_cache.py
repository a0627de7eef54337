"""An HTTP cache that keeps its pages compressed: aiohttp in front, a store behind, no thread per request.

    clients ─▶ cache ─▶ store.aload_many      what it has
                 └────▶ origin ─▶ store.astore   what it has not

`pip install batchzip[examples]`, then `python examples/page_cache.py`: it starts an origin and the cache on
ports of this machine, has 100 clients ask for 3,000 pages, compares every byte, and ends.
"""

import asyncio
import random
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
from aiohttp import ClientSession, ClientTimeout, web

import batchzip

PAGES, REQUESTS, CLIENTS = 150, 3000, 100
PATIENCE = ClientTimeout(total=30)
PAGE = 4096
ROOM = 64  # indices kept for one URL: documents of up to 256 KiB


def document(number: int) -> bytes:
    """Make the origin's page of that number: 10 to 100 KiB of HTML."""
    rng = random.Random(number)  # noqa: S311 - for pages to look at
    rows = (
        f"<tr><td>{i}</td><td>{rng.choice(('ready', 'sold', 'on its way'))}</td><td>{rng.random():.6f}</td></tr>"
        for i in range(rng.randrange(200, 2000))
    )
    return f"<html><title>Page {number}</title><table>{''.join(rows)}</table></html>".encode()


class Cache:
    """What was fetched from the origin once, by path."""

    def __init__(self, store: batchzip.SwapStore, session: ClientSession, origin: str) -> None:
        self.store, self.session, self.origin = store, session, origin
        self.lengths: dict[str, int] = {}  # bytes of each document that is stored
        self.first: dict[str, int] = {}  # its first index
        self.hits = 0

    async def answer(self, request: web.Request) -> web.Response:
        """Answer from the store, or from the origin and store that."""
        path = request.path
        if path in self.lengths:
            self.hits += 1
            length = self.lengths[path]
            first = self.first[path]
            pages = await self.store.aload_many(range(first, first - -length // PAGE))
            return web.Response(body=pages.tobytes()[:length], content_type="text/html")
        async with self.session.get(self.origin + path) as response:
            body = await response.read()
        first = self.first.setdefault(path, len(self.first) * ROOM)
        try:
            await self.store.astore(first, body.ljust(-(-len(body) // PAGE) * PAGE, b"\0"))
            self.lengths[path] = len(body)
        except batchzip.StoreRejected:
            pass  # it is full: the client has its answer all the same
        return web.Response(body=body, content_type="text/html")


@asynccontextmanager
async def serving(handler: object) -> AsyncIterator[str]:
    """Serve on a port of this machine; its address."""
    app = web.Application()
    app.router.add_get("/{number}", handler)  # type: ignore[arg-type] # a coroutine function
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def origin_answer(request: web.Request) -> web.Response:
    """Be the slow server that the cache is in front of."""
    await asyncio.sleep(0.01)
    return web.Response(body=document(int(request.match_info["number"])))


async def main(store: batchzip.SwapStore) -> None:
    """Serve, ask, compare, and say how it went."""
    wanted = (1 / np.arange(1, PAGES + 1)).cumsum()  # few pages are asked for often
    choice = random.Random(1)  # noqa: S311 - as above
    asked = iter(choice.choices(range(PAGES), cum_weights=wanted.tolist(), k=REQUESTS))
    truth = [document(number) for number in range(PAGES)]

    async with (
        ClientSession(timeout=PATIENCE) as session,
        ClientSession(timeout=PATIENCE) as to_origin,
        serving(origin_answer) as origin,
    ):
        cache = Cache(store, to_origin, origin)
        async with serving(cache.answer) as address:

            async def client() -> None:
                for number in asked:
                    async with session.get(f"{address}/{number}") as response:
                        assert await response.read() == truth[number]

            began = time.perf_counter()
            await asyncio.gather(*(client() for _ in range(CLIENTS)))
            seconds = time.perf_counter() - began
        counters = store.counters
        whole = sum(cache.lengths.values())
        print(f"{REQUESTS:,} requests by {CLIENTS} clients in {seconds:.1f} s, every byte right")
        print(
            f"{cache.hits / REQUESTS:.0%} answered from the store, {counters.backed_pages:,} pages in its file"
        )
        print(f"{whole:,} bytes of HTML take {store.stored_bytes:,} in memory and file")


with (
    batchzip.Engine("zstd", level=1) as engine,
    batchzip.SwapStore(engine, max_pool_bytes=1 << 20, backing=tempfile.gettempdir()) as store,
):
    asyncio.run(main(store))
