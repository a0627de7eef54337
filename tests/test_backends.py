"""The backends of this project, held to the contract."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
from faulty_codec import KILL, FaultyCodec

from batchzip import CompressBatch, Engine
from batchzip.testing import BackendContract
from batchzip.testing.plain import make_layered_codec
from batchzip_sequential import SequentialBackend
from batchzip_workers.backend import WorkersBackend
from batchzip_workers.balance import Balance

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchzip import Backend, Codec


FEW: list[str | Callable[[], Codec]] = ["lz4", "zstd", "deflate", make_layered_codec]
"""Of two libraries, one that does not always make the same bytes, and all layers. The reference has all."""


class TestSequential(BackendContract):
    @classmethod
    def make_backend(cls) -> Backend:
        return SequentialBackend()


class TestOneWorker(BackendContract):
    codecs = FEW

    @classmethod
    def make_backend(cls) -> Backend:
        return WorkersBackend(workers=1)


class TestThreeWorkersThatAlwaysGetTheirShare(BackendContract):
    codecs = FEW

    @classmethod
    def make_backend(cls) -> Backend:
        return WorkersBackend(workers=3)

    @pytest.fixture(autouse=True)
    def hand_over_whatever_it_costs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Balance, "is_worth", lambda *_, **__: True)


@pytest.mark.parametrize("_time", range(3))
def test_a_page_that_killed_its_worker_is_never_run_in_the_owner(
    _time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Balance, "is_worth", lambda *_, **__: True)
    pages = np.zeros((16, 4096), np.uint8)
    pages[1, :4] = np.frombuffer(KILL, np.uint8)  # odd pages are the worker's
    with Engine(FaultyCodec(os.getpid()), backend="workers", workers=1) as engine:
        assert engine.wait_ready(60)
        batch = CompressBatch(pages)
        engine.compress(batch)
        assert batch.errors.tolist() == [0, -errno.EOWNERDEAD] + [0] * 14
