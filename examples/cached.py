"""Cache the results of a slow function in compressed form, with `batchzip.cached`.

`python examples/cached.py` requests 200 reports 2,000 times. functools.lru_cache limits the number
of results, whatever their size. `batchzip.cached` limits their bytes. Results have a time to live,
and each caller gets a copy of its own.
"""

import random

import batchzip

REPORTS, CALLS = 200, 2000

forgotten: list[int] = []
cache = batchzip.CompressedMapping(
    serializer="pickle",
    max_bytes=1 << 19,
    on_full="evict",
    on_evict=lambda key, _: forgotten.append(key),
)


@batchzip.cached(cache, key=lambda number: number, ttl=600)
def report(number: int) -> list[dict[str, object]]:
    """Make the rows of a report, in place of a slow query."""
    rng = random.Random(number)  # noqa: S311 - example data
    return [
        {"row": row, "state": rng.choice(("open", "paid", "late")), "sum": rng.randrange(10_000)}
        for row in range(1000)
    ]


with cache:
    first = report(0)
    assert report(0) == first
    assert report(0) is not first  # a copy: changes to it are not seen by other callers

    wanted = [1 / (1 + number) for number in range(REPORTS)]  # few reports are requested often
    chosen = random.Random(1).choices(range(REPORTS), wanted, k=CALLS)  # noqa: S311 - as above
    for number in chosen:
        assert len(report(number)) == 1000

    stats, usage = cache.stats(), cache.memory_usage()
    assert stats.evictions == len(forgotten)
    print(
        f"{CALLS:,} calls: {stats.hit_ratio:.0%} answered by the cache, {stats.evictions} evicted"
    )
    print(f"{stats.values} reports of {stats.nbytes:,} bytes take {usage.total:,}")
