"""A mapping on a store whose backing file can fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.faulty_file import FaultyFile

from batchzip import CompressedMapping, Engine, SwapStore

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=["lz4", "zstd"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine(request.param, backend="sequential") as engine:
        yield engine


@pytest.fixture
def file() -> FaultyFile:
    return FaultyFile()


@pytest.fixture
def store(engine: Engine, file: FaultyFile) -> Iterator[SwapStore]:
    with SwapStore(engine, backing=file, shrinker_enabled=False) as store:
        yield store
        store.check_invariants()


@pytest.fixture
def mapping(store: SwapStore) -> Iterator[CompressedMapping]:
    with CompressedMapping(store) as mapping:
        yield mapping
        mapping.check_invariants()
    assert store.compressed_bytes == 0
