"""Lane: the thread that does an engine's requests, one after the other.

It is the caller of the workers in place of the submitter, who is free meanwhile: it does a caller's
share of each batch itself. Rejected: concurrent.futures' executor. Its thread is joined at the
interpreter's exit before anything else runs, with every request that is still queued, and it cannot be
closed from a callback of its own.

A thread takes requests until `close()`; the queue is the only thing shared, and needs no lock of ours.
"""

from __future__ import annotations

import threading
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchzip.batch import Batch
    from batchzip.request import Request


class Lane:
    """Takes up requests in the order they were put, and finishes each."""

    def __init__(self, execute: Callable[[Batch], None]) -> None:
        self._execute = execute
        self._queue: SimpleQueue[Request[Batch] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="batchzip-requests", daemon=True)
        self._thread.start()

    def put(self, request: Request[Batch]) -> None:
        """Queue a request; returns at once."""
        self._queue.put(request)

    def _run(self) -> None:
        while (request := self._queue.get()) is not None:
            self._do(request)
            del request  # nothing of it, nor of its engine, is kept while there is no next one

    def _do(self, request: Request[Batch]) -> None:
        if not request.take_up():
            return
        try:
            self._execute(request.batch)
        except BaseException as error:  # noqa: BLE001 - raised where the request is waited for
            request.finish(error)
        else:
            request.finish()

    def close(self) -> None:
        """Finish every request that was put, then end the thread."""
        self._queue.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()
            return
        # Closed by a callback: the rest is done here, and the thread ends when this one returns.
        while (request := self._queue.get()) is not None:
            self._do(request)
        self._queue.put(None)

    def abandon(self, timeout_s: float) -> None:
        """At the interpreter's exit: cancel what is queued, let what is under way end within time."""
        while True:
            try:
                request = self._queue.get_nowait()
            except Empty:
                break
            if request is not None:
                request.cancel()
        self._queue.put(None)
        self._thread.join(timeout_s)
