"""Balance: whether a share is worth handing over, from what was measured.

Handing k pages to a worker saves the caller k codec calls and costs it a hand-over: staging,
descriptor, collecting, and waking the worker where it sleeps. All of it is measured as work goes on,
separately for each operation, staging and collecting also by size of share. No constant would do: an
lz4 page takes 2 µs to decompress, a zstd-19 page a millisecond to compress.

A page's cost is a running average, as pages differ. A hand-over's cost leans to the low side: a lower
measurement counts at once, a higher one by a tenth, because noise only ever adds to it (a first touch
of memory, another process on the core), and a plain average once took hand-overs for a loss for good
after a single slow one. For the same reason a size found not worth it is tried again now and then.

A sleeping worker needs a decision of its own. One small batch does not pay for a wake-up; a stream of
them does, as the worker stays awake from one to the next. So once several batches in a row came
closer together than a worker looks for work, the next one is handed over whatever it costs.

Several threads may update a cost at once and lose an update; it is a hint, and the next one comes
with the next share.
"""

from __future__ import annotations

_WEIGHT = 0.1
"""Weight of a new measurement: about the last twenty count."""

_TRY_AGAIN = 16
"""Refusals of a size of share after which it is tried once more."""

_STREAM = 8
"""Batches in close succession that make a stream."""

_SIZES = 10
"""Classes of share size, by bits of the page count."""


class Balance:
    """What one operation costs the caller lately, in seconds."""

    __slots__ = (
        "_close_s",
        "_collect_s",
        "_last",
        "_page_s",
        "_post_s",
        "_refused",
        "_streak",
        "_wake_s",
    )

    def __init__(self, close_s: float) -> None:
        self._close_s = close_s
        """Batches less than this apart are in close succession."""
        self._page_s = 0.0
        self._post_s = [0.0] * _SIZES
        self._collect_s = [0.0] * _SIZES
        self._wake_s = 0.0
        self._refused = [0] * _SIZES
        self._last = 0.0
        self._streak = 0

    def is_worth(self, pages: int, now: float, *, asleep: bool) -> bool:
        """Whether to give a worker, who may be `asleep`, `pages` pages at the time `now`."""
        size = min(pages.bit_length(), _SIZES - 1)
        cost = self._post_s[size] + self._collect_s[size]
        if asleep:
            return cost + self._wake_s < pages * self._page_s or self._is_stream(now)
        if cost < pages * self._page_s or not self._page_s:
            return True
        self._refused[size] += 1
        return self._refused[size] % _TRY_AGAIN == 0

    def _is_stream(self, now: float) -> bool:
        self._streak = self._streak + 1 if now - self._last < self._close_s else 0
        self._last = now
        if self._streak < _STREAM:
            return False
        self._streak = 0
        return True

    def note_pages(self, pages: int, seconds: float) -> None:
        """Record what the caller's own share of `pages` pages took it."""
        cost = seconds / pages
        self._page_s += (cost - self._page_s) * (_WEIGHT if self._page_s else 1.0)

    def note_post(self, pages: int, seconds: float) -> None:
        """Record what staging and posting a share of `pages` pages took the caller."""
        _note(self._post_s, pages, seconds)

    def note_collect(self, pages: int, seconds: float) -> None:
        """Record what collecting a share of `pages` pages took the caller."""
        _note(self._collect_s, pages, seconds)

    def note_wake(self, seconds: float) -> None:
        """Record what posting to a worker asleep took the caller, waiting for it included."""
        self._wake_s += (seconds - self._wake_s) * (_WEIGHT if self._wake_s else 1.0)


def _note(costs: list[float], pages: int, seconds: float) -> None:
    size = min(pages.bit_length(), _SIZES - 1)
    kept = costs[size]
    costs[size] = kept + (seconds - kept) * _WEIGHT if 0 < kept < seconds else seconds
