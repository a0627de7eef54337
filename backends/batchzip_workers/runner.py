"""Runner: does one share, from its descriptor to its results.

    slot: descriptor ─▶ checked ─▶ inputs: in the slot, or pages of the arena ─▶ codec
                                   outputs: to the slot, packed, or to their places in the arena

Nothing is believed that a descriptor says: it is copied once, the copy is checked, and only the copy is
used. One that is damaged, or speaks of memory that is not there, ends the process: the owner starts
afresh with a new ring, and runs the share again.
"""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

from batchzip.codecs.context import COMPRESS, DECOMPRESS
from batchzip_workers.layout import (
    BYTES_IN,
    BYTES_OUT,
    CONTROL_BYTES,
    PAGES,
    SLOTS,
    SlotViews,
    open_descriptor,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batchzip.buffers import Flat
    from batchzip.codecs.context import Context
    from batchzip_workers.layout import Layout

BAD_DESCRIPTOR_EXIT = 65
"""Exit status (EX_DATAERR) after a descriptor that fails its check; the owner starts afresh."""


class Runner:
    """Does shares of one ring, `segment`, with one codec context."""

    def __init__(
        self, segment: memoryview, context: Context, layout: Layout, arena_fd: int
    ) -> None:
        self._context = context
        self._layout = layout
        self._control = segment[:CONTROL_BYTES].cast("Q")
        self._slots = [SlotViews(segment, layout, slot) for slot in range(SLOTS)]
        self._arena_fd = arena_fd
        self._arena = memoryview(b"")

    def run(self, sequence: int, hit: Callable[[str], None] | None) -> None:
        """Do the share of that sequence number; `hit` is a test's failpoint."""
        self._hit = hit
        slot = self._slots[sequence % SLOTS]
        # Copied once, checked, then used: what the owner writes later changes nothing here.
        fields = open_descriptor(slot.descriptor)
        if fields is None:
            os._exit(BAD_DESCRIPTOR_EXIT)
        posted, operation, count, capacity, size, *placement = fields
        layout = self._layout
        if (
            posted != sequence
            or operation not in (COMPRESS, DECOMPRESS)
            or not 1 <= count <= layout.share_pages
            or size > layout.input_room
        ):
            os._exit(BAD_DESCRIPTOR_EXIT)
        if self._hit:
            self._hit("opened")
        before = self._context.tallies[operation].bytes_out
        if operation == COMPRESS:
            failed = self._compress(slot, count, min(capacity, 2 * layout.page_size), *placement)
        else:
            failed = self._decompress(slot, count, size, *placement)
        control, tally = self._control, self._context.tallies[operation]
        slot.outcome[0] = failed
        slot.outcome[1] = tally.bytes_out - before
        control[PAGES + operation] = tally.pages
        control[BYTES_IN + operation] = tally.bytes_in
        control[BYTES_OUT + operation] = tally.bytes_out

    def _compress(
        self,
        slot: SlotViews,
        count: int,
        capacity: int,
        inputs: int,
        outputs: int,
        input_pitch: int,
        output_pitch: int,
    ) -> int:
        pages: Sequence[Flat] = slot.pages[:count]
        dst = slot.outputs
        if input_pitch:
            size = self._layout.page_size
            memory = self._arena_to(inputs + (count - 1) * input_pitch + size)
            pages = self._snapshot(memory, inputs, input_pitch, count)
        if output_pitch:
            dst = self._arena_to(outputs + (count - 1) * output_pitch + capacity)[outputs:]
        results = slot.results
        errors = self._context.compress_into(
            pages, dst, output_pitch, results, range(count), capacity
        )
        if self._hit:
            self._hit("coded")
        for position, code in errors.items():
            results[position] = code
        return len(errors)

    def _snapshot(self, memory: memoryview, at: int, pitch: int, count: int) -> Sequence[Flat]:
        """Copy pages that the owner may change; those next to each other at once (see Snapshot)."""
        size, snapshot = self._layout.page_size, self._context.snapshot
        if pitch != size or count > len(snapshot.pages):
            return [bytes(memory[at + i * pitch : at + i * pitch + size]) for i in range(count)]
        snapshot.memory[: count * size] = memory[at : at + count * size]
        return snapshot.pages[:count]

    def _decompress(
        self,
        slot: SlotViews,
        count: int,
        size: int,
        inputs: int,  # noqa: ARG002 - sources always lie in the slot
        outputs: int,
        input_pitch: int,  # noqa: ARG002
        output_pitch: int,
    ) -> int:
        sources, at = [], 0
        for length in slot.lengths[:count].tolist():
            sources.append(slot.inputs[at : at + length])
            at += length
        if at > size:
            os._exit(BAD_DESCRIPTOR_EXIT)
        page_size = self._layout.page_size
        dst, pitch = slot.outputs, page_size
        rows: Sequence[int] = range(count)
        if output_pitch:
            rows, pitch = slot.rows[:count].tolist(), output_pitch
            dst = self._arena_to(outputs + max(rows) * pitch + page_size)[outputs:]
        errors = self._context.decompress_into(sources, dst, pitch, rows)
        if self._hit:
            self._hit("coded")
        if errors:
            for position, row in enumerate(rows):
                slot.results[position] = errors.get(row, 0)
        return len(errors)

    def _arena_to(self, end: int) -> memoryview:
        """Map the arena, up to `end` at least."""
        if len(self._arena) < end:
            size = os.fstat(self._arena_fd).st_size
            if size < end:
                os._exit(BAD_DESCRIPTOR_EXIT)
            self._arena = memoryview(mmap.mmap(self._arena_fd, size))
        return self._arena
