"""A closed store's file is free again, even while its open file description lives on elsewhere."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from batchzip import BadArgument, Engine, SwapStore

if TYPE_CHECKING:
    from pathlib import Path


def test_an_inherited_descriptor_does_not_keep_the_file_locked(
    engine: Engine, tmp_path: Path
) -> None:
    path = tmp_path / "swap"
    path.touch()
    with SwapStore(engine, backing=path) as store:
        # As a child has it that C code forked: the same description, and so the same lock.
        inherited = os.dup(int(store.status()["backing"].rpartition("/")[2]))
        with pytest.raises(BadArgument, match="in use"):
            SwapStore(engine, backing=path)
    try:
        with SwapStore(engine, backing=path) as store:
            store.store(0, bytes(4096))
    finally:
        os.close(inherited)
