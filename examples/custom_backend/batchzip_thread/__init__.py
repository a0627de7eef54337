"""A backend for batchzip in a package of its own: one thread that works beside the caller.

    pip install ./examples/custom_backend
    batchzip.Engine("zstd", backend="thread")

What is asked for at once is done in the calling thread; what is submitted goes to the thread, so that an
event loop goes on meanwhile. It costs no process and no shared memory, and gains no core where
the codec does not let go of the interpreter.

    submit ──▶ waiting, at most MOST_WAITING ──▶ thread: take_up ─▶ run_inline ─▶ finish

Locks: `_changed` guards `_waiting` and `_closing`. It is not held while work is done, nor while a
request is finished, since that runs callbacks.
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
"""Requests that wait for the thread; the next ones wait in `submit`."""


# --8<-- [start:backend]
class ThreadBackend(Backend):
    """Does submitted batches one after the other in a thread, all others in the caller's."""

    name = "thread"

    def __init__(self, *, workers: int | None = None) -> None:
        """Make it; `workers` are lanes besides the caller, of which it has none."""
        del workers

    def open(self, codec: Codec, page_size: int) -> None:
        """Bind to a codec, and start the thread."""
        super().open(codec, page_size)
        self._changed = threading.Condition()
        self._waiting: deque[Request[Batch]] = deque()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="batchzip-thread", daemon=True)
        self._thread.start()

    def run(self, batch: Batch) -> None:
        """Do a batch in the calling thread."""
        self.run_inline(batch)

    def submit(
        self, request: Request[Batch], *, timeout_s: float | None = None, block: bool = True
    ) -> None:
        """Queue a request. Raises EngineBusy where there is no room, now or for so many seconds."""
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
            except Exception as error:  # noqa: BLE001 - raised where the request is waited for
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
        """Finish what was submitted, and end the thread."""
        if self.codec is None:
            return  # it was never opened
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not threading.current_thread():  # a callback may close the engine
            self._thread.join()


# --8<-- [end:backend]
