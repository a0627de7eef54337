"""Stage: the owner's writing end of a ring's slots: inputs, where need be, and the descriptor.

What lies in the arena is not staged; the descriptor says where it is. The rest is copied: pages of an
array by one strided copy, the sources of a decompressed share packed. Rejected: a copy for each page
of an array (0.3 µs more a page).

Called under the ring's lock, for a slot that is free.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

import numpy as np

from batchzip.codecs.context import COMPRESS
from batchzip_workers.layout import SLOTS, SlotViews, seal_descriptor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchzip.batch.descriptor import Batch, Placement
    from batchzip_workers.layout import Layout

_FEW = 8
"""Pages up to which a copy each is cheaper than one strided copy by NumPy."""


class Stage:
    """Writes the slots of one ring, whose segment is `view`."""

    def __init__(self, view: memoryview, layout: Layout) -> None:
        self.layout = layout
        self.slots = [SlotViews(view, layout, slot) for slot in range(SLOTS)]
        self._page_rows = [
            np.frombuffer(slot.inputs, np.uint8).reshape(-1, layout.page_size)
            for slot in self.slots
        ]
        self._most_bytes = 2 * layout.page_size

    def fill(self, sequence: int, batch: Batch, share: Sequence[int], placement: Placement) -> None:
        """Write a slot: inputs that do not lie in the arena, and the descriptor."""
        index = sequence % SLOTS
        slot, operation, count = self.slots[index], batch.operation, len(share)
        inputs, input_pitch, outputs, output_pitch = placement
        if operation == COMPRESS:
            start, step = share.start, share.step  # type: ignore[attr-defined] # ranges, there
            size = 0 if input_pitch else self._stage_pages(slot, index, batch, share)
            inputs += start * input_pitch
            input_pitch *= step
            outputs += start * output_pitch
            output_pitch *= step
        else:
            size = self._stage_sources(slot, batch, share)
            if output_pitch:
                slot.rows[:count] = array("I", share)
        seal_descriptor(
            slot.descriptor,
            sequence,
            operation,
            count,
            min(batch.capacity, self._most_bytes),
            size,
            inputs,
            outputs,
            input_pitch,
            output_pitch,
        )

    def _stage_pages(self, slot: SlotViews, index: int, batch: Batch, share: Sequence[int]) -> int:
        """Copy a share's pages into its slot; how many bytes they have."""
        count = len(share)
        matrix = batch.matrix(share) if count > _FEW else None  # type: ignore[attr-defined]
        if matrix is not None:
            self._page_rows[index][:count] = matrix
        else:
            for page, source in zip(slot.pages, batch.inputs(share), strict=False):
                page[:] = source
        return count * self.layout.page_size

    def _stage_sources(self, slot: SlotViews, batch: Batch, share: Sequence[int]) -> int:
        """Copy a share's compressed sources into its slot, packed; how many bytes they have."""
        sources = batch.inputs(share)
        lengths = array("I", map(len, sources))
        slot.lengths[: len(lengths)] = lengths
        packed = b"".join(sources)
        slot.inputs[: len(packed)] = packed
        return len(packed)
