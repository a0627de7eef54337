"""Simulation of scaling.py: a batch on any number of lanes.

It knows what a page costs and the owner's serial part of it, and nothing of memory or caches. The
owner posts shares to its lanes, collects what is done, and does single pages of its own when there
is nothing to post or to collect. Posting a page is half of its serial part, collecting the other.
"""

from __future__ import annotations

import heapq

SHARES = 4
"""Shares that a lane gets of a batch, about."""

MOST_POSTED = 2
"""Shares that a lane has at once: one under way, and the next."""


def simulate(lanes: int, batch: int, page_us: float, serial_us: float) -> float:
    """Give the µs per page of a batch with so many lanes, the owner included."""
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
