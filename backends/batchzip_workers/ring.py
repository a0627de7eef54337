"""The owner's end of a ring: post a share, wait for it, collect its outputs.

`layout.py` has the picture, the writers and the invariants of the shared memory. What is here is
private to the owner: which slots are in use, and the lock that makes several threads one producer.

    post(share) ─▶ Posted ─▶ wait(posted) ─▶ collect(posted): outputs copied out, slot free again

Lock order: a ring's lock is the innermost; it is held while a share is staged, and nothing is called
under it that takes another. It is a lock between this process's threads only.

Each slot has a bell (eventfd) of its own, so that exactly one thread waits on each: with one bell a
ring, a thread could eat the wake-up of another.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from dataclasses import dataclass
from multiprocessing.context import get_spawning_popen
from typing import TYPE_CHECKING

import numpy as np

from batchzip.batch import CompressBatch
from batchzip.codecs.context import COMPRESS
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
    seal_descriptor,
)
from batchzip_workers.placement import current_cpu

if TYPE_CHECKING:
    from batchzip.batch import Batch

SPIN_S = 100e-6
"""Seconds to look for a share's completion before sleeping: a wake-up costs about as much."""

_BACKLOG = 2
"""Shares, the one under way included, that a worker is given ahead."""

_FEW = 8
"""Pages up to which a copy each is cheaper than one strided copy by NumPy."""

_FREE, _IN_USE, _ABANDONED = range(3)


class PassedFd:
    """A descriptor that the process being started inherits; unpickled there as its number."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        popen = get_spawning_popen()
        if popen is None:
            raise TypeError("a descriptor is passed on only to a process being started")
        return int, (popen.duplicate_for_child(self.fd),)


@dataclass(slots=True, eq=False)
class Posted:
    """A share that a worker was given."""

    ring: Ring
    sequence: int
    share: range
    batch: Batch
    woke: bool
    """Whether the worker slept and had to be woken."""


class Ring:
    """One worker's ring, seen from the owner.

    Raises OSError(ENOSPC) when there is no memory for it. Thread-safe.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._segment = Segment(layout.segment_bytes, name="batchzip-ring", reserve=True)
        self._segment.populate()
        view = self._segment.view
        self._control = view[:CONTROL_BYTES].cast("Q")
        self._slots = [SlotViews(view, layout, slot) for slot in range(SLOTS)]
        self._page_rows = [
            np.frombuffer(slot.inputs, np.uint8).reshape(-1, layout.page_size)
            for slot in self._slots
        ]
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._slot_bells = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(SLOTS)]
        self._fence = make_fence()
        self._lock = threading.Lock()
        self._posted = 0
        self._in_use = [_FREE] * SLOTS
        self._closing = False
        self._slept = True
        self.dead = False
        self._sentinel = -1

    def set_sentinel(self, fd: int) -> None:
        """Watch a descriptor that becomes readable when the worker dies; it is duplicated."""
        self._sentinel = os.dup(fd)

    def worker_arguments(self, owner_pid: int, number: int, codec: object) -> tuple[object, ...]:
        """Arguments of the worker's `main`; descriptors are passed on only while it is started."""
        return (
            owner_pid,
            number,
            codec,
            self.layout,
            PassedFd(self._segment.fd),
            PassedFd(self._bell),
            [PassedFd(bell) for bell in self._slot_bells],
        )

    def stop_passing(self) -> None:
        """Keep the descriptors from processes that others start: inheriting is for ours only."""
        for fd in (self._segment.fd, self._bell, *self._slot_bells):
            os.set_inheritable(fd, False)

    @property
    def ready(self) -> bool:
        """Whether the worker takes descriptors."""
        return not self.dead and self.was_ready

    @property
    def was_ready(self) -> bool:
        """Whether the worker ever took descriptors, dead or not."""
        return bool(self._control[READY])

    @property
    def asleep(self) -> bool:
        """Whether the worker needs to be woken, as far as can be seen."""
        return bool(self._control[ASLEEP])

    def wants_work(self) -> bool:
        """Whether the worker is idle or about to be; a hint, as other threads post too.

        One share under way and one behind it keep a worker busy. More would only be further from
        whoever has nothing left to do when the batch nears its end.
        """
        control = self._control
        return not self.dead and self._posted - control[DONE] < _BACKLOG and bool(control[READY])

    def post(self, batch: Batch, share: range) -> Posted | None:
        """Stage a share and hand it to the worker, or return None if that is not possible now.

        A share has at most `share_pages` pages; a descriptor lets no source be longer than two.
        """
        if not self._lock.acquire(blocking=False):
            return None  # another thread is posting here; the caller has work of its own
        try:
            sequence = self._posted
            index = sequence % SLOTS
            if self.dead or not self._is_free(sequence):
                return None
            slot = self._slots[index]
            size = self._stage(slot, index, batch, share)
            count = len(share)
            capacity = min(batch.capacity, 2 * self.layout.page_size)
            sealed = seal_descriptor(sequence, batch.operation, count, capacity, size)
            slot.descriptor[: len(sealed)] = sealed
            self._in_use[index] = _IN_USE
            # Whoever was asleep may have been woken on the other's CPU.
            woke = self._slept or self.asleep
            self._control[OWNER_CPU] = current_cpu() + 1 if woke else 0
            self._slept = False
            self._posted = sequence + 1
            self._control[POSTED] = sequence + 1
            self._fence()
            asleep = self.asleep
            if asleep:
                os.eventfd_write(self._bell, 1)
                # If it woke on this CPU it can step aside only once it runs.
                os.sched_yield()
            return Posted(self, sequence, share, batch, asleep)
        finally:
            self._lock.release()

    def _is_free(self, sequence: int) -> bool:
        """Whether the slot of `sequence` can be written; called under the lock."""
        state = self._in_use[sequence % SLOTS]
        # Nobody collects an abandoned share, but until it is done the worker writes to its slot.
        return state == _FREE or (state == _ABANDONED and self._control[DONE] > sequence - SLOTS)

    def _stage(self, slot: SlotViews, index: int, batch: Batch, share: range) -> int:
        """Copy a share's inputs into its slot; how many bytes they have."""
        if isinstance(batch, CompressBatch):
            matrix = batch.matrix(share) if len(share) > _FEW else None
            if matrix is not None:
                self._page_rows[index][: len(share)] = matrix
            else:
                for page, source in zip(slot.pages[: len(share)], batch.inputs(share), strict=True):
                    page[:] = source
            return len(share) * self.layout.page_size
        inputs, lengths, at = slot.inputs, slot.lengths, 0
        for position, source in enumerate(batch.inputs(share)):
            length = len(source)
            inputs[at : at + length] = source
            lengths[position] = length
            at += length
        return at

    def is_done(self, posted: Posted) -> bool:
        """Whether the share's results are there."""
        return self._control[DONE] > posted.sequence

    def was_started(self, posted: Posted) -> bool:
        """Whether the worker ever began the share: of a dead worker, whether it died on it."""
        return self._control[STARTED] > posted.sequence

    def wait(self, posted: Posted, timeout_s: float) -> bool:
        """Wait until the share is done; False if the worker is dead or `timeout_s` is over."""
        control, sequence = self._control, posted.sequence
        clock = time.perf_counter
        start = clock()
        while clock() - start < SPIN_S:
            for _ in range(20):
                if control[DONE] > sequence:
                    return True
            os.sched_yield()
        return self._sleep(posted, start + timeout_s)

    def _sleep(self, posted: Posted, deadline: float) -> bool:
        slot = posted.sequence % SLOTS
        control, bell = self._control, self._slot_bells[slot]
        poll = select.poll()
        poll.register(bell, select.POLLIN)
        poll.register(self._sentinel, select.POLLIN)
        control[WAITING[slot]] = 1
        self._slept = True
        try:
            self._fence()
            while control[DONE] <= posted.sequence and not self.dead:
                left = deadline - time.perf_counter()
                if left <= 0:
                    break
                for fd, _ in poll.poll(left * 1000):
                    if fd != bell:
                        self.dead = True  # whatever it finished before stands in DONE
                    else:
                        with contextlib.suppress(BlockingIOError):
                            os.eventfd_read(bell)
        finally:
            control[WAITING[slot]] = 0
        return control[DONE] > posted.sequence

    def collect(self, posted: Posted) -> None:
        """Copy the outputs of a share that is done to its batch, and free its slot."""
        slot = self._slots[posted.sequence % SLOTS]
        batch, share = posted.batch, posted.share
        # Compressed outputs are packed; a page lies at its own place, with gaps where one failed.
        hop = 0 if batch.operation == COMPRESS else self.layout.page_size
        batch.accept_packed(share, slot.outputs, hop, slot.results[: len(share)].tolist())
        self.drop(posted)

    def drop(self, posted: Posted) -> None:
        """Free the slot of a share that is done, or whose worker is dead."""
        with self._lock:
            self._in_use[posted.sequence % SLOTS] = _FREE
            self._close_if_unused()

    def abandon(self, posted: Posted) -> None:
        """Give up a share that may still be under way: its slot is free once it is done."""
        with self._lock:
            self._in_use[posted.sequence % SLOTS] = _ABANDONED
            self._close_if_unused()

    def stop_worker(self) -> None:
        """Tell the worker to exit once it has done what is posted."""
        self._control[STOP] = 1
        os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        """Release memory and descriptors, now or when the last share in flight is dropped."""
        with self._lock:
            self.dead = True
            self._closing = True
            self._close_if_unused()

    def _close_if_unused(self) -> None:
        if not self._closing or _IN_USE in self._in_use or self._bell < 0:
            return
        for fd in (self._bell, self._sentinel, *self._slot_bells):
            if fd >= 0:
                os.close(fd)
        self._bell = -1
        # Views of the memory stay: another thread may be looking at a control word right now.
        self._segment.close()
