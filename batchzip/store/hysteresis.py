"""Hysteresis: full at the limit, and open again only some way below it (zswap_check_limits).

Without it, a full pool would accept one folio for each one freed, and write back one for each.

Locks: none. Threads may check at the same time: `full` is one flag, and the last one to set it
wins.
"""

from __future__ import annotations


class Hysteresis:
    """Remembers whether a limit was reached and usage has not yet fallen to the threshold."""

    def __init__(self) -> None:
        self.full = False

    def check(self, size: int, limit: int | None, percent: int) -> tuple[bool, bool]:
        """Compare a size with its limit and its threshold, which is `percent` of the limit.

        Return whether the size is at the limit, and whether to reject more.
        """
        if limit is None:
            return False, False
        if size >= limit:
            self.full = True
        elif self.full and size * 100 <= limit * percent:
            self.full = False
        return size >= limit, self.full
