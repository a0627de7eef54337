"""The owner's end of a ring: post a share, wait for it, collect its outputs.

`layout.py` has the picture, the writers and the invariants of the shared memory. What is here is
private to the owner: which slots are in use, and the lock that makes several threads one producer.

    post(share) ─▶ Posted ─▶ wait(posted) ─▶ collect(posted): lengths and errors, slot free again;
                                             outputs copied out if they are not in place

Pages of a batch that lies in the engine's arena are not staged: the descriptor says where they are,
and where outputs go. Rejected: workers that read the owner's private memory (process_vm_readv). At 1.3
to 1.5 µs a page it costs three times what staging does, and a system may forbid it.

Lock order: a ring's lock is the innermost; it is held while a share is staged, and nothing is called
under it that takes another. It is a lock between this process's threads only, and taken by `with`
only: behind a call of acquire() an interrupt may come before anything that would release it.

Each slot has a bell (eventfd) of its own, so that exactly one thread waits on each: with one bell a
ring, a thread could eat the wake-up of another.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from batchzip.descriptors import above_standard
from batchzip.segment import Segment
from batchzip_workers.layout import (
    ASLEEP,
    BYTES_OUT,
    CONTROL_BYTES,
    DONE,
    OWNER_CPU,
    POSTED,
    READY,
    SHARES,
    SLOTS,
    STARTED,
    STARTED_NS,
    STOP,
    WAITING,
    Layout,
    make_fence,
)
from batchzip_workers.placement import current_cpu
from batchzip_workers.posted import Posted
from batchzip_workers.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchzip.batch.descriptor import Batch, Placement

SPIN_S = 100e-6
"""Seconds to look for a share's completion before sleeping: a wake-up costs about as much."""

_BACKLOG = 2
"""Shares, the one under way included, that a worker is given ahead."""


_ABANDONED = object()
"""Holds a slot whose share was given up, until the worker is done with it."""


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
        self._stage = Stage(view, layout)
        self._slots = self._stage.slots
        self._results = [np.frombuffer(slot.results, np.int32) for slot in self._slots]
        with above_standard():
            self._bell, *self._slot_bells = (
                os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(1 + SLOTS)
            )
        self._fence = make_fence()
        self._lock = threading.Lock()
        self._posted = 0
        self._holders: list[object] = [None] * SLOTS
        """The Posted in each slot, which alone may free it; None where it is free."""
        self.given_up: tuple[int, float] | None = None
        """The share that was abandoned last, and when."""
        self._closing = False
        self._slept = True
        self.dead = False
        self._sentinel = -1

    def set_sentinel(self, fd: int) -> None:
        """Watch a descriptor that becomes readable when the worker dies; it is duplicated."""
        with above_standard():
            self._sentinel = os.dup(fd)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What the worker inherits."""
        return self._segment.fd, self._bell, *self._slot_bells

    def mark_dead(self) -> None:
        """Note that the worker is dead: what it finished before stands in DONE."""
        self.dead = True

    @property
    def ready(self) -> bool:
        """Whether the worker takes descriptors."""
        return not self.dead and self.was_ready

    @property
    def was_ready(self) -> bool:
        """Whether the worker ever took descriptors, dead or not."""
        return bool(self._control[READY])

    def figures(self) -> list[int]:
        """Read what the worker counted so far: words from SHARES on."""
        return self._control[SHARES : BYTES_OUT + 2].tolist()

    def under_way_s(self, posted: Posted) -> float:
        """Seconds the worker has been at this share; 0 where it is not."""
        control = self._control
        if not control[DONE] <= posted.sequence < control[STARTED]:
            return 0.0
        return max(0, time.monotonic_ns() - control[STARTED_NS]) * 1e-9

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

    def post(
        self,
        batch: Batch,
        share: Sequence[int],
        placement: Placement,
        under_way: list[Posted],
    ) -> bool:
        """Hand a share to the worker, staged where need be; False if that is not possible now.

        A share has at most `share_pages` pages; a descriptor lets no source be longer than two. What
        was posted is in `under_way` before the worker can see it, so that an interrupt in between
        leaves nothing under way that nobody knows of.
        """
        if self._lock.locked():
            return False  # another thread is posting here; the caller has work of its own
        with self._lock:
            sequence = self._posted
            if self.dead or not self._is_free(sequence):
                return False
            self._stage.fill(sequence, batch, share, placement)
            posted = Posted(self, sequence, batch, share, placement[3] > 0)
            under_way.append(posted)
            self._holders[sequence % SLOTS] = posted
            posted.woke = self._announce(sequence + 1)
            return True

    def _announce(self, posted: int) -> bool:
        """Store POSTED and see that the worker looks; whether it slept."""
        control = self._control
        # Whoever was asleep may have been woken on the other's CPU.
        control[OWNER_CPU] = current_cpu() + 1 if self._slept or control[ASLEEP] else 0
        self._slept = False
        self._posted = posted
        control[POSTED] = posted
        self._fence()
        if not control[ASLEEP]:
            return False
        os.eventfd_write(self._bell, 1)
        # If it woke on this CPU it can step aside only once it runs.
        os.sched_yield()
        return True

    def wake(self) -> None:
        """Wake the worker, if an interrupt came between announcing a share and that.

        For whoever holds a slot: the bell is there as long.
        """
        if self._control[ASLEEP]:
            os.eventfd_write(self._bell, 1)

    def _is_free(self, sequence: int) -> bool:
        """Whether the slot of `sequence` can be written; called under the lock."""
        holder = self._holders[sequence % SLOTS]
        # Nobody collects an abandoned share, but until it is done the worker writes to its slot.
        return holder is None or (holder is _ABANDONED and self._control[DONE] > sequence - SLOTS)

    def is_done(self, posted: Posted) -> bool:
        """Whether the share's results are there."""
        return self._control[DONE] > posted.sequence

    def was_announced(self, posted: Posted) -> bool:
        """Whether the worker was given the share and its slot is still held for it.

        Not if an interrupt came before that, or between its end and the caller's note of it.
        """
        return self._holds(posted) and self._control[POSTED] > posted.sequence

    def _holds(self, posted: Posted) -> bool:
        return self._holders[posted.sequence % SLOTS] is posted

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
        """Take what a share that is done came to, outputs too if they are here; free its slot."""
        index = posted.sequence % SLOTS
        slot, share = self._slots[index], posted.share
        results = self._results[index][: len(share)]
        failed, total = slot.outcome
        if posted.placed:
            posted.batch.accept_placed(share, results, failed)
        else:
            posted.batch.accept_packed(share, slot.outputs, results, failed, total)
        self.drop(posted)

    @property
    def done(self) -> int:
        """Shares the worker ever finished: it hangs if this does not grow."""
        return self._control[DONE]

    def drop(self, posted: Posted) -> None:
        """Free the slot of a share that is done, was never announced, or whose worker is dead.

        Nothing happens the second time: the slot may be another's by then.
        """
        self._let_go(posted, None)

    def abandon(self, posted: Posted) -> None:
        """Give up a share that may still be under way: its slot is free once it is done."""
        self._let_go(posted, _ABANDONED)

    def _let_go(self, posted: Posted, holder: object) -> None:
        with self._lock:
            if self._holds(posted):
                self._holders[posted.sequence % SLOTS] = holder
                if holder is _ABANDONED:
                    self.given_up = posted.sequence, time.monotonic()
            self._close_if_unused()

    def is_neglected(self, patience_s: float) -> bool:
        """Whether a share given up that long ago is still not done: nobody waits for it."""
        if self.given_up is None:
            return False
        sequence, since = self.given_up
        return self._control[DONE] <= sequence and time.monotonic() - since >= patience_s

    def stop_worker(self) -> None:
        """Tell the worker to exit once it has done what is posted."""
        self._control[STOP] = 1
        os.eventfd_write(self._bell, 1)

    @property
    def is_unused(self) -> bool:
        """Whether no share is held by anybody, nor by the worker one that was given up."""
        first = max(0, self._posted - SLOTS)
        return all(self._is_free(sequence + SLOTS) for sequence in range(first, first + SLOTS))

    def close(self) -> None:
        """Release memory and descriptors, now or when the last share in flight is dropped."""
        with self._lock:
            self.dead = True
            self._closing = True
            self._close_if_unused()

    def _close_if_unused(self) -> None:
        if not self._closing or any(isinstance(holder, Posted) for holder in self._holders):
            return
        fds = [fd for fd in (self._bell, self._sentinel, *self._slot_bells) if fd >= 0]
        closing = map(os.close, fds)
        # From here on no interrupt can come before all are closed, none is closed twice.
        self._bell = self._sentinel = -1
        self._slot_bells = []
        deque(closing, 0)
        # Views of the memory stay: another thread may be looking at a control word right now.
        self._segment.close()
