"""Hysteresis: full at the limit, and again open only some way below it (zswap_check_limits).

Without it a full pool would take one folio for each that is freed, and write back one for each.

Locks: none; the store's is held around every call.
"""

from __future__ import annotations


class Hysteresis:
    """Whether a limit was met, and not left by enough since."""

    def __init__(self) -> None:
        self.full = False

    def check(self, size: int, limit: int | None, percent: int) -> tuple[bool, bool]:
        """Look at a size: whether it is at its limit, and whether to refuse more."""
        if limit is None:
            return False, False
        if size >= limit:
            self.full = True
        elif self.full and size * 100 <= limit * percent:
            self.full = False
        return size >= limit, self.full
