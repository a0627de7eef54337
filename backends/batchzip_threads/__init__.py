"""The threads backend: lanes are threads of the core that never take the GIL.

Nothing is copied on the way to a lane, and only threads are started. The backend takes codecs that
are C functions (`batchzip algorithms` shows which). Threads would run a codec in Python one at a
time. So it is refused: the workers backend is for such codecs.

Rejected: Python threads that release the GIL during the codec. Handing over the GIL costs more than
compressing a page of 4 KiB.
"""

from __future__ import annotations

import time
import weakref
from collections import Counter
from typing import TYPE_CHECKING

from batchzip.backend import is_native
from batchzip.core.lane import ThreadLanes
from batchzip.errors import BackendUnavailable, BadArgument
from batchzip.lanes import LanesBackend

if TYPE_CHECKING:
    from batchzip.codecs import Codec
    from batchzip.core.ring import Ring
    from batchzip.statistics import Statistics

__all__ = ["ThreadsBackend"]

_RETRY_S = 1.0
"""Seconds until the next attempt, after threads could not be started."""


class ThreadsBackend(LanesBackend):
    """Compresses in `workers` threads besides the caller. Default: usable CPUs − 1, 1 to 15.

    `open` raises BackendUnavailable for a codec in Python.
    """

    name = "threads"
    is_local = True

    def __init__(self, *, workers: int | None = None, isolate: bool = False) -> None:
        if isolate:
            raise BadArgument(
                "threads run the codec in this process: isolate=True needs backend='workers'"
            )
        super().__init__(workers=workers)
        self._lanes: ThreadLanes | None = None
        self._started: dict[str, tuple[ThreadLanes, weakref.finalize[..., object]]] = {}
        """The lanes, and their finalizer, of the first thread that started some. `setdefault`
        decides this in one step, without a lock."""
        self._retry_at = 0.0

    def open(self, codec: Codec, page_size: int) -> None:
        """Start the threads. Raise BackendUnavailable for a codec in Python."""
        if not is_native(codec):
            raise BackendUnavailable(
                f"{codec.algorithm} runs in Python here, one thread at a time: "
                "use backend='workers'"
            )
        super().open(codec, page_size)
        self._plan = codec.plan()
        self._start()

    def _start(self) -> None:
        """Start the threads unless it is too early to try again. Warn once if that fails."""
        if time.monotonic() < self._retry_at or self._closed:
            return
        try:
            lanes = ThreadLanes(self._plan, self.page_size, self.workers)
        except (OSError, MemoryError) as error:
            self._retry_at = time.monotonic() + _RETRY_S
            self.tell_loss(f"threads could not be started ({error})", stacklevel=6)
            return
        stop: weakref.finalize[..., object] = weakref.finalize(self, lanes.close)
        self._lanes, first = self._started.setdefault("the only ones", (lanes, stop))
        if first is stop:
            self.at_child_exit(stop)
        if first is not stop or self._closed:  # another thread was first, or closed the engine
            stop()
        self.tell_recovery()

    @property
    def rings(self) -> tuple[Ring, ...]:
        """The rings of the threads."""
        if self._lanes is None:
            self._start()
        lanes = self._lanes
        return () if lanes is None else lanes.rings

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until every thread takes work. Return False after `timeout_s`, or if none starts."""
        deadline = time.monotonic() + timeout_s
        while not all(ring.ready for ring in self.rings) and time.monotonic() < deadline:
            time.sleep(0.0001)
        return len(self.rings) == self.workers and all(ring.ready for ring in self.rings)

    def statistics(self) -> Statistics:
        """Return the sum of the figures of callers and threads."""
        totals: tuple[Counter[str], Counter[str]] = Counter(), Counter()
        lanes = self._lanes
        for ring in () if lanes is None else lanes.rings:
            figures = ring.figures()
            for total, kind in zip(totals, ("compressed", "restored"), strict=True):
                for name in ("pages", "bytes_in", "bytes_out"):
                    total[name] += figures[f"{kind}_{name}"]
        return self.add_statistics(totals)

    def close(self) -> None:
        """Finish every request, then end the threads."""
        self.close_requests()
        for _, stop in list(self._started.values()):
            stop()
