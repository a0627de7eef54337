"""Stores in files, beside which batchzip is measured: they keep every page and leave no file."""

from __future__ import annotations

import sys
import tempfile
from typing import TYPE_CHECKING

import numpy as np
import pytest

from batchzip.bench.algorithm import Algorithm
from batchzip.bench.file_stores import Diskcache, FileStore, Lmdb, Sqlite
from batchzip.bench.pages import PAGE
from batchzip.errors import BackendUnavailable

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Sqlite, Lmdb, Diskcache])
def test_pages_come_back_and_no_file_stays(
    kind: type[FileStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    pages = np.random.default_rng(1).integers(0, 4, (64, PAGE), np.uint8)
    with kind(Algorithm("lz4")) as store:
        assert store.held_bytes == 0
        for _ in range(2):  # a round begins with an empty store
            store.open()
            for at in range(0, 64, 16):
                store.store(at, pages[at : at + 16])
            store.flush()
            assert store.load(7) == pages[7].tobytes()
            out = np.zeros((3, PAGE), np.uint8)
            store.load_many(np.array([63, 0, 16]), out)
            assert np.array_equal(out, pages[[63, 0, 16]])
            assert store.held_bytes > 64 * PAGE / 8
        assert len(list(tmp_path.iterdir())) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("kind", "name"), [(Lmdb, "lmdb"), (Diskcache, "diskcache")])
def test_a_missing_package_is_named(
    kind: type[FileStore], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendUnavailable, match=f"{name} is not installed: pip install {name}"):
        kind(Algorithm("lz4"))
