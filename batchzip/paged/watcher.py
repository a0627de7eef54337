"""Watcher: the thread that makes room in the pool when the pager has none for cold pages.

    pager: no room ─▶ await_event ─▶ store.shrink(): cold pages to the backing file ─▶ room_was_made() ─▶ it goes on
                                     no file, or it is full: tried again every second

Until there is room, pages stay as they are: the budget is exceeded, and no page is lost. Each time that begins, the
logger `batchzip` says so, once.

The thread keeps the pager, and the memory weakly: it ends with `close`, or when nobody has the memory any more,
as both close the pager.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from batchzip.core.region import Event
from batchzip.errors import BatchzipError

if TYPE_CHECKING:
    import weakref

    from batchzip.core.pager import Pager
    from batchzip.paged.memory import PagedMemory

_IDLE_S = 3600.0
"""Seconds of a wait for events when there is nothing else to do."""

_RETRY_S = 1.0
"""Seconds until room is looked for again: files get shorter, arrays go, limits are raised."""

_LOG = logging.getLogger("batchzip")


class Watcher:
    """Answers a pager's events, as long as it is open."""

    def __init__(self, pager: Pager, memory: weakref.ref[PagedMemory]) -> None:
        self._pager = pager
        self._memory = memory
        self._stuck = False
        """Whether there was no room to be made, the last time."""
        self._warned = False

    def run(self) -> None:
        """Answer events until the pager is closed."""
        while True:
            watching = self._stuck or self._warned
            try:
                events = self._pager.await_event(_RETRY_S if watching else _IDLE_S)
            except BatchzipError:  # it was closed before
                return
            memory = self._memory()
            if events & Event.CLOSING or memory is None:
                return
            with contextlib.suppress(BatchzipError):  # it is being closed
                if events & Event.NO_ROOM or self._stuck:
                    self._stuck = not memory._make_room()  # noqa: SLF001 - a part of it
                    self._pager.room_was_made()
                self._look_at_budget(memory, exceeded=bool(events & Event.OVER_BUDGET))
            del memory

    def _look_at_budget(self, memory: PagedMemory, *, exceeded: bool) -> None:
        if exceeded and not self._warned:
            self._warned = True
            _LOG.warning("batchzip: %s", memory._excess())  # noqa: SLF001
        elif self._warned and not exceeded and memory._is_within_budget():  # noqa: SLF001
            self._warned = False
