"""The worker's end of a ring: a process that takes descriptors until it is told to stop.

    look at POSTED ─▶ STARTED ─▶ Runner: descriptor, codec, results ─▶ DONE ─▶ the slot's bell
         ▲  nothing there: look for SPIN_S, then ASLEEP = 1, look again, sleep on the bell     │
         └─────────────────────────────────────────────────────────────────────────────────────┘

It imports no NumPy: see startup.py.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import sys
import time
from typing import TYPE_CHECKING

from batchzip.codecs.context import Context
from batchzip.segment import Segment
from batchzip_workers.layout import (
    ASLEEP,
    BUSY_NS,
    CONTROL_BYTES,
    DONE,
    OWNER_CPU,
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
    make_fence,
)
from batchzip_workers.placement import step_aside
from batchzip_workers.runner import Runner
from batchzip_workers.startup import FAILED_EXIT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAX_SPIN_S = 1e-3
"""Most seconds a worker looks for work before it sleeps. A wake-up costs both sides 50 µs and more,
so looking pays where the next batch comes within the time a store takes to put one away."""

MIN_SPIN_S = 50e-6
"""Seconds it looks after waits that were longer than that: what looking in vain may cost then."""


def main(
    number: int,
    codec: bytes,
    page_size: int,
    failpoint: str,
    arena_fd: int,
    segment_fd: int,
    bell_fd: int,
    *slot_bell_fds: int,
) -> None:
    """Take shares until the owner says STOP; `codec` is pickled."""
    segment = Segment.attach(segment_fd)
    segment.populate()
    layout = Layout.of(page_size)
    context = Context(pickle.loads(codec), page_size)
    worker = Worker(number, segment, context, layout, arena_fd, bell_fd, slot_bell_fds)
    try:
        worker.loop(_failpoint(failpoint))
    except Exception as error:  # noqa: BLE001 - nobody would catch it; whoever comes next is fine
        _tell_end(error)
        sys.exit(FAILED_EXIT)


def _failpoint(text: str) -> Callable[[str], None] | None:
    if not text:
        return None
    from batchzip_workers.failpoints import Failpoint  # noqa: PLC0415 - of tests only

    return Failpoint.parse(text).hit


def _tell_end(error: Exception) -> None:
    """Say in one line of stderr why this worker ends: it is replaced, and its share run again.

    A traceback each, of processes that the user never started, would bury his own messages.
    """
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    where = "" if last is None else f" at {last.tb_frame.f_code.co_filename}:{last.tb_lineno}"
    line = f"batchzip: worker {os.getpid()} ended{where}: {type(error).__name__}: {error}"
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
        self._runner = Runner(segment.view, context, layout, arena_fd)
        self._bell_fd = bell_fd
        self._slot_bells = slot_bells
        self._control = segment.view[:CONTROL_BYTES].cast("Q")
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
            self._runner.run(done, hit)
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
