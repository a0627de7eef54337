"""Hold: the thread that does an engine's requests stands still until a test lets it go on."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from batchzip import CompressBatch, Engine
from batchzip.testing.plain import SLACK_S, make_pages
from batchzip_workers.lane import Lane

if TYPE_CHECKING:
    import pytest

    from batchzip import Request
    from batchzip.batch import Batch


class Hold:
    """Stops every lane where it would begin with what it took, while `closed`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._open = threading.Event()
        self._reached = threading.Event()
        do = Lane._do

        def held(lane: Lane, requests: list[Request[Batch]]) -> None:
            self._reached.set()
            assert self._open.wait(SLACK_S)
            do(lane, requests)

        monkeypatch.setattr(Lane, "_do", held)

    def stop(self, engine: Engine) -> Request[CompressBatch]:
        """Have the lane stand still with a request of one page; what comes now is queued."""
        request = engine.submit(CompressBatch(make_pages(1)))
        assert self._reached.wait(SLACK_S)
        return request

    def release(self) -> None:
        """Let it go on, for good: what is queued by now is taken in one bundle."""
        self._open.set()
