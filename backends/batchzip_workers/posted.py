"""Posted: a share that a worker was given, as its caller and the ring know it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchzip.batch.descriptor import Batch
    from batchzip_workers.ring import Ring


class Posted:
    """A share that a worker was given."""

    __slots__ = ("batch", "placed", "ring", "sequence", "share", "woke")

    def __init__(
        self,
        ring: Ring,
        sequence: int,
        batch: Batch,
        share: Sequence[int],
        placed: bool,
    ) -> None:
        self.ring = ring
        self.sequence = sequence
        self.batch = batch
        self.share = share
        self.placed = placed
        """Whether the worker writes outputs where they belong, and not to its slot."""
        self.woke = False
        """Whether the worker slept and had to be woken."""
