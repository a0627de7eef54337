"""WorkerData with little room."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from distributed.utils import RateLimiterFilter
from support.worker_values import MIB

from batchzip.dask import WorkerData

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def everything_is_logged() -> None:
    RateLimiterFilter.reset_timer("batchzip.dask")


@pytest.fixture
def data(tmp_path: Path) -> Iterator[WorkerData]:
    """Room for 1 MiB of live values, and for 1 MiB of compressed ones."""
    data = WorkerData(str(tmp_path), memory_limit=4 * MIB, live=0.25, compressed=0.25)
    yield data
    assert list(tmp_path.iterdir()) == [], "the file has no name"
    data.close()
    data.close()
