"""WorkerData whose values are live until they are evicted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.worker_values import MIB

from batchzip.dask import WorkerData

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def data(tmp_path: Path) -> Iterator[WorkerData]:
    """Room for 8 MiB of compressed values; they are live until they are evicted."""
    with WorkerData(str(tmp_path), memory_limit=16 * MIB, live=1.0, compressed=0.5) as data:
        yield data
