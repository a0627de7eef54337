"""WorkerRing: the memory and the life of one worker's ring; the core has the ring itself.

The memory is a sealed memfd, reserved before it is used. Once the worker has mapped it, nobody can map it to
write any more (F_SEAL_FUTURE_WRITE), while the arena, which gives memory back, has no such seal. A dead worker's ring is never used again: what
it left half done stays in memory that nobody looks at any more, and its successor gets a new one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchzip.core.ring import Ring, ring_bytes
from batchzip.system.segment import Segment

if TYPE_CHECKING:
    from collections.abc import Mapping


class WorkerRing:
    """One worker's ring, seen from the owner. Thread-safe.

    Raise OSError(ENOSPC) when there is no memory for it.
    """

    def __init__(self, page_size: int, number: int) -> None:
        self._segment = Segment(ring_bytes(page_size), name="batchzip-ring", reserve=True)
        self.core = Ring(page_size, number, self._segment.memory)
        """What batches are divided with. It keeps the memory as long as a batch needs it."""

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What the worker inherits."""
        return (self._segment.fd,)

    @property
    def ready(self) -> bool:
        """Whether the worker takes descriptors, or did."""
        return self.core.ready

    def stop_worker(self) -> None:
        """Tell the worker to exit once it has done what is posted."""
        self.core.stop()

    def mark_gone(self) -> None:
        """Note that the worker is dead: nobody waits for it any more."""
        self.core.mark_gone()

    def figures(self) -> Mapping[str, int]:
        """Return what the worker counted so far."""
        return self.core.figures()

    @property
    def did_pages(self) -> bool:
        """Whether the worker counted a page."""
        figures = self.figures()
        return bool(figures["compressed_pages"] or figures["restored_pages"])

    def close(self) -> None:
        """Let go of the memory; batches that still use it keep it."""
        self._segment.close()
