"""Shrinker: writes cold pages to the backing file until usage is below the limits.

Kernel counterpart: zswap's shrink_worker. A `store` call that reaches a limit wakes it. It writes
back the coldest pages until usage is down to the threshold, so that later stores fit. If a group is
over its own limit, only that group shrinks. If the pool is over its limit, the group with most
bytes in the pool shrinks.

Writeback frees scattered objects, and only whole free spans return to the system. So the pool is
compacted as soon as more than an eighth of it is holes.

The first wake-up starts the thread. It holds only a weak reference to the store, and ends when the
store is dropped. If no thread can be started, the caller shrinks in its own thread, and the next
wake-up tries again to start one. A failing file ends the round, not the thread. Any other exception
of a file object is reported by `threading.excepthook`.

Lock: the thread holds `pause` during a round. So whoever holds it sees no half-done change of the
shrinker. Everything else is done in single steps, because a signal handler may interrupt a call of
its own thread and call this class: wake-ups go through a SimpleQueue, and `setdefault` decides
which thread serves.
"""

from __future__ import annotations

import sys
import threading
import weakref
from queue import SimpleQueue
from typing import Protocol

from batchzip.errors import LimitReached
from batchzip.system.limits import start_thread

_LOOK_S = 0.05
"""Seconds between two checks whether to end, while another thread holds `pause`."""


class Shrinkable(Protocol):
    """The methods of a store that its shrinker calls."""

    def _shrink_quietly(self) -> None:
        """Shrink. Failures are counted; the next wake-up tries again."""


class Shrinker:
    """Shrinks a store in its own thread whenever it is woken."""

    def __init__(self, store: Shrinkable) -> None:
        self._store = weakref.ref(store, self._forget)
        self._calls: SimpleQueue[None] = SimpleQueue()
        self.pause = threading.RLock()
        self._seat: dict[str, threading.Thread] = {}
        self._ended = False

    def wake(self) -> None:
        """Wake the thread and return at once. Shrink in this thread if none can be started."""
        if not self._seat and not self._ended:
            try:
                start_thread(self._run, name="batchzip-shrinker")
            except LimitReached:
                self._shrink()  # without `pause`: this is a change by the caller
                return
        self._calls.put(None)

    def _shrink(self) -> None:
        store = self._store()
        if store is not None:
            store._shrink_quietly()  # noqa: SLF001 - a part of the store

    def _run(self) -> None:
        thread = threading.current_thread()
        if self._seat.setdefault("the only one", thread) is not thread:
            return
        while True:
            self._calls.get()
            while not self._calls.empty():
                self._calls.get()
            if self._ended or not self._begin():
                return
            try:
                self._shrink()
            except BaseException:  # noqa: BLE001 - a file object raises what it likes
                threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), thread)))
            finally:
                self.pause.release()

    def _begin(self) -> bool:
        """Acquire `pause`. Return False if the thread must end.

        The holder of `pause` may be waiting for the end.
        """
        while not self.pause.acquire(timeout=_LOOK_S):
            if self._ended:
                return False
        return True

    def _forget(self, _: object) -> None:
        self._ended = True
        self._calls.put(None)

    def close(self, *, wait: bool) -> None:
        """End the thread after the batch that it is writing.

        With `wait`, wait for its end, unless this is the thread itself.
        """
        self._ended = True
        self._calls.put(None)
        for thread in list(self._seat.values()):
            if wait and thread is not threading.current_thread():
                thread.join()
