"""A store with zstd, and a clock that can be moved on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from batchzip import Engine, SwapStore
from batchzip.core.records import shift_clock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Use lz4, or the codec that IN_CHUNKS_OR_PAGES names."""
    with Engine(getattr(request, "param", "lz4"), backend="sequential") as engine:
        yield engine


@pytest.fixture
def zstd() -> Iterator[SwapStore]:
    with Engine("zstd", level=1, backend="sequential") as engine, SwapStore(engine) as store:
        yield store
        store.check_invariants()


@pytest.fixture
def later() -> Iterator[Callable[[float], None]]:
    moved: list[float] = []

    def move(seconds: float) -> None:
        moved.append(seconds)
        shift_clock(seconds)

    yield move
    shift_clock(-sum(moved))
