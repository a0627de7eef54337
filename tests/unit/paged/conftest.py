"""Paged memory of 256 pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.paged_memory import BUDGET, SIZE

from batchzip import PagedMemory

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def memory() -> Iterator[PagedMemory]:
    with PagedMemory(SIZE, BUDGET) as memory:
        yield memory
