"""Simulation of scaling.py: a batch on any number of lanes.

The model has two parameters: the cost of a page, and the owner's serial part of it. It ignores
memory and caches. The owner posts shares to its lanes and collects finished shares. When there is
nothing to post or to collect, it processes a single page itself. Posting a page is half of its
serial part, and collecting it is the other half.
"""

from __future__ import annotations

import heapq

SHARES = 4
"""Approximate number of shares of a batch per lane."""

MOST_POSTED = 2
"""Maximum number of shares posted to a lane: the current one and the next."""


def simulate(lanes: int, batch: int, page_us: float, serial_us: float) -> float:
    """Return the µs per page of a batch with a number of lanes, including the owner."""
    share = max(1, batch // (lanes * SHARES))
    half = max(0.0, serial_us) / 2  # to post a page, and to collect one
    free_at = [0.0] * (lanes - 1)
    outstanding = [0] * (lanes - 1)
    under_way: list[tuple[float, int, int]] = []
    now, left = 0.0, batch
    while left or under_way:
        if under_way and under_way[0][0] <= now:
            _, lane, count = heapq.heappop(under_way)
            outstanding[lane] -= 1
            now += count * half
        elif left and outstanding and min(outstanding) < MOST_POSTED:
            lane = outstanding.index(min(outstanding))
            count = min(share, left)
            left -= count
            now += count * half
            free_at[lane] = max(free_at[lane], now) + count * page_us
            heapq.heappush(under_way, (free_at[lane], lane, count))
            outstanding[lane] += 1
        elif left:
            left -= 1
            now += page_us
        else:
            now = under_way[0][0]
    return now / batch
