"""The threads backend: lanes that are threads of the core and never take the GIL.

Nothing is copied on the way to a lane, and nothing is started but threads. It takes codecs that are C
functions (`batchzip algorithms` says which). A codec in Python would have its threads take turns, so
it is refused: the workers backend is for those.

Rejected: Python threads that call the codec without the GIL. Handing the GIL over costs more than a
page of 4 KiB takes.
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
"""Seconds until threads that could not be started are tried again."""


class ThreadsBackend(LanesBackend):
    """Compresses in `workers` threads besides the caller; default: usable CPUs − 1, 1 to 15.

    Opening it raises BackendUnavailable for a codec in Python.
    """

    name = "threads"

    def __init__(self, *, workers: int | None = None, isolate: bool = False) -> None:
        if isolate:
            raise BadArgument("threads share the owner's memory: isolate=True needs 'workers'")
        super().__init__(workers=workers)
        self._lanes: ThreadLanes | None = None
        self._started: dict[str, tuple[ThreadLanes, weakref.finalize[..., object]]] = {}
        """The lanes and what ends them, of whoever started some first: it takes one step, and no lock."""
        self._retry_at = 0.0

    def open(self, codec: Codec, page_size: int) -> None:
        """Start the threads. Raise BackendUnavailable for a codec in Python."""
        if not is_native(codec):
            raise BackendUnavailable(
                f"{codec.algorithm} runs in Python here, where threads take turns: use backend='workers'"
            )
        super().open(codec, page_size)
        self._plan = codec.plan()
        self._start()

    def _start(self) -> None:
        """Start the threads unless it is too early; where that fails, warn once."""
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
        if first is not stop or self._closed:  # another thread came first, or has closed the engine
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
        """Wait until every thread takes work; False when time is up or they cannot be started."""
        deadline = time.monotonic() + timeout_s
        while not all(ring.ready for ring in self.rings) and time.monotonic() < deadline:
            time.sleep(0.0001)
        return len(self.rings) == self.workers and all(ring.ready for ring in self.rings)

    def statistics(self) -> Statistics:
        """Add up what was done by callers and by the threads."""
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
