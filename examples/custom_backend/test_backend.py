"""The backend, held to the contract: run pytest once the package is installed."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import pytest
from batchzip_thread import MOST_WAITING, ThreadBackend

import batchzip
from batchzip.testing import BackendContract

if TYPE_CHECKING:
    from collections.abc import Callable


class TestThread(BackendContract):
    """Every promise of a backend, for two algorithms; by default it is all there are."""

    codecs = ("lz4", "zstd")

    @classmethod
    def make_backend(cls) -> ThreadBackend:
        """Make one that no engine has opened."""
        return ThreadBackend()


def test_it_is_found_by_its_name() -> None:
    """The entry point is what registers it."""
    assert "thread" in batchzip.backends()
    with batchzip.Engine("lz4", backend="thread") as engine:
        assert isinstance(engine.backend, ThreadBackend)


GO_ON = threading.Event()


@dataclass(frozen=True, slots=True)
class Waiting(batchzip.Codec):
    """A codec that waits until it may go on."""

    name: ClassVar[str] = "waiting"

    def compressor(self, page_size: int) -> Callable[[bytes | memoryview], bytes]:  # noqa: ARG002 - not needed
        """Make a compressor of one byte."""
        return lambda _: b"x" * GO_ON.wait(60)

    def decompressor(self, page_size: int) -> Callable[[bytes | memoryview], bytes]:
        """Make a decompressor of zeros."""
        return lambda _: bytes(page_size)


def test_what_finds_no_room_waits_or_is_refused_and_the_rest_is_done() -> None:
    """Room is what the queue has: the thread has one more in hand."""
    with batchzip.Engine(Waiting(), backend="thread") as engine:
        requests = [
            engine.submit(batchzip.CompressBatch([bytes(4096)] * 2))
            for _ in range(MOST_WAITING + 1)
        ]
        late = batchzip.CompressBatch([bytes(4096)] * 2)
        with pytest.raises(batchzip.EngineBusy, match="64 requests are waiting already"):
            engine.submit(late, timeout_s=0.01)
        with pytest.raises(batchzip.EngineBusy):
            engine.submit(late, block=False)
        assert requests[-1].cancel()
        GO_ON.set()
        requests.append(engine.submit(late, timeout_s=60))
        for request in [*requests[:-2], requests[-1]]:
            assert request.wait(60).dlens.tolist() == [1, 1]
        with pytest.raises(batchzip.RequestCancelled):
            requests[-2].wait(60)
