"""Watcher: the thread that makes room in the pool when the pager has none for cold pages.

    pager: no room ─▶ await_event ─▶ store.shrink(): cold pages to the backing file ─▶ room_was_made() ─▶ it goes on
                                     no file, or it is full ─▶ tried again each second, as long as the pager asks for it

Until there is room, pages stay as they are: the budget is exceeded, and no page is lost. The logger `batchzip`
says so: at once if no room can be made, and where it lasts for a second; each time that begins, once.

The thread keeps the pager, and the memory weakly: it ends with `close`, or when nobody has the memory any more,
as both close the pager.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING, Protocol

from batchzip.core.region import Event
from batchzip.errors import BatchzipError

if TYPE_CHECKING:
    import weakref

    from batchzip.core.pager import Pager

_IDLE_S = 3600.0
"""Seconds of a wait for events when there is nothing else to do."""

_RETRY_S = 1.0
"""Seconds until it is tried again: arrays go, limits are raised, files are mended."""

_LOG = logging.getLogger("batchzip")


class Watched(Protocol):
    """What the watcher asks of a paged memory."""

    def _make_room(self) -> bool:
        """Move cold pages to the backing file. Return whether that made room in the pool."""

    def _excess(self, *, stuck: bool) -> str:
        """Return a text that says by how much the budget is exceeded, and why; "" if it is not."""


class Watcher:
    """Answers a pager's events, as long as it is open."""

    def __init__(self, pager: Pager, memory: weakref.ref[Watched]) -> None:
        self._pager = pager
        self._memory = memory
        self._stuck = False
        """Whether the pool has no room, and none could be made."""
        self._again_s = 0.0
        """When that is tried again, of the monotonic clock."""
        self._over_since_s: float | None = None
        """When the budget was first seen exceeded."""
        self._told = 0
        """What was said of that: 1: that it lasts; 2: that no room can be made."""

    def run(self) -> None:
        """Answer events until the pager is closed."""
        while True:
            watching = self._stuck or self._over_since_s is not None
            events = self._pager.await_event(_RETRY_S if watching else _IDLE_S)
            memory = self._memory()
            if events & Event.CLOSING or memory is None:
                return
            if not self._stuck or time.monotonic() >= self._again_s:
                with contextlib.suppress(BatchzipError):  # it is being closed
                    self._answer(memory, events)
            del memory

    def _answer(self, memory: Watched, events: int) -> None:
        self._stuck = bool(events & Event.NO_ROOM) and not memory._make_room()  # noqa: SLF001 - a part of it
        if self._stuck:
            self._again_s = time.monotonic() + _RETRY_S
        elif events & Event.NO_ROOM:
            self._pager.room_was_made()
        self._look_at_budget(memory)

    def _look_at_budget(self, memory: Watched) -> None:
        excess = memory._excess(stuck=self._stuck)  # noqa: SLF001 - a part of it
        if not excess:
            self._over_since_s = None
            self._told = 2 if self._stuck and self._told else 0
            return
        now = time.monotonic()
        if self._over_since_s is None:
            self._over_since_s = now
        serious = 2 if self._stuck else int(now - self._over_since_s >= _RETRY_S)
        if serious > self._told:
            self._told = serious
            _LOG.warning("batchzip: %s", excess)
