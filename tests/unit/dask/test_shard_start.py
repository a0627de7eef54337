"""A shard whose store cannot be made leaves no engine behind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

import batchzip.dask.shard
from batchzip import BadArgument, Engine
from batchzip.dask.shard import Shard

if TYPE_CHECKING:
    from pathlib import Path


def test_its_engine_is_closed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[Engine] = []

    def make(**options: Any) -> Engine:
        made.append(Engine(**options))
        return made[-1]

    monkeypatch.setattr(batchzip.dask.shard, "Engine", make)
    worker = SimpleNamespace(
        memory_manager=SimpleNamespace(memory_limit=None),
        state=SimpleNamespace(nthreads=1),
        local_directory=str(tmp_path),
    )
    with pytest.raises(BadArgument, match="max_pool_bytes"):
        Shard(
            SimpleNamespace(worker=worker),
            "one",
            "store",
            engine={"algorithm": "lz4"},
            store={"max_pool_bytes": -1},
            memory_fraction=0.5,
            spill=False,
            timeout_s=5.0,
        )
    (engine,) = made
    assert engine.closed
