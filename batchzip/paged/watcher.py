"""Watcher: the thread that makes room in the pool when the pager has none for cold pages.

    pager: no room ─▶ await_event ─▶ store.shrink(): cold pages to the backing file ─▶ room_was_made() ─▶ it goes on
                                     no file, or it is full ─▶ tried again each second, as long as the pager asks for it

Until there is room, pages stay as they are: the budget is exceeded, and no page is lost. Each time that begins, the
logger `batchzip` says so.

The thread keeps the pager, and the memory weakly: it ends with `close`, or when nobody has the memory any more,
as both close the pager.
"""

from __future__ import annotations

import contextlib
import logging
import time
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
"""Seconds until it is tried again: arrays go, limits are raised, files are mended."""

_LOG = logging.getLogger("batchzip")


class Watcher:
    """Answers a pager's events, as long as it is open."""

    def __init__(self, pager: Pager, memory: weakref.ref[PagedMemory]) -> None:
        self._pager = pager
        self._memory = memory
        self._stuck = False
        """Whether the pool has no room, and none could be made."""
        self._again_s = 0.0
        """When that is tried again, of the monotonic clock."""
        self._warned = False

    def run(self) -> None:
        """Answer events until the pager is closed."""
        while True:
            watching = self._stuck or self._warned
            events = self._pager.await_event(_RETRY_S if watching else _IDLE_S)
            memory = self._memory()
            if events & Event.CLOSING or memory is None:
                return
            if not self._stuck or time.monotonic() >= self._again_s:
                with contextlib.suppress(BatchzipError):  # it is being closed
                    self._answer(memory, events)
            del memory

    def _answer(self, memory: PagedMemory, events: int) -> None:
        self._stuck = bool(events & Event.NO_ROOM) and not memory._make_room()  # noqa: SLF001 - a part of it
        if self._stuck:
            self._again_s = time.monotonic() + _RETRY_S
        elif events & Event.NO_ROOM:
            self._pager.room_was_made()
        excess = memory._excess(stuck=self._stuck)  # noqa: SLF001
        if excess and not self._warned:
            _LOG.warning("batchzip: %s", excess)
        self._warned = bool(excess) or (self._warned and self._stuck)
