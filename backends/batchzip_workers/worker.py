"""The worker's end of a ring: a process that takes descriptors until it is told to stop.

    look at POSTED ─▶ copy the descriptor, check it ─▶ STARTED ─▶ run the codec ─▶ results ─▶ DONE
         ▲  nothing there: look for SPIN_S, then ASLEEP = 1, look again, sleep on the bell     │
         └─────────────────────────────────────────────────────────────────────────────────────┘

A worker dies with its owner: PR_SET_PDEATHSIG delivers SIGKILL when the thread that started it ends,
which is the supervisor's and lives as long as the backend; getppid is looked at afterwards, for an
owner that died before. SIGINT is the owner's matter and ignored.

It imports no NumPy: a worker is back after a death in the time that Python takes to start.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import time
from typing import TYPE_CHECKING

from batchzip.codecs.context import COMPRESS, DECOMPRESS, Context
from batchzip.segment import Segment
from batchzip_workers.layout import (
    ASLEEP,
    CONTROL_BYTES,
    DONE,
    OWNER_CPU,
    POSTED,
    READY,
    SLOTS,
    STARTED,
    STOP,
    WAITING,
    Layout,
    SlotViews,
    make_fence,
    open_descriptor,
)
from batchzip_workers.placement import step_aside

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchzip.codecs import Codec

MAX_SPIN_S = 1e-3
"""Most seconds a worker looks for work before it sleeps. A wake-up costs both sides 50 µs and more,
so looking pays where the next batch comes within the time a store takes to put one away."""

MIN_SPIN_S = 50e-6
"""Seconds it looks after waits that were longer than that: what looking in vain may cost then."""

BAD_DESCRIPTOR_EXIT = 65
"""Exit status (EX_DATAERR) after a descriptor that fails its check; the owner starts afresh."""

_PR_SET_PDEATHSIG = 1


def main(
    owner_pid: int,
    number: int,
    codec: Codec,
    layout: Layout,
    segment_fd: int,
    bell_fd: int,
    slot_bell_fds: Sequence[int],
) -> None:
    """Run a worker process; returns when the owner says STOP."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != owner_pid:
        return
    segment = Segment.attach(segment_fd)
    segment.populate()
    context = Context(codec, layout.page_size)
    Worker(number, segment, context, layout, bell_fd, slot_bell_fds).loop()


class Worker:
    """Takes descriptors from one ring and leaves results in it."""

    def __init__(
        self,
        number: int,
        segment: Segment,
        context: Context,
        layout: Layout,
        bell_fd: int,
        slot_bells: Sequence[int],
    ) -> None:
        self._number = number
        self._segment = segment
        self._context = context
        self._layout = layout
        self._bell_fd = bell_fd
        self._slot_bells = slot_bells
        self._control = segment.view[:CONTROL_BYTES].cast("Q")
        self._slots = [SlotViews(segment.view, layout, slot) for slot in range(SLOTS)]
        self._fence = make_fence()
        self._spin_s = MAX_SPIN_S

    def loop(self) -> None:
        """Take shares in the order they were posted until STOP."""
        control = self._control
        done = 0
        control[READY] = 1
        while True:
            if control[POSTED] == done and not self._await_post(done):
                return
            if control[OWNER_CPU]:
                step_aside(control[OWNER_CPU] - 1, self._number)
            control[STARTED] = done + 1
            self._run_share(done)
            slot = done % SLOTS
            done += 1
            control[DONE] = done
            self._fence()
            if control[WAITING[slot]]:
                os.eventfd_write(self._slot_bells[slot], 1)

    def _await_post(self, done: int) -> bool:
        """Wait for a post: look for a while, then sleep. False: STOP came instead."""
        control = self._control
        clock = time.perf_counter
        start = clock()
        while clock() - start < self._spin_s:
            for _ in range(20):
                if control[POSTED] != done:
                    return True
            os.sched_yield()
        posted = self._sleep(done)
        # Work that came soon would have been found by looking longer; nothing else tells.
        self._spin_s = MAX_SPIN_S if clock() - start < MAX_SPIN_S else MIN_SPIN_S
        return posted

    def _sleep(self, done: int) -> bool:
        """Sleep until something is posted, or STOP came: False."""
        control = self._control
        poll = select.poll()
        poll.register(self._bell_fd, select.POLLIN)
        while True:
            control[ASLEEP] = 1
            self._fence()
            if control[POSTED] == done and not control[STOP]:
                poll.poll()
                os.eventfd_read(self._bell_fd)
            control[ASLEEP] = 0
            if control[POSTED] != done:
                return True
            if control[STOP]:
                return False

    def _run_share(self, sequence: int) -> None:
        slot = self._slots[sequence % SLOTS]
        # Copied once, checked, then used: what the owner writes later changes nothing here.
        fields = open_descriptor(slot.descriptor)
        if fields is None:
            os._exit(BAD_DESCRIPTOR_EXIT)
        posted, operation, count, capacity, size = fields
        layout = self._layout
        if (
            posted != sequence
            or operation not in (COMPRESS, DECOMPRESS)
            or not 1 <= count <= layout.share_pages
            or size > layout.input_room
        ):
            os._exit(BAD_DESCRIPTOR_EXIT)
        context, share = self._context, range(count)
        if operation == COMPRESS:
            room = min(capacity, 2 * layout.page_size)
            errors = context.compress_into(
                slot.pages[:count], slot.outputs, 0, slot.results, share, room
            )
        else:
            inputs, at = [], 0
            for length in slot.lengths[:count].tolist():
                inputs.append(slot.inputs[at : at + length])
                at += length
            if at > size:
                os._exit(BAD_DESCRIPTOR_EXIT)
            errors = context.decompress_into(
                inputs, slot.outputs, layout.page_size, slot.results, share
            )
        for position, code in errors.items():
            slot.results[position] = code
