"""PagedMemory: arrays larger than their RAM budget.

    touch of a cold page ─▶ core/pager.pyx: entry of the Region ─▶ decompressed, mapped
    budget exceeded      ─▶ core/pager.pyx: coldest pages ─▶ compressed into the store
    no room in the pool  ─▶ Watcher ─▶ store.shrink() ─▶ backing file

This module is the public interface and checks its arguments. The core does all work per page.

A memory exists as long as the caller or any of its arrays refers to it. Code that uses an array
need not know about the memory.
"""

from __future__ import annotations

import contextlib
import errno
import math
import mmap
import operator
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from batchzip.arguments.checks import as_integer
from batchzip.backend import is_native
from batchzip.core.allocator import Handler, restore
from batchzip.core.region import AccessAdvice
from batchzip.engine import Engine, codec_of
from batchzip.errors import (
    BadArgument,
    BatchzipError,
    CorruptPage,
    NotStorable,
    PageError,
    PagingUnavailable,
    RegionFull,
)
from batchzip.paged.availability import available, require
from batchzip.paged.blocks import Block, block_of
from batchzip.paged.machine import memory_limit
from batchzip.paged.ranges import range_of
from batchzip.paged.region import Region
from batchzip.paged.report import PagedDamage, PagedReport
from batchzip.paged.statistics import PagedStatistics
from batchzip.paged.watcher import Watcher
from batchzip.store.latency import Latency
from batchzip.store.swap_store import SwapStore
from batchzip.system.cpus import usable_cpus
from batchzip.system.lifetime import Owned
from batchzip.system.limits import begin, named
from batchzip.wording import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from typing import SupportsIndex

    import numpy.typing as npt

    from batchzip.codecs import Codec
    from batchzip.core.pager import Pager

    Array = npt.NDArray[Any]
    Shape = SupportsIndex | Sequence[SupportsIndex]

LEAST_PAGES = 2
"""Minimum number of pages in a budget: one instruction may touch two pages."""

_LARGEST_PAGE = 64 << 10

_RUN_BYTES = 256 << 10
"""Bytes of pages that the pager compresses together. A pool with less room counts as full."""

_MOST_THREADS = 64
_DEFAULT_THREADS = 4
"""Maximum of the default number of fault threads, which leaves CPUs to the program."""

_ADVICE = {each.name.lower(): each for each in AccessAdvice}


class PagedMemory(Owned):
    """A region of memory whose cold pages are compressed in a store. Its arrays are ordinary ones.

    `size`        bytes of the region: the maximum of all arrays together.
    `budget`      bytes of the region that may be in RAM uncompressed. All other pages are
                  compressed. Both sizes are rounded up to whole pages.
    `algorithm`   compresses the pages: a codec that is a C function (lz4, lz4hc, zstd).
    `page_size`   bytes that are compressed together: a power of two, from the machine's page size
                  (usually 4096) to 65536.
    `backing`     takes compressed pages for which the pool has no room, as in SwapStore. A file
                  object needs a descriptor. `max_pool_bytes` and `max_backing_bytes` are the limits
                  of the pool and of the file, as there.
    `name`        is the name of the group in `store` that holds the pages.
    `fault_threads`  is the number of core threads that restore pages. The default is one per two
                  CPUs, from 1 to 4.
    `parameters`  are the algorithm's own parameters, and `shuffle` and `verify` of Engine.

    Reading and writing an array needs no call of this class. A touch of a cold page waits a few
    microseconds. Any thread may touch pages, and so may C code. `store` is the store, with its
    limits, `share`, `check` and metrics.

    System calls on cold memory work if `batchzip.paged.available()` names the system call or the
    device. If it names user mode only, they fail with EFAULT, except within a `with` statement of
    `memory.resident(array)`.

    A page cannot be restored if its compressed bytes are damaged. A touch of such a page prints a
    line on stderr and sends SIGBUS to the thread, which kills the process. So does a touch after
    `close`. `check` finds such damage beforehand. If neither the pool nor the file has room for
    cold pages, the budget is exceeded, and the logger `batchzip` reports it.

    A memory belongs to the process that made it. A forked child does not inherit the memory, and
    touching an array kills the child. An open memory exists as long as any of its arrays.

    Raises BadArgument for an invalid argument, PagingUnavailable if the process cannot get a
    userfaultfd, LimitReached with the name of the limit if memory, address space, threads or
    descriptors run out, and OSError if the backing file cannot be opened. Nothing is left behind
    then.

    Examples:
        >>> import numpy as np
        >>> import batchzip
        >>> with batchzip.PagedMemory(size=32 << 20, budget=8 << 20, algorithm="lz4") as memory:
        ...     a = memory.array((4, 1 << 19), "f8")  # 16 MiB of zeros in 8 MiB of RAM
        ...     a[:] = np.arange(1 << 19)
        ...     a[:, -1].tolist()
        ...     memory.statistics.resident_bytes <= 16 << 20
        [524287.0, 524287.0, 524287.0, 524287.0]
        True
    """

    _instead = ": pickle its arrays, which copies them"

    def __init__(
        self,
        size: SupportsIndex,
        budget: SupportsIndex,
        algorithm: str | Codec = "lz4",
        page_size: SupportsIndex = 4096,
        backing: str | os.PathLike[str] | object | None = None,
        *,
        max_pool_bytes: int | None = None,
        max_backing_bytes: int | None = None,
        name: str | None = None,
        fault_threads: SupportsIndex | None = None,
        **parameters: object,
    ) -> None:
        self._page_size = _as_page_size(page_size)
        pages = -(-as_integer(size, "size", LEAST_PAGES * self._page_size) // self._page_size)
        budget_pages = self._as_budget(budget, pages)
        threads = _as_threads(fault_threads)
        codec = _as_codec(algorithm, parameters)
        require()
        with contextlib.ExitStack() as made:
            engine = made.enter_context(
                Engine(codec, backend="sequential", page_size=self._page_size)
            )
            self._store = made.enter_context(
                SwapStore(
                    engine,
                    max_pool_bytes=max_pool_bytes,
                    backing=backing,
                    max_backing_bytes=max_backing_bytes,
                )
            )
            file = self._store._resources.backing  # noqa: SLF001 - a region is one of its groups
            if file is not None and file.descriptor is None:
                raise BadArgument(
                    f"the backing file {file.name} has no descriptor, which paged memory "
                    "needs: pass a path, or a file with a descriptor"
                )
            region = self._store._new_group(  # noqa: SLF001
                "region" if name is None else name, None, Region
            )
            assert isinstance(region, Region)  # noqa: S101 - the store is new
            self._region = region
            self._pages = pages
            _open(region, pages, budget_pages, threads)
            self._blocks: weakref.WeakValueDictionary[int, Block] = weakref.WeakValueDictionary()
            """Blocks by the number of their first page."""
            watcher = Watcher(region.pager, weakref.ref(self))
            self._watcher = threading.Thread(target=watcher.run, name="batchzip-pager", daemon=True)
            begin(self._watcher)
            weakref.finalize(self, _end, os.getpid(), region).atexit = False
            self._engine = engine
            super().__init__()
            made.pop_all()

    def __repr__(self) -> str:
        if self.closed:
            return f"<{type(self).__name__}, closed>"
        size = self._pages * self._page_size
        return (
            f"<{type(self).__name__} of {size:,} bytes in {self.budget:,}, "
            f"{self._engine.codec.algorithm}, {self._page_size} B pages>"
        )

    def _enter(self) -> None:
        if self._unusable:
            self._refuse()
        self._region._enter()  # noqa: SLF001 - a part of this, which may have been closed

    @property
    def _pager(self) -> Pager:
        """The core's pager. Raise ClosedError if it is closed."""
        return self._region.pager

    # Sizes and limits.

    @property
    def store(self) -> SwapStore:
        """The store that holds the cold pages. Closing one of the two closes the other."""
        return self._store

    @property
    def size(self) -> int:
        """Bytes of the region."""
        return self._pages * self._page_size

    @property
    def page_size(self) -> int:
        """Bytes per page: the unit that is compressed."""
        return self._page_size

    @property
    def free_bytes(self) -> int:
        """Bytes of the region that are in no array."""
        return self.size - sum(count for _, count in self._taken()) * self._page_size

    @property
    def budget(self) -> int:
        """Bytes of the region that may be in RAM uncompressed.

        Setting a smaller budget compresses the excess pages in the background.
        """
        self._enter()
        return self._pager.budget * self._page_size

    @budget.setter
    def budget(self, value: SupportsIndex) -> None:
        self._enter()
        self._pager.budget = self._as_budget(value, self._pages)

    def _as_budget(self, value: object, pages: int) -> int:
        """Return a budget in pages. Raise BadArgument."""
        size = self._page_size
        given = as_integer(value, "budget", LEAST_PAGES * size, pages * size)
        limit = _memory_limit()
        if limit is not None and given > limit[0]:
            raise BadArgument(
                f"budget must be at most the {limit[0]:,} bytes of memory that {limit[1]} has, "
                f"not {given:,}"
            )
        return -(-given // size)

    # Arrays.

    def array(self, shape: Shape, dtype: npt.DTypeLike = "f8") -> Array:
        """Make an array of zeros, in C order. Its pages are freed with the array and its views.

        An array takes whole pages. An array of zero bytes takes none and lies outside the region.
        Raise RegionFull, a MemoryError, if the array does not fit, and NotStorable, a TypeError,
        for a dtype with Python objects.
        """
        self._enter()
        kind = _as_dtype(dtype)
        lengths = _as_shape(shape)
        nbytes = math.prod(lengths) * kind.itemsize
        if not nbytes:
            return np.zeros(lengths, kind)
        return self._block(nbytes).array(lengths, kind)

    def _block(self, nbytes: int) -> Block:
        """Return unused pages of zeros for `nbytes`. Raise RegionFull."""
        wanted = -(-nbytes // self._page_size)
        if wanted > self._pages:
            raise self._no_room(wanted)
        try:
            extent = self._pager.allocate(nbytes)
        except MemoryError as error:
            raise self._no_room(wanted) from error
        block = Block(extent, self)
        self._blocks[block.first] = block
        return block

    @contextlib.contextmanager
    def allocator(self, threshold: SupportsIndex = 1 << 20) -> Iterator[None]:
        """Make NumPy allocate new arrays in this memory, within a `with` statement.

            with memory.allocator():
                a = np.empty(1 << 28)

        This affects arrays, results and temporaries of at least `threshold` bytes that the current
        thread or asyncio task makes within the statement. They stay in this memory afterwards. An
        array that does not fit raises MemoryError.
        """
        self._enter()
        least = as_integer(threshold, "threshold", self._page_size)
        low = self._pager.address
        this = weakref.ref(self)  # small arrays refer to the handler, too

        def take(nbytes: int) -> Block | None:
            memory = this()
            if memory is None or memory.closed:
                return None
            return memory._block(nbytes)  # noqa: SLF001 - this class

        handler = Handler(take, threshold=least, low=low, high=low + self.size)
        before: list[object] = []
        try:
            before.extend(map(Handler.install, (handler,)))  # atomic, as in `_resident`
            yield
        finally:
            for each in before:
                restore(each)

    def _no_room(self, wanted: int) -> Exception:
        """Return the exception for an array of `wanted` pages that could not be allocated."""
        free = largest = at = 0
        for first, count in [*self._taken(), (self._pages, 0)]:
            free += first - at
            largest = max(largest, first - at)
            at = first + count
        if largest >= wanted:  # the region has the pages, but the system has no memory
            error = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
            return named(error, "no array can be made")
        size = self._page_size
        return RegionFull(wanted * size, free * size, largest * size)

    def _taken(self) -> list[tuple[int, int]]:
        """Return the first page and the number of pages of each array, sorted."""
        return sorted((block.first, block.count) for block in list(self._blocks.values()))

    # Hints on pages.

    def evict(self, array: object) -> int:
        """Compress the pages of an array or view now. Return the number of pages evicted.

        Whole pages are evicted, including other data in the first and the last one. A view with
        gaps covers all pages from its lowest byte to its highest. Pages that `resident` pins are
        skipped, as are pages for which the store has no room. Evicted pages stay readable. Raise
        BadArgument if the array is not in this memory.
        """
        pages = self._pages_of(array)
        return self._pager.evict(*pages) if pages else 0

    def prefetch(self, array: object) -> None:
        """Restore the pages of an array or view in the background. Raise as `evict`."""
        pages = self._pages_of(array)
        if pages:
            self._pager.prefetch(*pages)

    def advise(self, array: object, advice: str) -> None:
        """Declare how an array or view will be read: "sequential", "random" or "normal".

        "sequential" restores more pages ahead, "random" none, and "normal" is the default. Raise as
        `evict`, and BadArgument for another `advice`.
        """
        kind = _ADVICE.get(advice) if isinstance(advice, str) else None
        if kind is None:
            known = ", ".join(map(repr, _ADVICE))
            raise BadArgument(f"advice must be one of {known}, not {shown(advice)}")
        pages = self._pages_of(array)
        if pages:
            self._pager.advise(*pages, kind)

    @contextlib.contextmanager
    def _resident(self, array: object, pages: tuple[int, int]) -> Iterator[Any]:
        # No signal handler can run between the pin and its record in `done`.
        pin, unpin = self._pager.pin, self._pager.unpin
        done: list[None] = []
        try:
            done.extend(map(pin, pages[:1], pages[1:]))
            yield array
        except (PageError, CorruptPage) as error:
            if not done:
                error.add_note(str(self._damage(error.index)))
            raise
        finally:
            if done:
                unpin(*pages)

    def resident(self, array: object) -> AbstractContextManager[Any]:
        """Pin an array or view in memory within a `with` statement, which returns it.

            with memory.resident(a[:1000]) as part:
                file.readinto(part)

        It is for system calls in which the kernel cannot handle faults, and for code that must not
        wait. It may be nested, and used by several threads. Entering it raises BadArgument if all
        pinned pages together exceed the budget, and CorruptPage or PageError if a page cannot be
        restored.
        """
        pages = self._pages_of(array)
        return self._resident(array, pages) if pages else contextlib.nullcontext(array)

    def _pages_of(self, array: object) -> tuple[int, int] | None:
        """Return the first page of an array and the number of pages that it covers.

        Return None for an array of zero bytes. Raise BadArgument if it is not in this memory.
        """
        self._enter()
        address, nbytes = range_of(array)
        if not nbytes:
            return None
        try:
            return self._pager.find(address, nbytes)
        except BadArgument:
            raise BadArgument(
                "the array is in no array of this memory: "
                "pass one that memory.array() returned, or a view of one"
            ) from None

    # Statistics and checks.

    @property
    def statistics(self) -> PagedStatistics:
        """Counters so far and the current state, computed at each access."""
        self._enter()
        figures = self._pager.figures()
        latency = Latency.of(self._pager.latencies())
        entries, size = self._region._entries, self._page_size  # noqa: SLF001 - as `store`
        pooled = entries.pool_bytes
        known = {name: figures[name] for name in _FIGURES}
        return PagedStatistics(
            size_bytes=self._pages * size,
            budget_bytes=figures["budget_pages"] * size,
            resident_bytes=figures["resident_pages"] * size,
            pinned_bytes=figures["pinned_pages"] * size,
            compressed_bytes=pooled,
            file_bytes=entries.backed_bytes(),
            saved_bytes=figures["stored_pages"] * size - pooled,
            latency_p50_s=latency.quantile(0.5) or 0.0,
            latency_p90_s=latency.quantile(0.9) or 0.0,
            latency_p99_s=latency.quantile(0.99) or 0.0,
            **known,
        )

    def check(self) -> PagedReport:
        """Verify the checksum of every compressed page. Return the damaged pages with their arrays.

        No page is touched or restored, and other threads may go on. A page in memory is checked,
        too, if the store still has a compressed copy, that is, if it was not written to.
        """
        self._enter()
        report = self._store.check()
        return PagedReport(
            report.pages,
            report.bytes,
            self._damages(report.damaged),
            self._damages(report.unreadable),
        )

    def _damages(self, found: Iterable[tuple[str, int]]) -> tuple[PagedDamage, ...]:
        return tuple(self._damage(index) for name, index in found if name == self._region.name)

    def _damage(self, page: int) -> PagedDamage:
        for block in list(self._blocks.values()):
            if block.first <= page < block.first + block.count:
                return PagedDamage(page, block.address, (page - block.first) * self._page_size)
        return PagedDamage(page, None, 0)

    # Called by the watcher.

    def _make_room(self) -> bool:
        """Move cold pages to the backing file. Return whether that made room in the pool."""
        store = self._store
        resources = store._resources  # noqa: SLF001 - as above
        if resources.backing is None:
            return False
        pool, held = resources.pool, resources.pool.held_bytes
        resources.full.full = True  # the pager found no room, whatever the pool's fill level
        try:
            moved = store.shrink()
            if pool.max_bytes is not None and pool.max_bytes - pool.held_bytes < _RUN_BYTES:
                run = _RUN_BYTES // self._page_size
                moved += self._region._write_back_coldest(run)  # noqa: SLF001 - a part of this
                store.compact()
        except (OSError, MemoryError):
            return False
        return moved > 0 or pool.held_bytes < held

    def _excess(self, *, stuck: bool) -> str:
        """Return a text that says by how much the budget is exceeded, and why. "" if it is not.

        `stuck` means that no room could be made.
        """
        figures = self._pager.figures()
        now, budget = figures["resident_pages"], figures["budget_pages"]
        if now <= (budget if stuck else budget + budget // 8):  # short peaks are normal
            return ""
        resources = self._store._resources  # noqa: SLF001 - as above
        pool, file = resources.pool, resources.backing
        limit = pool.max_bytes
        if figures["pinned_pages"] >= budget:
            cause = "resident() pins as much as the budget"
        elif limit is not None and file is None and limit - pool.held_bytes < _RUN_BYTES:
            cause = (
                f"the pool is at its limit of {limit:,} bytes: "
                "raise max_pool_bytes, or give it a backing file"
            )
        elif not stuck:
            sink = "others are compressed" if file is None else "the backing file takes them"
            cause = f"pages are touched faster than {sink}"
        elif limit is None:
            cause = "there is no memory for compressed pages"
        else:
            cause = (
                "the pool is at its limit, and the backing file accepts nothing: "
                "it is full, or writing fails"
            )
        size = self._page_size
        return (
            f"a PagedMemory keeps {now * size:,} bytes in memory, more than its "
            f"budget of {budget * size:,}, because {cause}"
        )

    def _close(self) -> None:
        self._region.close()  # first, because the pager's threads use the store
        wait = not self._store._resources.in_a_call_of_the_file()  # noqa: SLF001 - as above
        if wait and self._watcher is not threading.current_thread():
            self._watcher.join()
        self._store.close()
        self._engine.close()


_FIGURES = tuple(name for name in PagedStatistics.__slots__ if not name.endswith(("_bytes", "_s")))
"""Names of fields that are copied from the core's figures."""


def _open(region: Region, pages: int, budget: int, threads: int) -> None:
    """Make the pager. Raise PagingUnavailable, or LimitReached with the name of the limit."""
    try:
        region.open(pages=pages, budget=budget, fault_threads=threads)
    except BatchzipError:
        raise
    except MemoryError as error:
        raise named(
            OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "no region can be made"
        ) from error
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS):
            raise PagingUnavailable(str(available())) from error
        raise named(error, "no region can be made") from error


def _end(pid: int, region: Region) -> None:
    """Close the region of a collected memory, which ends its pager and frees its pages.

    The store is collected with its last reference. A forked child does nothing.
    """
    if os.getpid() == pid:
        region.close()


def _memory_limit() -> tuple[int, str] | None:
    try:
        return memory_limit()
    except (OSError, ValueError, IndexError):  # /proc is not mounted, or has an unknown format
        return None


def _as_page_size(value: object) -> int:
    size = as_integer(value, "page_size", mmap.PAGESIZE, max(_LARGEST_PAGE, mmap.PAGESIZE))
    if size & (size - 1):
        raise BadArgument(f"page_size must be a power of two, not {size}")
    return size


def _as_threads(value: object) -> int:
    if value is None:
        return min(_DEFAULT_THREADS, max(1, usable_cpus() // 2))
    return as_integer(value, "fault_threads", 1, _MOST_THREADS)


def _as_codec(algorithm: str | Codec, parameters: dict[str, Any]) -> Codec:
    codec = codec_of(algorithm, **parameters)
    if not is_native(codec):
        raise BadArgument(
            "pages are compressed by threads that run no Python, "
            f"and {codec.algorithm} needs Python here: use lz4, lz4hc or zstd"
        )
    return codec


def _as_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    try:
        kind = np.dtype(dtype)
    except (TypeError, ValueError) as error:
        raise BadArgument(f"dtype must be a NumPy dtype, not {shown(dtype)}: {error}") from error
    if kind.hasobject:
        raise NotStorable(
            f"an array of {kind} refers to Python objects outside it: use a dtype without them"
        )
    return np.empty(0, kind).dtype if kind.subdtype is None else kind  # turns "S" into "S1"


def _as_shape(shape: Shape) -> tuple[int, ...]:
    try:
        lengths = (operator.index(shape),)  # type: ignore[arg-type] # raises TypeError
    except TypeError:
        try:
            lengths = tuple(map(operator.index, shape))  # type: ignore[arg-type, assignment]
        except TypeError:
            raise BadArgument(
                f"shape must be an integer or a sequence of integers, not {shown(shape)}"
            ) from None
    if any(length < 0 for length in lengths):
        raise BadArgument(f"shape must have lengths of 0 or more, not {shown(shape)}")
    return lengths


def paged_empty(
    shape: Shape,
    dtype: npt.DTypeLike = "f8",
    *,
    budget: SupportsIndex,
    page_size: SupportsIndex = 4096,
    **options: Any,
) -> Array:
    """Make one array of zeros in a PagedMemory of its own, which ends with the array and its views.

    `budget` is the number of its bytes that may be in RAM uncompressed. A budget above the array's
    size is reduced to it. `options` are those of PagedMemory. `batchzip.paged.memory_of` returns
    the memory of the array. Raise as PagedMemory and its `array`.

    Examples:
        >>> import batchzip
        >>> x = batchzip.paged_empty((1000, 1000), "f4", budget=1 << 20)
        >>> x[:] = 1
        >>> float(x.sum())
        1000000.0
    """
    kind = _as_dtype(dtype)
    lengths = _as_shape(shape)
    page = _as_page_size(page_size)
    size = max(math.prod(lengths) * kind.itemsize, LEAST_PAGES * page)
    whole = -(-size // page) * page
    given = min(as_integer(budget, "budget", LEAST_PAGES * page), whole)
    return PagedMemory(whole, given, page_size=page, **options).array(lengths, kind)


def memory_of(array: object) -> PagedMemory:
    """Return the PagedMemory of an array or view. Raise BadArgument if it is in none.

    Examples:
        >>> import batchzip
        >>> x = batchzip.paged_empty((1000, 1000), "f4", budget=1 << 20)
        >>> memory = batchzip.paged.memory_of(x[10:20])
        >>> memory.budget = 2 << 20
        >>> memory.budget
        2097152
    """
    block = block_of(array)
    memory = None if block is None else block.memory
    if not isinstance(memory, PagedMemory):
        raise BadArgument(f"{shown(array)} is in no PagedMemory")
    return memory
