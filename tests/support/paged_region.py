"""A region of paged memory with its store and its cleaner, and children that die of a touch."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import select
import signal
import threading
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.waiting import await_true

from batchzip import BatchzipError, ClosedError, Engine, SwapStore
from batchzip.core.pager import Pager
from batchzip.core.region import Event
from batchzip.core.userfaultfd import probe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from batchzip.store.group import Group

HANG_LIMIT_S = 60.0
"""Seconds after which something hangs, however slow the machine."""

needs_paging = pytest.mark.skipif(
    probe()[0] is None, reason="this process may not handle page faults"
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

KINDS = ("zeros", "same", "text", "noise")


def content(kind: str, seed: int, size: int) -> npt.NDArray[np.uint8]:
    """Make `size` bytes of a kind: zeros, one word, compressible or incompressible."""
    rng = np.random.default_rng(seed)
    if kind == "zeros":
        return np.zeros(size, np.uint8)
    if kind == "same":
        return np.resize(rng.integers(1, 256, 8, np.uint8), size)
    if kind == "text":
        return rng.integers(0, 6, size, np.uint8)
    return rng.integers(0, 256, size, np.uint8)


def mixed(pages: int, seed: int = 1, size: int = 4096) -> npt.NDArray[np.uint8]:
    """Make pages of all kinds, in turn."""
    return np.concatenate(
        [content(KINDS[page % len(KINDS)], seed + page, size) for page in range(pages)]
    )


def noisy(pages: int, seed: int = 1) -> npt.NDArray[np.uint8]:
    """Make pages that are never the same, and never EMPTY."""
    return content("text", seed, pages * 4096)


def filled(region: Region, data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Make an array of a region that has these bytes."""
    array = region.array(len(data))
    array[:] = data
    return array


class Watcher(threading.Thread):
    """Makes room in the pool by what the store has for it, as PagedMemory does."""

    def __init__(self, pager: Pager, store: SwapStore) -> None:
        super().__init__(name="watcher")
        self.events = 0
        """All that the pager told of."""
        self._pager = pager
        self._store = store
        self.start()

    def run(self) -> None:
        while True:
            try:
                events = self._pager.await_event(0.5)
            except ClosedError:
                return
            self.events |= events
            if events & Event.CLOSING:
                return
            if events & Event.NO_ROOM:
                with contextlib.suppress(BatchzipError, OSError, MemoryError):
                    if self._store.shrink():
                        self._pager.room_was_made()


@dataclass
class Region:
    """What a test works with."""

    pager: Pager
    store: SwapStore
    group: Group
    watcher: Watcher | None

    def array(self, length: int, dtype: Any = np.uint8) -> npt.NDArray[Any]:
        """Allocate an array of zeros; its pages are free again when it and its views have gone."""
        extent = self.pager.allocate(length * np.dtype(dtype).itemsize)
        view = memoryview(extent)  # type: ignore[arg-type] # it has the buffer protocol
        array: npt.NDArray[Any] = np.frombuffer(view, dtype, length)
        return array

    def pages_of(self, array: npt.NDArray[Any]) -> tuple[int, int]:
        """Return the first of the pages of an array, and how many it has."""
        return self.pager.find(array.ctypes.data, array.nbytes)

    def evict(self, array: npt.NDArray[Any]) -> int:
        return self.pager.evict(*self.pages_of(array))

    def evict_all(self) -> int:
        """Evict all pages but the pinned ones, also those being restored. Return their number."""
        gone = 0

        def nothing_left() -> bool:
            nonlocal gone
            gone += self.pager.evict(0, self.pager.pages)
            figures = self.figures
            return figures["resident_pages"] == figures["pinned_pages"]

        await_true(nothing_left, "the end of readahead")
        return gone

    @property
    def figures(self) -> dict[str, int]:
        return self.pager.figures()

    def await_budget(self) -> None:
        """Wait until no more pages have memory than may."""
        await_true(lambda: self.figures["resident_pages"] <= self.pager.budget, "the budget")


@contextlib.contextmanager
def opened(
    algorithm: str = "lz4",
    *,
    pages: int = 256,
    budget: int = 32,
    page_size: int = 4096,
    fault_threads: int = 2,
    watched: bool = True,
    parameters: dict[str, Any] | None = None,
    **options: Any,
) -> Iterator[Region]:
    """Open a region with a store of its own, and see at the end that all invariants hold."""
    with (
        Engine(
            algorithm, backend="sequential", page_size=page_size, **(parameters or {})
        ) as engine,
        SwapStore(engine, **options) as store,
    ):
        group = store.group("region")
        backing = store._resources.backing
        pager = Pager(
            group._entries,
            store._resources.writer.number,
            pages=pages,
            budget=budget,
            fault_threads=fault_threads,
            backing_fd=-1 if backing is None or backing.descriptor is None else backing.descriptor,
        )
        watcher = None
        try:
            if backing is not None and watched:
                watcher = Watcher(pager, store)
            yield Region(pager, store, group, watcher)
            if not pager.closed and not store.closed and not group.closed:
                pager.check_invariants()
        finally:
            pager.close()
            if watcher is not None:
                watcher.join(HANG_LIMIT_S)
                assert not watcher.is_alive(), (
                    "whoever waited for the pager was not told of its end"
                )
        if not store.closed:
            store.check_invariants()


def mappings() -> int:
    """Count the mappings of shared memory of ours."""
    return Path("/proc/self/maps").read_text().count("memfd:batchzip")


@dataclass
class End:
    """How a child came to its end."""

    signal: int
    """0: it ended by itself."""
    said: str
    """What it wrote to stderr."""

    @property
    def lines(self) -> list[str]:
        return self.said.splitlines()


def end_of(work: Callable[[], object], timeout_s: float = HANG_LIMIT_S) -> End:
    """Run `work` in a forked child until it ends. Fail if it hangs or raises anything.

    The child has a stderr of its own, and leaves no core file.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, from 3.12 on
        child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(writing, 2)
            faulthandler.disable()
            for number in (signal.SIGBUS, signal.SIGSEGV):
                signal.signal(number, signal.SIG_DFL)  # a sanitizer's, too
            signal.alarm(0)
            work()
            code = 0
        except BaseException:  # noqa: BLE001 - told to the parent
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)
    os.close(writing)
    said, until = b"", time.monotonic() + timeout_s
    try:
        while select.select([reading], [], [], max(0, until - time.monotonic()))[0]:
            more = os.read(reading, 65536)
            if not more:
                break
            said += more
        else:
            os.kill(child, signal.SIGKILL)
            pytest.fail(f"the child hangs; it said: {said.decode(errors='replace')}")
    finally:
        os.close(reading)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status > 0:
        pytest.fail(f"the child failed: {said.decode(errors='replace')}")
    return End(-status, said.decode(errors="replace"))


def assert_sigbus(end: End, page: int) -> None:
    """See that a touch ended a child, after one line that names the page."""
    assert end.signal == signal.SIGBUS, end
    assert len(end.lines) == 1, end
    assert f"page {page} " in end.lines[0], end
