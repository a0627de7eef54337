"""An HTTP cache with compressed pages: aiohttp and a mapping, without a thread per request.

    clients ─▶ cache ─▶ mapping.aget             hit
                 └────▶ origin ─▶ mapping.aset   miss: the coldest pages are evicted for it

Run `pip install -e '.[examples]'` in a checkout, then `python examples/page_cache.py`. The script
starts an origin server and the cache on local ports. 100 clients send 3,000 requests and compare
every byte.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
from aiohttp import ClientSession, ClientTimeout, web

import batchzip

PAGES, REQUESTS, CLIENTS = 150, 3000, 100
PATIENCE = ClientTimeout(total=30)


def document(number: int) -> bytes:
    """Make the origin's page of a number: 10 to 100 KiB of HTML."""
    rng = random.Random(number)  # noqa: S311 - example data
    states = ("ready", "sold", "on its way")
    rows = (
        f"<tr><td>{i}</td><td>{rng.choice(states)}</td><td>{rng.random():.6f}</td></tr>"
        for i in range(rng.randrange(200, 2000))
    )
    return f"<html><title>Page {number}</title><table>{''.join(rows)}</table></html>".encode()


# --8<-- [start:cache]
class Cache:
    """A cache of pages that were fetched from the origin in the last minute, by path."""

    def __init__(
        self, mapping: batchzip.CompressedMapping, session: ClientSession, origin: str
    ) -> None:
        self.mapping, self.session, self.origin = mapping, session, origin

    async def answer(self, request: web.Request) -> web.Response:
        """Answer from the mapping, or fetch the page from the origin and store it."""
        path = request.path
        body = await self.mapping.aget(path)
        if body is None:
            async with self.session.get(self.origin + path) as response:
                body = await response.read()
            await self.mapping.aset(path, body, ttl=60)
        return web.Response(body=body, content_type="text/html")


# --8<-- [end:cache]


@asynccontextmanager
async def serving(handler: object) -> AsyncIterator[str]:
    """Serve on a local port. Yield the address."""
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
    """Answer as the slow server behind the cache."""
    await asyncio.sleep(0.01)
    return web.Response(body=document(int(request.match_info["number"])))


async def main(mapping: batchzip.CompressedMapping) -> None:
    """Run servers and clients, compare the answers, and print the results."""
    wanted = (1 / np.arange(1, PAGES + 1)).cumsum()  # few pages are requested often
    choice = random.Random(1)  # noqa: S311 - as above
    asked = iter(choice.choices(range(PAGES), cum_weights=wanted.tolist(), k=REQUESTS))
    truth = [document(number) for number in range(PAGES)]

    async with (
        ClientSession(timeout=PATIENCE) as session,
        ClientSession(timeout=PATIENCE) as to_origin,
        serving(origin_answer) as origin,
    ):
        cache = Cache(mapping, to_origin, origin)
        async with serving(cache.answer) as address:

            async def client() -> None:
                for number in asked:
                    async with session.get(f"{address}/{number}") as response:
                        assert await response.read() == truth[number]

            began = time.perf_counter()
            await asyncio.gather(*(client() for _ in range(CLIENTS)))
            seconds = time.perf_counter() - began
        stats, usage = mapping.stats(), mapping.memory_usage()
        print(f"{REQUESTS:,} requests by {CLIENTS} clients in {seconds:.1f} s, every byte right")
        print(f"{stats.hit_ratio:.0%} answered by the cache, {stats.evictions:,} pages evicted")
        print(f"{stats.values} pages take {usage.total:,} bytes, {usage.in_dict:,} in a dict")


with batchzip.CompressedMapping(max_bytes=1 << 20, on_full="evict") as mapping:
    asyncio.run(main(mapping))
