"""A store with a backing file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from batchzip import Engine, SwapStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def store(engine: Engine, tmp_path: Path) -> Iterator[SwapStore]:
    with SwapStore(engine, backing=tmp_path) as made:
        yield made
        if not made.closed:
            made.check_invariants()
            assert made.check().ok
