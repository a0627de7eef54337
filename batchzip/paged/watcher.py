"""Watcher: the thread that makes room in the pool when the pager has no room for cold pages.

    pager: no room ─▶ await_event ─▶ store.shrink(): cold pages to the file ─▶ room_was_made()
                                     no file, or it is full ─▶ again each second, if still asked

Until there is room, pages stay uncompressed: the budget is exceeded, but no page is lost. The
logger `batchzip` reports this at once if no room can be made, and otherwise if it lasts for a
second. It reports each such period once.

The thread refers to the pager strongly and to the memory weakly. It ends with `close`, or when the
memory is collected, because both close the pager.
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
"""Seconds that the thread waits for events if there is nothing to retry."""

_RETRY_S = 1.0
"""Seconds between attempts: arrays may be freed, limits raised, or files repaired meanwhile."""

_LOG = logging.getLogger("batchzip")


class Watched(Protocol):
    """The methods of a paged memory that the watcher calls."""

    def _make_room(self) -> bool:
        """Move cold pages to the backing file. Return whether that made room in the pool."""

    def _excess(self, *, stuck: bool) -> str:
        """Return a text that says by how much the budget is exceeded, and why. "" if it is not."""


class Watcher:
    """Answers the events of a pager until it is closed."""

    def __init__(self, pager: Pager, memory: weakref.ref[Watched]) -> None:
        self._pager = pager
        self._memory = memory
        self._stuck = False
        """Whether the pool has no room and none could be made."""
        self._again_s = 0.0
        """Time of the next attempt, on the monotonic clock."""
        self._over_since_s: float | None = None
        """Time at which the budget was first seen exceeded, on the monotonic clock."""
        self._told = 0
        """The last report of it. 0: none. 1: it lasts. 2: no room can be made."""

    def run(self) -> None:
        """Answer events until the pager is closed."""
        while True:
            watching = self._stuck or self._over_since_s is not None
            events = self._pager.await_event(_RETRY_S if watching else _IDLE_S)
            memory = self._memory()
            if events & Event.CLOSING or memory is None:
                return
            if not self._stuck or time.monotonic() >= self._again_s:
                with contextlib.suppress(BatchzipError):  # the memory is being closed
                    self._answer(memory, events)
            del memory

    def _answer(self, memory: Watched, events: int) -> None:
        no_room = bool(events & Event.NO_ROOM)
        self._stuck = no_room and not memory._make_room()  # noqa: SLF001 - a method for this class
        if self._stuck:
            self._again_s = time.monotonic() + _RETRY_S
        elif no_room:
            self._pager.room_was_made()
        self._look_at_budget(memory)

    def _look_at_budget(self, memory: Watched) -> None:
        excess = memory._excess(stuck=self._stuck)  # noqa: SLF001 - as above
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
