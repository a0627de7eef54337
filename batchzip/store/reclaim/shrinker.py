"""Shrinker: cold pages to the backing file until the limits are kept, and holes given back.

Kernel counterpart: zswap's shrink_worker. A store that meets a limit wakes it; it writes back the
coldest pages until what was full is down to its threshold, so that the stores after that find room.
A group over its own limit is shrunk alone; over the store's, the group with most bytes in the pool is.

What writeback frees are objects here and there. They become memory of the system again when whole spans are free,
so that the pool is compacted as soon as an eighth of it is holes.

The thread starts with the first wake-up and holds the store weakly: a store that nobody has any more
ends it. Where none can be started, the caller does a round itself, and the next wake-up tries again. A file that fails ends the round, not the thread; the next wake-up tries again. What else a file object
raises is told as threads tell it, by `threading.excepthook`.

Lock: `pause` is held during a round, so that whoever holds it sees no change of the shrinker's under way.
All else is done in single steps, as a signal handler may come here in the middle of a call of its own thread:
wake-ups travel through a SimpleQueue, and the thread itself takes the only seat there is.
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
"""Seconds between two looks at whether it is to end, while somebody holds `pause`."""


class Shrinkable(Protocol):
    """What a store does for its shrinker."""

    def _shrink_quietly(self) -> None:
        """Shrink; what fails is counted, and tried again at the next wake-up."""


class Shrinker:
    """Has a store shrink in a thread whenever it is woken."""

    def __init__(self, store: Shrinkable) -> None:
        self._store = weakref.ref(store, self._forget)
        self._calls: SimpleQueue[None] = SimpleQueue()
        self.pause = threading.RLock()
        self._seat: dict[str, threading.Thread] = {}
        self._ended = False

    def wake(self) -> None:
        """Have it look; at once, and without waiting for it unless there can be no thread."""
        if not self._seat and not self._ended:
            try:
                start_thread(self._run, name="batchzip-shrinker")
            except LimitReached:
                self._shrink()  # without `pause`: it is a change of the caller's
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
        """Take `pause`. Return False if it is to end, which who holds `pause` may be waiting for."""
        while not self.pause.acquire(timeout=_LOOK_S):
            if self._ended:
                return False
        return True

    def _forget(self, _: object) -> None:
        self._ended = True
        self._calls.put(None)

    def close(self, *, wait: bool) -> None:
        """End the thread; a batch that is being written is finished before. `wait` for it, if it is another."""
        self._ended = True
        self._calls.put(None)
        for thread in list(self._seat.values()):
            if wait and thread is not threading.current_thread():
                thread.join()
