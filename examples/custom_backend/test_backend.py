"""Test the backend with the contract of backends. Install the package, then run pytest."""

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
    """The contract of a backend, for two algorithms. The default is all available ones."""

    codecs = ("lz4", "zstd")

    @classmethod
    def make_backend(cls) -> ThreadBackend:
        """Return a backend that no engine has opened."""
        return ThreadBackend()


def test_it_is_found_by_its_name() -> None:
    """The entry point registers the backend."""
    assert "thread" in batchzip.backends()
    with batchzip.Engine("lz4", backend="thread") as engine:
        assert isinstance(engine.backend, ThreadBackend)


GO_ON = threading.Event()


@dataclass(frozen=True, slots=True)
class Waiting(batchzip.Codec):
    """A codec whose compressor waits for GO_ON."""

    name: ClassVar[str] = "waiting"

    def compressor(
        self,
        page_size: int,  # noqa: ARG002 - not needed
    ) -> Callable[[bytes | memoryview], bytes]:
        """Return a compressor that returns one byte."""
        return lambda _: b"x" * GO_ON.wait(60)

    def decompressor(self, page_size: int) -> Callable[[bytes | memoryview], bytes]:
        """Return a decompressor that returns zeros."""
        return lambda _: bytes(page_size)


def test_requests_beyond_the_queue_wait_or_are_refused() -> None:
    """The queue holds MOST_WAITING requests, and the thread processes one more."""
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
