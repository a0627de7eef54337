"""A mapping on a store in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from batchzip import CompressedMapping, Engine, SwapStore
from batchzip.core.records import shift_clock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def zstd() -> Iterator[SwapStore]:
    with Engine("zstd", level=1, backend="sequential") as engine, SwapStore(engine) as store:
        yield store
        store.check_invariants()


@pytest.fixture
def mapping(store: SwapStore) -> Iterator[CompressedMapping]:
    with CompressedMapping(store) as mapping:
        yield mapping
        mapping.check_invariants()


@pytest.fixture
def later() -> Iterator[Callable[[float], None]]:
    moved: list[float] = []

    def move(seconds: float) -> None:
        moved.append(seconds)
        shift_clock(seconds)

    yield move
    shift_clock(-sum(moved))
