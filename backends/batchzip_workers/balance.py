"""Balance: whether a share is worth handing over, from what was measured.

Handing k pages to a worker saves the caller k codec calls and costs it a hand-over: staging,
descriptor, perhaps a bell, collecting. Both are measured as work goes on, separately for each
operation, the hand-over also by size of share. No constant would do: an lz4 page takes 2 µs to
decompress, a zstd-19 page a millisecond to compress.

A page's cost is a running average, as pages differ. A hand-over's cost leans to the low side: a lower
measurement counts at once, a higher one by a tenth, because noise only ever adds to it (a first touch
of memory, another process on the core), and a plain average once took hand-overs for a loss for good
after a single slow one. For the same reason a size found not worth it is tried again now and then.
Several threads may update a cost at once and lose an update; it is a hint, and the next one comes
with the next share.
"""

from __future__ import annotations

_WEIGHT = 0.1
"""Weight of a new measurement: about the last twenty count."""

_TRY_AGAIN = 16
"""Refusals of a size of share after which it is tried once more."""

_SIZES = 10
"""Classes of share size, by bits of the page count."""


class Balance:
    """What one operation costs the caller lately, in seconds."""

    __slots__ = ("_collect_s", "_page_s", "_post_s", "_refused")

    def __init__(self) -> None:
        self._page_s = 0.0
        self._post_s = [0.0] * _SIZES
        self._collect_s = [0.0] * _SIZES
        self._refused = [0] * _SIZES

    def is_worth(self, pages: int) -> bool:
        """Whether a worker should be given `pages` pages, rather than the caller do them."""
        size = min(pages.bit_length(), _SIZES - 1)
        handover_s = self._post_s[size] + self._collect_s[size]
        if handover_s < pages * self._page_s or not self._page_s:
            return True
        self._refused[size] += 1
        return self._refused[size] % _TRY_AGAIN == 0

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


def _note(costs: list[float], pages: int, seconds: float) -> None:
    size = min(pages.bit_length(), _SIZES - 1)
    kept = costs[size]
    costs[size] = kept + (seconds - kept) * _WEIGHT if 0 < kept < seconds else seconds
