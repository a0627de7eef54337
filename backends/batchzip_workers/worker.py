"""The worker's end of a ring: a process that takes descriptors until it is told to stop.

    look at POSTED ─▶ STARTED ─▶ copy the descriptor, check it ─▶ run the codec ─▶ results ─▶ DONE
         ▲  nothing there: look for SPIN_S, then ASLEEP = 1, look again, sleep on the bell     │
         └─────────────────────────────────────────────────────────────────────────────────────┘

A worker dies with its owner: PR_SET_PDEATHSIG delivers SIGKILL when the thread that started it ends,
which is the supervisor's and lives as long as the backend; getppid is looked at afterwards, for an
owner that died before. SIGINT is the owner's matter and ignored.

It imports no NumPy: a worker is back after a death in the time that Python takes to start.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import select
import signal
import sys
import time
import traceback
from typing import TYPE_CHECKING

from batchzip.codecs.context import COMPRESS, DECOMPRESS, Context
from batchzip.segment import Segment
from batchzip_workers.layout import (
    ASLEEP,
    BUSY_NS,
    BYTES_IN,
    BYTES_OUT,
    CONTROL_BYTES,
    DONE,
    OWNER_CPU,
    PAGES,
    POSTED,
    READY,
    SHARES,
    SLEEPS,
    SLOTS,
    STARTED,
    STARTED_NS,
    STOP,
    WAITING,
    Layout,
    SlotViews,
    make_fence,
    open_descriptor,
)
from batchzip_workers.placement import step_aside

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batchzip.buffers import Flat
    from batchzip.codecs import Codec
    from batchzip_workers.failpoints import Failpoint

MAX_SPIN_S = 1e-3
"""Most seconds a worker looks for work before it sleeps. A wake-up costs both sides 50 µs and more,
so looking pays where the next batch comes within the time a store takes to put one away."""

MIN_SPIN_S = 50e-6
"""Seconds it looks after waits that were longer than that: what looking in vain may cost then."""

BAD_DESCRIPTOR_EXIT = 65
"""Exit status (EX_DATAERR) after a descriptor that fails its check; the owner starts afresh."""

FAILED_EXIT = 70
"""Exit status (EX_SOFTWARE) after an exception in the loop, which is no page's."""

_PR_SET_PDEATHSIG = 1


def main(
    owner_pid: int,
    number: int,
    codec: Codec,
    arena_fd: int,
    failpoint: Failpoint | None,
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
    worker = Worker(number, segment, context, layout, arena_fd, bell_fd, slot_bell_fds)
    try:
        worker.loop(None if failpoint is None else failpoint.hit)
    except Exception as error:  # noqa: BLE001 - nobody would catch it; whoever comes next is fine
        _tell_end(error)
        sys.exit(FAILED_EXIT)


def _tell_end(error: Exception) -> None:
    """Say in one line of stderr why this worker ends: it is replaced, and its share run again.

    A traceback each, of processes that the user never started, would bury his own messages.
    """
    last = traceback.extract_tb(error.__traceback__)[-1]
    line = f"batchzip: worker {os.getpid()} ended at {last.filename}:{last.lineno}: {type(error).__name__}: {error}"
    with contextlib.suppress(OSError):  # stderr may be closed
        os.write(2, " ".join(line.split()).encode(errors="replace") + b"\n")  # whole, among others


class Worker:
    """Takes descriptors from one ring and leaves results in it."""

    def __init__(
        self,
        number: int,
        segment: Segment,
        context: Context,
        layout: Layout,
        arena_fd: int,
        bell_fd: int,
        slot_bells: Sequence[int],
    ) -> None:
        self._number = number
        self._segment = segment
        self._context = context
        self._layout = layout
        self._arena_fd = arena_fd
        self._arena = memoryview(b"")
        self._bell_fd = bell_fd
        self._slot_bells = slot_bells
        self._control = segment.view[:CONTROL_BYTES].cast("Q")
        self._slots = [SlotViews(segment.view, layout, slot) for slot in range(SLOTS)]
        self._fence = make_fence()
        self._spin_s = MAX_SPIN_S

    def loop(self, hit: Callable[[str], None] | None = None) -> None:  # noqa: C901 - one loop, step by step
        """Take shares in the order they were posted until STOP; `hit` is a test's failpoint."""
        control, clock = self._control, time.monotonic_ns
        self._hit = hit
        done = 0
        control[READY] = 1
        if hit:
            hit("ready")
        while True:
            if control[POSTED] == done and not self._await_post(done):
                return
            if control[OWNER_CPU]:
                step_aside(control[OWNER_CPU] - 1, self._number)
            if hit:
                hit("posted")
            started = control[STARTED_NS] = clock()
            control[STARTED] = done + 1
            if hit:
                hit("started")
            self._run_share(done)
            slot = done % SLOTS
            done += 1
            control[SHARES] = done
            control[BUSY_NS] += clock() - started
            if hit:
                hit("counted")
            control[DONE] = done
            if hit:
                hit("done")
            self._fence()
            if control[WAITING[slot]]:
                os.eventfd_write(self._slot_bells[slot], 1)
                if hit:
                    hit("rung")

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
        control[SLEEPS] += 1
        while True:
            control[ASLEEP] = 1
            if self._hit:
                self._hit("asleep")
            self._fence()
            if control[POSTED] == done and not control[STOP]:
                poll.poll()
                os.eventfd_read(self._bell_fd)
            control[ASLEEP] = 0
            if self._hit:
                self._hit("awake")
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
