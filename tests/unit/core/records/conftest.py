"""Records of a store in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.entries import records_in

from batchzip import Engine, SwapStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batchzip.core.records import Records


@pytest.fixture(params=["lz4", "zstd"])
def store(request: pytest.FixtureRequest) -> Iterator[SwapStore]:
    with Engine(request.param, backend="sequential") as engine, SwapStore(engine) as store:
        yield store


@pytest.fixture
def values(store: SwapStore) -> Iterator[Records]:
    made = records_in(store)
    yield made
    assert made.fault() is None
    store.check_invariants()
