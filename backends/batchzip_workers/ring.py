"""WorkerRing: the memory and the life cycle of one worker's ring. The ring itself is in the core.

The memory is a sealed memfd, reserved before it is used. Once the worker has mapped it, no process
can map it writable any more (F_SEAL_FUTURE_WRITE). The arena has no such seal, because it frees
memory. A dead worker's ring is never used again: its half-done state stays in memory that is no
longer read, and the successor gets a new ring.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchzip.core.ring import Ring, ring_bytes
from batchzip.system.segment import Segment

if TYPE_CHECKING:
    from collections.abc import Mapping


class WorkerRing:
    """One worker's ring, as the owner sees it. Thread-safe.

    Raises OSError(ENOSPC) if there is no memory for it.
    """

    def __init__(self, page_size: int, number: int) -> None:
        self._segment = Segment(ring_bytes(page_size), name="batchzip-ring", reserve=True)
        self.core = Ring(page_size, number, self._segment.memory)
        """The ring for dividing batches. It keeps the memory as long as a batch needs it."""

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Descriptors that the worker inherits."""
        return (self._segment.fd,)

    @property
    def ready(self) -> bool:
        """Whether the worker has begun to take descriptors."""
        return self.core.ready

    def stop_worker(self) -> None:
        """Tell the worker to exit after all posted descriptors."""
        self.core.stop()

    def mark_gone(self) -> None:
        """Note that the worker has ended, so that no batch waits for it."""
        self.core.mark_gone()

    def figures(self) -> Mapping[str, int]:
        """Return the worker's counters."""
        return self.core.figures()

    @property
    def did_pages(self) -> bool:
        """Whether the worker has counted a page."""
        figures = self.figures()
        return bool(figures["compressed_pages"] or figures["restored_pages"])

    def close(self) -> None:
        """Release the memory. Batches that still use it keep it alive."""
        self._segment.close()
