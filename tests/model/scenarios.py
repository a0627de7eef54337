"""Scenarios for the explorer: small uses of the core's functions, and what must hold at the end."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import shlex
import subprocess
import sysconfig
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable


def load_scheduler() -> ctypes.CDLL:
    """Compile the scheduler and load it, so that the modules of the core find its hooks."""
    source = Path(__file__).with_name("scheduler.c")
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/scheduler.so"
        compiler = shlex.split(os.environ.get("CC") or "cc")
        flags = ["-shared", "-fPIC", "-pthread", "-O1", "-g", "-Wall", "-fvisibility=hidden"]
        include = f"-I{sysconfig.get_path('include')}"
        subprocess.run([*compiler, *flags, include, "-o", library, str(source)], check=True)
        return ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)


SCHEDULER = load_scheduler()

# Loaded after the scheduler.
from batchzip.batch.compress import CompressBatch  # noqa: E402
from batchzip.batch.decompress import DecompressBatch  # noqa: E402
from batchzip.codecs.lz4 import Lz4  # noqa: E402
from batchzip.core.coder import Coders  # noqa: E402
from batchzip.core.division import DONE, Divider, Job  # noqa: E402
from batchzip.core.lane import STEPS, ThreadLanes, serve  # noqa: E402
from batchzip.core.ring import Ring, ring_bytes  # noqa: E402

PAGE_SIZE = 512
CODEC = Lz4()
PAGES = np.random.default_rng(14).integers(0, 3, (8, PAGE_SIZE), np.uint8)
OUTPUTS = [Coders(CODEC, PAGE_SIZE).compress_page(page) for page in PAGES]
CANARY = 0xA5


class Bounds(NamedTuple):
    """How far a search goes."""

    preemptions: int = 2
    delays: int = 1
    kills: int = 0


# What scenarios are made of.


class Party:
    """A thread of Python that takes turns with the others."""

    def __init__(self, body: Callable[[], None]) -> None:
        self._number: int = SCHEDULER.reserve()
        self._error: BaseException | None = None
        self._body = body
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        SCHEDULER.enter(self._number)
        try:
            self._body()
        except BaseException as error:  # noqa: BLE001 - raised by join
            self._error = error
        SCHEDULER.leave_turns()

    def join(self) -> None:
        """Wait until the body has ended."""
        SCHEDULER.await_leaving(self._number)
        self._thread.join()
        if self._error is not None:
            raise self._error


class Engine:
    """What an engine would have: a divider, and batches of the sample pages."""

    def __init__(self, *, generous: bool = False, isolate: bool = False) -> None:
        self.coders = Coders(CODEC, PAGE_SIZE)
        self.divider = Divider(self.coders, isolate=isolate)
        self.divider.generous = generous

    def done_here(self) -> int:
        """Return the pages that callers did."""
        return self.coders.totals(0)["pages"]


def await_ready(*rings: Ring) -> None:
    """Let lanes come to where they take shares: they are awake then, whatever is chosen later."""
    while not all(ring.ready for ring in rings) and SCHEDULER.lend_turn():
        pass  # unless they are killed before


def thread_lanes(count: int) -> ThreadLanes:
    lanes = ThreadLanes(CODEC, PAGE_SIZE, count)
    await_ready(*lanes.rings)
    return lanes


def compressing(count: int, first: int = 0) -> CompressBatch:
    return CompressBatch(PAGES[first : first + count].copy())


def finish(job: Job) -> None:
    while job.run(1.0) != DONE:
        assert not job.untrusted(60.0), "a lane reported what cannot be"


def assert_compressed(batch: CompressBatch, first: int = 0) -> None:
    assert not batch.errors.any(), batch.errors
    for index in range(len(batch)):
        assert bytes(batch.output(index)) == OUTPUTS[first + index], index


def done_in(*rings: Ring) -> int:
    for ring in rings:
        ring.check_invariants()
    return sum(ring.figures()["compressed_pages"] for ring in rings)


class Worker:
    """A worker's loop, in a party, over memory that is shared with nobody."""

    def __init__(self, failpoint: tuple[str, int, str] | None = None) -> None:
        self._memory = mmap.mmap(-1, ring_bytes(PAGE_SIZE))
        self.ring = Ring(PAGE_SIZE, 0, self._memory)
        self._failpoint = failpoint
        self.party = Party(self._serve)
        await_ready(self.ring)

    def _serve(self) -> None:
        serve(self._memory, CODEC, PAGE_SIZE, 0, -1, self._failpoint)
        if self._failpoint is not None:
            self.ring.mark_gone()

    def stop(self) -> None:
        """End it once it has done what is posted."""
        self.ring.stop()
        self.party.join()


# Scenarios.


def divide() -> None:
    """Caller and lane take pages from both ends of a share: each page is done once."""
    engine, lanes, batch = Engine(), thread_lanes(1), compressing(4)
    finish(engine.divider.start(batch.pointers, lanes.rings))
    lanes.close()
    assert_compressed(batch)
    assert engine.done_here() + done_in(*lanes.rings) == len(batch)


def divide_among_two() -> None:
    """The same with two lanes."""
    engine, lanes, batch = Engine(), thread_lanes(2), compressing(3)
    finish(engine.divider.start(batch.pointers, lanes.rings))
    lanes.close()
    assert_compressed(batch)
    assert engine.done_here() + done_in(*lanes.rings) == len(batch)


def wake() -> None:
    """A lane that goes to sleep sees what is posted, and the caller sees that it is done."""
    engine, lanes = Engine(generous=True), thread_lanes(1)
    for first in (0, 2):
        batch = compressing(2, first)
        finish(engine.divider.start(batch.pointers, lanes.rings))
        assert_compressed(batch, first)
    lanes.close()


def reuse_slots() -> None:
    """More shares than slots: none is written over before its job has let go of it."""
    engine, lanes = Engine(generous=True), thread_lanes(1)
    batches = [compressing(2, first) for first in range(6)]
    jobs = [engine.divider.start(batch.pointers, lanes.rings) for batch in batches]
    for first in (0, 2, 1, 3, 4, 5):
        finish(jobs[first])
        assert_compressed(batches[first], first)
    lanes.close()
    assert engine.done_here() + done_in(*lanes.rings) == 12


def reuse_worker_slots() -> None:
    """The same where inputs and outputs are staged in the slots."""
    engine, worker = Engine(generous=True), Worker()
    batches = [compressing(2, first) for first in range(5)]
    jobs = [engine.divider.start(batch.pointers, (worker.ring,)) for batch in batches]
    for first in (4, 0, 2, 1, 3):  # the last may lie where the first was
        finish(jobs[first])
        assert_compressed(batches[first], first)
    worker.stop()
    assert engine.done_here() + done_in(worker.ring) == 10


def two_callers() -> None:
    """Two callers post to one ring: no share is lost, none is done twice."""
    engine, lanes = Engine(generous=True), thread_lanes(1)

    def call(first: int) -> None:
        batch = compressing(2, first)
        finish(engine.divider.start(batch.pointers, lanes.rings))
        assert_compressed(batch, first)

    other = Party(lambda: call(4))
    call(0)
    other.join()
    lanes.close()
    assert engine.done_here() + done_in(*lanes.rings) == 4


def two_callers_of_worker() -> None:
    """The same with a worker, whose reports are believed."""
    engine, worker = Engine(generous=True), Worker()

    def call(first: int) -> None:
        batch = compressing(2, first)
        finish(engine.divider.start(batch.pointers, (worker.ring,)))
        assert_compressed(batch, first)

    other = Party(lambda: call(4))
    call(0)
    other.join()
    assert not worker.ring.dead
    worker.stop()
    assert engine.done_here() + done_in(worker.ring) == 4


def stop() -> None:
    """A lane that is told to stop, asleep or not, first does what is posted."""
    engine, lanes, batch = Engine(generous=True), thread_lanes(1), compressing(2)
    job = engine.divider.start(batch.pointers, lanes.rings)
    lanes.close()
    finish(job)
    assert_compressed(batch)
    assert engine.done_here() + done_in(*lanes.rings) == 2


def stop_idle() -> None:
    """A lane that never had work ends."""
    lanes = ThreadLanes(CODEC, PAGE_SIZE, 2)
    lanes.close()


class Canary:
    """Fills all memory that a batch writes to, and drops the pages that it reads."""

    def __init__(self, batch: CompressBatch) -> None:
        outputs = np.frombuffer(batch._flat, np.uint8)
        self._memory = [batch.dlens.view(np.uint8), batch.errors.view(np.uint8), outputs]
        for part in self._memory:
            part.fill(CANARY)
        batch.pointers.drop_inputs()  # a lane that reads a page of it crashes

    def check(self) -> None:
        """Raise AssertionError if a lane has written to the batch."""
        for part in self._memory:
            assert (part == CANARY).all(), "a lane wrote to a batch that is over"


def withdraw() -> None:
    """What no lane has begun is taken back; after that no lane touches the batch's memory."""
    engine, lanes, batch = Engine(), thread_lanes(1), compressing(4)
    job = engine.divider.start(batch.pointers, lanes.rings)
    job.run(0.0, may_wait=False)
    assert job.withdraw(1.0, -errno.ECANCELED)
    for index in range(len(batch)):
        if batch.errors[index]:
            assert batch.errors[index] == -errno.ECANCELED
        else:
            assert bytes(batch.output(index)) == OUTPUTS[index]
    canary = Canary(batch)
    lanes.close()
    canary.check()


def drop() -> None:
    """A job that is dropped leaves no lane that touches the batch's memory."""
    engine, lanes, batch = Engine(), thread_lanes(1), compressing(4)
    job = engine.divider.start(batch.pointers, lanes.rings)
    del job
    canary = Canary(batch)
    lanes.close()
    canary.check()


def withdraw_from_worker() -> None:
    """What a worker does with a withdrawn share stays in its slot, and the next share is right."""
    engine, worker = Engine(generous=True), Worker()
    batch = compressing(2)
    job = engine.divider.start(batch.pointers, (worker.ring,))
    assert job.withdraw(1.0, -errno.ECANCELED)
    assert (batch.errors == -errno.ECANCELED).all()
    batch.pointers.drop_inputs()
    following = compressing(2, 4)
    finish(engine.divider.start(following.pointers, (worker.ring,)))
    assert_compressed(following, 4)
    worker.stop()


def withdraw_all_from_worker() -> None:
    """Slots whose jobs let go of them, while their shares are under way, are not used again."""
    engine, worker = Engine(generous=True), Worker()
    for first in range(4):
        job = engine.divider.start(compressing(2, first).pointers, (worker.ring,))
        assert job.withdraw(1.0, -errno.ECANCELED)
    following = compressing(2, 4)
    finish(engine.divider.start(following.pointers, (worker.ring,)))
    assert_compressed(following, 4)
    worker.stop()


def restore() -> None:
    """A worker restores what is staged; the caller takes back from the end."""
    engine, worker = Engine(), Worker()
    batch = DecompressBatch(OUTPUTS[:3], page_size=PAGE_SIZE)
    finish(engine.divider.start(batch.pointers, (worker.ring,)))
    worker.stop()
    assert not batch.errors.any()
    assert (batch.pages == PAGES[:3]).all()


def _killed_lane(*, isolate: bool) -> None:
    engine, lanes = Engine(isolate=isolate), thread_lanes(1)
    batch = compressing(3)
    rings = lanes.rings

    def supervise() -> None:
        if SCHEDULER.await_kill() >= 0:
            rings[0].mark_gone()

    supervisor = Party(supervise)
    others = None
    job = engine.divider.start(batch.pointers, rings)
    while job.run(0.01) != DONE:
        job.untrusted(60.0)  # as whoever watches a job does
        if job.only_lanes and rings[0].dead:
            others = others or thread_lanes(1)
            job.set_rings(others.rings)
    assert_compressed(batch)
    SCHEDULER.release()
    supervisor.join()
    if others:
        others.close()
    lanes.close()


def killed_lane() -> None:
    """A lane ends for good between any two of its steps: each of its pages is done."""
    _killed_lane(isolate=False)


def killed_lane_isolated() -> None:
    """The same where callers do no page."""
    _killed_lane(isolate=True)


def _failing_worker(step: str, passes: int) -> Callable[[], None]:
    def scenario() -> None:
        engine, worker, batch = Engine(), Worker((step, passes, "raise")), compressing(4)
        other = None
        job = engine.divider.start(batch.pointers, (worker.ring,))
        while job.run(0.01) != DONE:
            job.untrusted(60.0)  # as whoever watches a job does
            if job.only_lanes and worker.ring.dead:
                other = other or Worker()
                job.set_rings((other.ring,))
        assert_compressed(batch)
        worker.stop()
        if other:
            other.stop()

    scenario.__doc__ = (
        f"A worker ends at {step}, pass {passes}, and its memory is all that is left."
    )
    return scenario


NO_DELAYS = Bounds(preemptions=2, delays=0)
KILL = Bounds(preemptions=1, delays=0, kills=1)

SCENARIOS: dict[str, tuple[Callable[[], None], Bounds]] = {
    "divide": (divide, Bounds()),
    "divide-among-two": (divide_among_two, Bounds(preemptions=1)),
    "wake": (wake, Bounds()),
    "reuse-slots": (reuse_slots, Bounds(preemptions=1)),
    "reuse-worker-slots": (reuse_worker_slots, Bounds(preemptions=1)),
    "two-callers": (two_callers, Bounds(preemptions=1)),
    "two-callers-of-worker": (two_callers_of_worker, NO_DELAYS),
    "stop": (stop, Bounds()),
    "stop-idle": (stop_idle, Bounds()),
    "withdraw": (withdraw, Bounds()),
    "drop": (drop, Bounds()),
    "withdraw-from-worker": (withdraw_from_worker, NO_DELAYS),
    "withdraw-all-from-worker": (withdraw_all_from_worker, Bounds(preemptions=1)),
    "restore": (restore, NO_DELAYS),
    "killed-lane": (killed_lane, KILL),
    "killed-lane-isolated": (killed_lane_isolated, KILL),
    **{
        f"worker-ends-at-{step}-{passes}": (_failing_worker(step, passes), NO_DELAYS)
        for step in STEPS
        for passes in ((1, 2) if step in ("took", "coded") else (1,))
    },
}

MAY_TIME_OUT = ("killed", "worker-ends")
"""Scenarios where a lane ends: a caller that is about to sleep then may sleep to its limit."""
