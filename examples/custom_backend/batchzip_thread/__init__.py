"""A backend for batchzip in a package of its own: one thread in addition to the caller.

    pip install ./examples/custom_backend
    batchzip.Engine("zstd", backend="thread")

Synchronous calls run in the calling thread. Submitted requests run in the backend's thread, so that
an event loop goes on meanwhile. The backend needs no process and no shared memory. It gains a core
only if the codec releases the GIL.

    submit ──▶ waiting, at most MOST_WAITING ──▶ thread: take_up ─▶ run_inline ─▶ finish

Locks: `_changed` guards `_waiting` and `_closing`. It is not held while a batch is processed, nor
while a request is finished, because that runs callbacks.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from batchzip import ClosedError, EngineBusy
from batchzip.backend import Backend

if TYPE_CHECKING:
    from batchzip import Codec, Request
    from batchzip.batch import Batch

__all__ = ["ThreadBackend"]

MOST_WAITING = 64
"""Maximum number of requests in the queue. `submit` waits while it is full."""


# --8<-- [start:backend]
class ThreadBackend(Backend):
    """Runs submitted batches one by one in a thread, and all others in the calling thread."""

    name = "thread"

    def __init__(self, *, workers: int | None = None) -> None:
        """Accept `workers`, the number of lanes besides the caller, and ignore it."""
        del workers

    def open(self, codec: Codec, page_size: int) -> None:
        """Bind the backend to a codec and start the thread."""
        super().open(codec, page_size)
        self._changed = threading.Condition()
        self._waiting: deque[Request[Batch]] = deque()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="batchzip-thread", daemon=True)
        self._thread.start()

    def run(self, batch: Batch) -> None:
        """Run a batch in the calling thread."""
        self.run_inline(batch)

    def submit(
        self, request: Request[Batch], *, timeout_s: float | None = None, block: bool = True
    ) -> None:
        """Queue a request. Raise EngineBusy if the queue stays full for `timeout_s` seconds."""
        patience_s = None if timeout_s is None else min(timeout_s, threading.TIMEOUT_MAX)
        with self._changed:
            if not self._has_room() and (
                not block or not self._changed.wait_for(self._has_room, patience_s)
            ):
                raise EngineBusy(f"{len(self._waiting)} requests are waiting already")
            if self._closing:
                raise ClosedError("the engine was closed meanwhile")
            self._waiting.append(request)
            self._changed.notify_all()

    def _has_room(self) -> bool:
        return self._closing or len(self._waiting) < MOST_WAITING

    def _work(self) -> None:
        while (request := self._next()) is not None:
            if not request.take_up():
                continue  # it was cancelled
            try:
                self.run_inline(request.batch, request.deadline)
            except Exception as error:  # noqa: BLE001 - raised by the request's `wait`
                request.finish(error)
            else:
                request.finish()

    def _next(self) -> Request[Batch] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            if not self._waiting:
                return None
            self._changed.notify_all()
            return self._waiting.popleft()

    def close(self) -> None:
        """Finish the submitted requests and end the thread."""
        if self.codec is None:
            return  # it was never opened
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not threading.current_thread():  # a callback may close the engine
            self._thread.join()


# --8<-- [end:backend]
