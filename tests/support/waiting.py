"""Waiting for what another thread or process does."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def await_true(
    condition: Callable[[], object], what: str = "a condition", timeout_s: float = 120.0
) -> float:
    """Wait until a condition is true, and return the seconds that took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() < started + timeout_s, f"waited in vain for: {what}"
        time.sleep(0.001)
    return time.monotonic() - started
