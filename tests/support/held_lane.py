"""Hold: the thread that does an engine's requests stands still until a test lets it go on."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from batchzip import CompressBatch, Engine
from batchzip.lanes.dispatcher import Dispatcher
from batchzip.testing.plain import SLACK_S, make_pages

if TYPE_CHECKING:
    import pytest

    from batchzip import Request
    from batchzip.batch import Batch


class Hold:
    """Stops every dispatcher where it would begin with the request that it took."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._open = threading.Event()
        self._reached = threading.Event()
        begin = Dispatcher._begin

        def held(dispatcher: Dispatcher, request: Request[Batch]) -> None:
            self._reached.set()
            assert self._open.wait(SLACK_S)
            begin(dispatcher, request)

        monkeypatch.setattr(Dispatcher, "_begin", held)

    def stop(self, engine: Engine) -> Request[CompressBatch]:
        """Have the dispatcher stand still with a request of one page; what comes now is queued."""
        request = engine.submit(CompressBatch(make_pages(1)))
        assert self._reached.wait(SLACK_S)
        return request

    def release(self) -> None:
        """Let it go on, for good."""
        self._open.set()
