"""Threads, signal handlers and finalizers use a backing file at once; interrupts lose nothing."""

from __future__ import annotations

import contextlib
import gc
import random
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.backing import NOTHING
from support.faulty_file import FaultyFile

from batchzip.store.backing.backing_file import BackingFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from batchzip.core.zones import ZoneReservation

PAGE = 4096


class Owner:
    """Keeps batches in a file, and knows their contents. What it drops is gone from the file."""

    def __init__(self, file: BackingFile, seed: int) -> None:
        self.file = file
        self.chance = random.Random(seed)
        self.batches: dict[int, tuple[ZoneReservation, list[bytes]]] = {}
        self.steps = self.refused = 0

    def step(self) -> None:
        chance = self.chance
        self.steps += 1
        key = chance.randrange(8)
        if chance.random() < 0.4:
            self.batches.pop(key, None)
            self.file.settle()
        elif chance.random() < 0.5:
            batch = [
                chance.randbytes(chance.randint(1, PAGE)) for _ in range(chance.randint(1, 200))
            ]
            try:
                self.batches[key] = self.file.write(batch), batch
            except BlockingIOError:  # this thread cuts the file's end off
                self.refused += 1
        elif key in self.batches:
            self.check(key)

    def check(self, key: int) -> None:
        reservation, batch = self.batches[key]
        assert self.file.read(reservation.to_array()) == batch


class Finalized:
    """Takes a step when it is collected: it is a cycle."""

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.self = self

    def __del__(self) -> None:
        self.owner.step()


class Interrupt(BaseException):
    pass


@contextlib.contextmanager
def every_millisecond(handler: Callable[[], None]) -> Iterator[None]:
    # An interrupt in a finalizer of garbage of other tests would keep its frames alive, and
    # one in a callback of the collector, such as Hypothesis has, would be lost there.
    gc.collect()
    callbacks, gc.callbacks[:] = gc.callbacks[:], []
    before = signal.signal(signal.SIGALRM, lambda *_: handler())
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.callbacks[:] = callbacks


SECONDS = [1.5, pytest.param(30, marks=pytest.mark.stress)]


@pytest.fixture(params=["path", "object"])
def file(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[BackingFile]:
    target = tmp_path / "swap" if request.param == "path" else FaultyFile()
    with BackingFile(target, page_size=PAGE) as file:
        yield file


def all_is_there(file: BackingFile, owners: list[Owner]) -> None:
    file.settle()
    live = [where.to_array() for owner in owners for where, _ in owner.batches.values()]
    file.check_invariants(np.concatenate([NOTHING, *live]))
    for owner in owners:
        for key in owner.batches:
            owner.check(key)
        owner.batches.clear()
    file.settle()
    file.check_invariants(NOTHING)
    assert file.held_bytes == 0


def run_beside(owners: list[Owner], until: float, work: Callable[[], None]) -> None:
    """Have owners take steps in threads of their own while the main thread works."""
    errors: list[BaseException] = []

    def run(owner: Owner) -> None:
        try:
            while time.monotonic() < until:
                owner.step()
        except BaseException as error:  # noqa: BLE001 - told in the main thread
            errors.append(error)

    threads = [threading.Thread(target=run, args=(owner,)) for owner in owners]
    for thread in threads:
        thread.start()
    try:
        work()
    finally:
        for thread in threads:
            thread.join()
    assert not errors


@pytest.mark.slow
@pytest.mark.parametrize("seconds", SECONDS)
def test_signal_handlers_and_finalizers_use_it_in_the_middle_of_anything(
    file: BackingFile, seconds: float
) -> None:
    main, handler, finalizer, *others = owners = [Owner(file, seed) for seed in range(5)]
    busy = threading.Lock()
    until = time.monotonic() + seconds

    def in_handler() -> None:
        if busy.acquire(blocking=False):  # its own owner's steps are not to be nested
            handler.step()
            busy.release()

    def work() -> None:
        with every_millisecond(in_handler):
            while time.monotonic() < until:
                main.step()
                Finalized(finalizer)

    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        run_beside(others, until, work)
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    assert min(owner.steps for owner in owners) > 10
    if file.descriptor is not None:
        assert sum(owner.refused for owner in owners) == 0
    all_is_there(file, owners)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", SECONDS)
def test_interrupts_at_random_lose_nothing(file: BackingFile, seconds: float) -> None:
    main, *others = owners = [Owner(file, seed) for seed in range(3)]
    until = time.monotonic() + seconds
    interrupts = 0
    armed = False

    def interrupt() -> None:
        nonlocal armed
        if armed:
            armed = False
            raise Interrupt

    def work() -> None:
        nonlocal armed, interrupts
        with every_millisecond(interrupt):
            while time.monotonic() < until:
                try:
                    armed = True
                    while time.monotonic() < until:
                        main.step()
                except Interrupt:
                    interrupts += 1
                except OSError:
                    armed = False
                armed = False

    for owner in others:
        owner.step = tolerant(owner.step)  # type: ignore[method-assign]
    run_beside(others, until, work)
    assert interrupts > 100
    all_is_there(file, owners)


def tolerant(step: Callable[[], None]) -> Callable[[], None]:
    """Allow OSError: an interrupted sync fails others' writes, because its answer is unknown."""

    def tolerated() -> None:
        with contextlib.suppress(OSError):
            step()

    return tolerated


class TwoAtOnce(FaultyFile):
    """Has a thread in the middle of a sync while the main thread writes within a read."""

    def __init__(self) -> None:
        super().__init__()
        self.syncing, self.written, self.over = (threading.Event() for _ in range(3))
        self.within: Callable[[], object] | None = None

    def _is_main(self) -> bool:
        return threading.current_thread() is threading.main_thread()

    def pread(self, length: int, offset: int) -> bytes:
        within, self.within = self.within, None
        if within is not None:
            within()
        return super().pread(length, offset)

    def pwrite(self, data: memoryview, offset: int) -> int:
        if self._is_main():
            self.written.set()
        return super().pwrite(data, offset)

    def sync(self) -> None:
        if not self._is_main():
            self.syncing.set()
            self.written.wait()
            self.over.wait()


@pytest.mark.slow
@pytest.mark.parametrize("waits_for_the_reader", [False, True])
def test_a_write_within_a_call_waits_for_anothers_sync_but_not_for_ever(
    waits_for_the_reader: bool,
) -> None:
    """The other thread may be waiting for a lock of the object's that the outer call has."""
    storage = TwoAtOnce()
    batch = [b"x" * PAGE] * 9
    refused: list[BlockingIOError] = []

    def within() -> None:
        try:
            swap.write(batch)
        except BlockingIOError as error:
            refused.append(error)

    with BackingFile(storage, page_size=PAGE) as swap:
        storage.over.set()
        kept = swap.write(batch)
        storage.written.clear()
        if waits_for_the_reader:
            storage.over.clear()
        thread = threading.Thread(target=swap.write, args=(batch,))
        thread.start()
        storage.syncing.wait()
        storage.within = within
        assert swap.read(kept.to_array()) == batch
        storage.over.set()
        thread.join()
        assert len(refused) == waits_for_the_reader
        swap.check_invariants(kept.to_array())
