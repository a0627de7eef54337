"""A store with zstd, and a clock that can be moved on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from batchzip import Engine, SwapStore
from batchzip.core.records import shift_clock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


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
