"""Zones in situations that the model does not meet: no memory, forks, and growing tables."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from batchzip.core.calls import Calls
from batchzip.core.memory import fail_allocation
from batchzip.core.zones import ZoneReservation, Zones
from batchzip.errors import ClosedError, ForkedProcess

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = 4096
ZONE = 1 << 20
NOTHING = np.zeros(0, np.uint64)
LOCK = threading.RLock()


def lengths(zones: int) -> np.ndarray:
    return np.full(zones * ZONE // PAGE, PAGE, np.uint32)


def failing(work: Callable[[Zones], object], zones: Zones) -> int:
    """Have every allocation of some work fail in turn, then let it through; how many failed."""
    for nth in range(1, 100):
        figures = zones.figures
        fail_allocation(nth)
        try:
            work(zones)
        except MemoryError:
            pass
        else:
            return nth - 1
        finally:
            fail_allocation(0)
        assert zones.figures == figures
        zones.emptied().put_back()
        zones.check(NOTHING)
    raise AssertionError("there is no end of allocations")


def test_memory_that_runs_out_at_any_request_leaves_all_whole() -> None:
    zones = Zones(PAGE, 0)
    assert failing(lambda zones: zones.reserve(lengths(300), LOCK), zones) >= 4
    emptied = zones.emptied()
    assert emptied.runs() == [(0, 300 * ZONE)]
    emptied.put_back()
    assert failing(Zones.sparse, zones) >= 1
    assert failing(lambda zones: zones.check(NOTHING), zones) >= 2
    fail_allocation(1)
    with pytest.raises(MemoryError):
        Zones(PAGE, 0)
    fail_allocation(0)


def test_thousands_of_zones_are_taken_and_come_back() -> None:
    zones = Zones(PAGE, 0)
    reservation = zones.reserve(lengths(3000), LOCK)
    positions = reservation.keep()
    assert zones.figures == (3000 * ZONE, 3000 * ZONE, len(positions))
    zones.check(positions)
    zones.free(positions[::2])
    zones.check(positions[1::2])
    zones.free(positions[1::2])
    emptied = zones.emptied()
    assert emptied.runs() == [(0, 3000 * ZONE)]
    assert zones.emptied().runs() == []
    emptied.put_back()
    assert zones.reserve(lengths(1), LOCK).runs() == [(0, 256, 0)]


def test_a_file_ends_at_8_tib() -> None:
    zones = Zones(2 << 20, (1 << 43) - (200 << 20))  # there is room for one zone of 128 MiB
    kept = zones.reserve(np.full(64, 2 << 20, np.uint32), LOCK)
    with pytest.raises(OSError, match=str(1 << 43)):
        zones.reserve(np.ones(1, np.uint32), LOCK)
    positions = kept.keep()
    assert int(positions[-1] >> np.uint64(21)) == (1 << 43) - (200 << 20) + (126 << 20)
    zones.check(positions)


def test_a_nested_sync_that_fails_fails_the_outer_one_too() -> None:
    class Storage:
        def __init__(self, *fails: bool) -> None:
            self.lock = threading.RLock()
            self.fails = list(fails)  # of the inner one, of the outer one
            self.inner: ZoneReservation | None = None

        def sync(self) -> None:
            if self.inner is None:
                self.inner = zones.reserve(lengths(1), self.lock)
                with contextlib.suppress(OSError):
                    zones.sync(self, self.inner)
                    self.told_well = True
            if self.fails.pop(0):
                raise OSError(errno.EIO, "failed")

        told_well = False

        def truncate(self, size: int) -> None:
            raise NotImplementedError

    for inner_fails in (False, True):
        for outer_fails in (False, True):
            zones = Zones(PAGE, 0)
            storage = Storage(inner_fails, outer_fails)
            outer = zones.reserve(lengths(1), storage.lock)
            failure = pytest.raises(OSError, match="failed") if inner_fails or outer_fails else None
            with failure or contextlib.nullcontext():
                zones.sync(storage, outer)
            assert storage.told_well is not inner_fails
            assert storage.fails == []


@pytest.mark.slow
def test_a_forked_child_is_refused_and_drops_what_it_has() -> None:
    class Thing:
        def close(self) -> None:
            closed.append(os.getpid())

    closed: list[int] = []
    zones = Zones(PAGE, 0)
    reservation = zones.reserve(lengths(3), LOCK)
    zones.free(zones.reserve(lengths(2), LOCK).keep())
    emptied = zones.emptied()
    calls = Calls(Thing(), "Thing")
    call = calls.enter()
    child = os.fork()
    if child == 0:
        wrong = 1
        try:
            for use in (
                zones.emptied,
                zones.sparse,
                lambda: zones.reserve(lengths(1), LOCK),
                calls.enter,
            ):
                with pytest.raises(ForkedProcess):
                    use()
            del reservation, emptied, call
            calls.close()
            wrong = len(closed)
        finally:
            os._exit(wrong)
    assert os.waitpid(child, 0)[1] == 0
    emptied.put_back()
    zones.check(reservation.keep())
    calls.close()
    assert closed == []
    del call
    assert closed == [os.getpid()]


def test_the_last_one_out_closes() -> None:
    class Thing:
        closed = 0
        fails = False

        def close(self) -> None:
            calls.close()  # as a finalizer might
            if self.fails:
                raise KeyboardInterrupt
            self.closed += 1

    thing = Thing()
    calls = Calls(thing, "Thing")
    with calls.enter() as outer:
        assert outer is thing
        assert calls.used_here
        assert calls.enter().nested
        with calls.enter():
            calls.close()
            with pytest.raises(ClosedError, match="this Thing is closed"):
                calls.enter()
        assert thing.closed == 0
    assert thing.closed == 1
    thing.fails = True
    with pytest.raises(KeyboardInterrupt):
        calls.close()
    thing.fails = False
    calls.close()
    assert thing.closed == 2
