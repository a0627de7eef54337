"""PagedMemory, and programs that use it."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from batchzip.paged import available

if TYPE_CHECKING:
    from batchzip import PagedMemory

PAGE = 4096

SIZE, BUDGET = 256 * PAGE, 64 * PAGE

needs_faults = pytest.mark.skipif(not available(), reason=str(available()))


def evict(memory: PagedMemory, array: object) -> int:
    """Evict pages once no thread of the core is at any."""
    memory._pager.check_invariants()
    return memory.evict(array)


def run(script: str, *arguments: object, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
