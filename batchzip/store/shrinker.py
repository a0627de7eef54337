"""Shrinker: cold pages to the backing file until the limits are kept, and holes given back.

Kernel counterpart: zswap's shrink_worker. A store that meets a limit wakes it; it writes back the
coldest pages until what was full is down to its threshold, so that the stores after that find room.
A group over its own limit is shrunk alone; over the store's, the group with most bytes in the pool is.

What writeback frees are objects here and there. They become memory of the system again when whole spans are free,
so that the pool is compacted as soon as an eighth of it is holes.

The thread starts with the first wake-up and holds the store weakly: a store that nobody has any more
ends it. A file that fails ends the round, not the thread; the next wake-up tries again.

Lock: `pause` is held during a round, so that whoever holds it sees no change of the shrinker's under way.
Wake-ups travel through a SimpleQueue: unlike an Event, a signal handler may use it in the middle of a
wake-up of its own thread.
"""

from __future__ import annotations

import threading
import weakref
from queue import SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchzip.store.swap_store import SwapStore


class Shrinker:
    """Runs `store.shrink()` in a thread whenever it is woken."""

    def __init__(self, store: SwapStore) -> None:
        self._store = weakref.ref(store, self._forget)
        self._calls: SimpleQueue[None] = SimpleQueue()
        self._start = threading.RLock()
        self.pause = threading.RLock()
        self._thread: threading.Thread | None = None
        self._ended = False

    def wake(self) -> None:
        """Have it look; at once, and without waiting for it."""
        if self._thread is None:
            with self._start:
                if self._thread is None and not self._ended:
                    self._thread = threading.Thread(
                        target=self._run, name="batchzip-shrinker", daemon=True
                    )
                    self._thread.start()
        self._calls.put(None)

    def _run(self) -> None:
        while True:
            self._calls.get()
            while not self._calls.empty():
                self._calls.get()
            if self._ended:
                return
            with self.pause:
                store = self._store()
                if store is not None:
                    store._shrink_quietly()  # noqa: SLF001 - a part of the store
                del store

    def _forget(self, _: object) -> None:
        self._ended = True
        self._calls.put(None)

    def close(self) -> None:
        """End the thread; a batch that is being written is finished before."""
        with self._start:
            self._ended = True
            self._calls.put(None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
