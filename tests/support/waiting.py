"""Waiting for what another thread or process does, and which threads there are."""

from __future__ import annotations

import os
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


def tasks() -> set[int]:
    """Return the threads of this process, also those of the core and those that are ending."""
    return {int(task) for task in os.listdir("/proc/self/task")}  # noqa: PTH208
