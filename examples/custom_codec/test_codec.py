"""Test the codec with the contract of backends. Install the package, then run pytest."""

from __future__ import annotations

import pytest
from batchzip_zlib import Zlib

import batchzip
from batchzip.backend import Backend, make_backend
from batchzip.testing import BackendContract


# --8<-- [start:contract]
class TestOnSequential(BackendContract):
    """The contract of a backend, with this codec."""

    codecs = ("zlib",)

    @classmethod
    def make_backend(cls) -> Backend:
        """Return the reference backend."""
        return make_backend("sequential")


# --8<-- [end:contract]


def test_a_worker_compresses_and_restores_with_zlib() -> None:
    """A worker unpickles the codec, which imports its package there."""
    pages = [bytes([number]) * 4000 + bytes(96) for number in range(200)]
    with batchzip.Engine(Zlib(level=1), backend="workers", workers=1) as engine:
        assert engine.wait_ready(60)
        batch = batchzip.CompressBatch(pages)
        for _ in range(20):  # the engine sometimes tries whether the caller alone is faster
            engine.compress(batch)
        assert engine.statistics.compress.pages == 20 * 200
        back = batchzip.DecompressBatch(batch.outputs())
        engine.decompress(back)
        assert [bytes(page) for page in back.pages] == pages


def test_zlib_is_found_by_its_name() -> None:
    """The entry point registers the codec."""
    assert "zlib" in batchzip.algorithms()
    with batchzip.Engine("zlib", level=9) as engine:
        assert engine.codec == Zlib(level=9)
    with pytest.raises(batchzip.BadArgument, match="zlib level must be an integer in 1…9, not 0"):
        batchzip.Engine("zlib", level=0)
