"""PagedMemory: arrays larger than their RAM budget.

    array ─▶ touch of a cold page ─▶ core/pager.pyx: entry of the Region ─▶ decompressed, mapped
    more than the budget ─▶ the same: pages that nobody touches ─▶ compressed into the store
    no room in the pool  ─▶ Watcher ─▶ store.shrink() ─▶ backing file

What is called, and what of its arguments is wrong; what is done for each page is the core's.

A memory lives as long as it is open or any array of it lives: code that has an array need not know of it.
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
"""Pages that a budget has at least: an instruction may touch two at once."""

_LARGEST_PAGE = 64 << 10

_RUN_BYTES = 256 << 10
"""Bytes of pages that the pager compresses in one go: less room than that in the pool is none."""

_MOST_THREADS = 64
_DEFAULT_THREADS = 4
"""At most, and one for two CPUs: the program that waits has work, too."""

_ADVICE = {each.name.lower(): each for each in AccessAdvice}


class PagedMemory(Owned):
    """A region of memory whose cold pages lie compressed in a store; its arrays are ordinary ones.

    `size`        bytes of the region: what its arrays may take together.
    `budget`      bytes of it that may lie in RAM as they are. All else is compressed. Both are rounded up to pages.
    `algorithm`   what pages are compressed with: a codec that is a C function (lz4, lz4hc, zstd).
    `page_size`   bytes that are compressed together; a power of two, from the machine's page (4096 mostly) to 65536.
    `backing`     where compressed pages go that the pool has no room for, as in SwapStore; an object has to be
                  a file with a descriptor. With `max_pool_bytes` and `max_backing_bytes` it is as there.
    `name`        of the group in `store` that has the pages.
    `fault_threads`  threads of the core that restore pages; by default one for two CPUs, 1 to 4.
    `parameters`  the algorithm's own, and Engine's `shuffle` and `verify`.

    Reading and writing an array needs no call of this class: a touch of a cold page waits some microseconds. Any
    thread may do so, and code in C. `store` is the store: limits, `share`, `check`, metrics.

    A system call that is handed cold memory works if `batchzip.paged.available()` names the system call or the device.
    If it names user mode only, such a call fails with EFAULT, unless it is made in `with memory.resident(array):`.

    A page that cannot be restored, as its compressed bytes are damaged, ends the thread that touches it with SIGBUS, after a
    line on stderr. So does a touch after `close`. `check` finds damage before. If there is room for cold pages
    neither in the pool nor in the file, the budget is exceeded, and the logger `batchzip` says so.

    Bound to the process that made it: a forked child has none of its memory, and dies when it touches an array.
    An open memory lives as long as any of its arrays does.

    Raises BadArgument; PagingUnavailable where the system has no userfaultfd for this process; LimitReached,
    which names the limit, where it has no memory, addresses, threads or descriptors; OSError where the
    backing file cannot be had. Nothing is left then.

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

    _instead = ": pickle its arrays, which are copied then"

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
            file = self._store._resources.backing  # noqa: SLF001 - a region is a group of it, with other means
            if file is not None and file.descriptor is None:
                raise BadArgument(
                    f"pages are read from the backing file by its descriptor, and {file.name} has none: give a path, or a file"
                )
            region = self._store._new_group(  # noqa: SLF001
                "region" if name is None else name, None, Region
            )
            assert isinstance(region, Region)  # noqa: S101 - the store is new
            self._region = region
            self._pages = pages
            _open(region, pages, budget_pages, threads)
            self._blocks: weakref.WeakValueDictionary[int, Block] = weakref.WeakValueDictionary()
            """By the number of their first page."""
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
        self._region._enter()  # noqa: SLF001 - a part of it, which somebody may have closed

    @property
    def _pager(self) -> Pager:
        """The core's part. Raise ClosedError."""
        return self._region.pager

    # What it is.

    @property
    def store(self) -> SwapStore:
        """The store that has the cold pages; it is closed with the memory, and the memory with it."""
        return self._store

    @property
    def size(self) -> int:
        """Bytes of the region."""
        return self._pages * self._page_size

    @property
    def page_size(self) -> int:
        """Bytes that are compressed together."""
        return self._page_size

    @property
    def free_bytes(self) -> int:
        """Bytes of the region that no array has."""
        return self.size - sum(count for _, count in self._taken()) * self._page_size

    @property
    def budget(self) -> int:
        """Bytes of the region that may lie in RAM as they are. It may be set; then pages go in the background."""
        self._enter()
        return self._pager.budget * self._page_size

    @budget.setter
    def budget(self, value: SupportsIndex) -> None:
        self._enter()
        self._pager.budget = self._as_budget(value, self._pages)

    def _as_budget(self, value: object, pages: int) -> int:
        """Return a budget in pages; raise BadArgument."""
        size = self._page_size
        given = as_integer(value, "budget", LEAST_PAGES * size, pages * size)
        limit = _memory_limit()
        if limit is not None and given > limit[0]:
            raise BadArgument(
                f"budget must be at most the {limit[0]:,} bytes of memory that {limit[1]} has, not {given:,}"
            )
        return -(-given // size)

    # Arrays.

    def array(self, shape: Shape, dtype: npt.DTypeLike = "f8") -> Array:
        """Make an array of zeros, in C order. Its pages are free again when it and its views are gone.

        It takes whole pages; one without bytes takes none, and is no memory of this. Raises RegionFull,
        a MemoryError, where it does not fit, and NotStorable, a TypeError, for a type with Python objects.
        """
        self._enter()
        kind = _as_dtype(dtype)
        lengths = _as_shape(shape)
        nbytes = math.prod(lengths) * kind.itemsize
        if not nbytes:
            return np.zeros(lengths, kind)
        return self._block(nbytes).array(lengths, kind)

    def _block(self, nbytes: int) -> Block:
        """Return unused pages with room for `nbytes`, all zeros. Raise RegionFull."""
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
        """Have NumPy take the memory of new arrays from here, in a `with` statement.

            with memory.allocator():
                a = np.empty(1 << 28)

        Of arrays, results and temporaries of at least `threshold` bytes that this thread, or this task of asyncio, makes in it;
        they stay here afterwards. One that does not fit raises MemoryError.
        """
        self._enter()
        least = as_integer(threshold, "threshold", self._page_size)
        low = self._pager.address
        this = weakref.ref(self)  # small arrays keep the handler, too

        def take(nbytes: int) -> Block | None:
            memory = this()
            return None if memory is None or memory.closed else memory._block(nbytes)  # noqa: SLF001

        handler = Handler(take, threshold=least, low=low, high=low + self.size)
        before: list[object] = []
        try:
            before.extend(map(Handler.install, (handler,)))  # one step, as in `resident`
            yield
        finally:
            for each in before:
                restore(each)

    def _no_room(self, wanted: int) -> Exception:
        """Return the exception for an array of `wanted` pages that could not be made."""
        free = largest = at = 0
        for first, count in [*self._taken(), (self._pages, 0)]:
            free += first - at
            largest = max(largest, first - at)
            at = first + count
        if largest >= wanted:  # it was not for want of pages
            return named(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "no array can be made")
        size = self._page_size
        return RegionFull(wanted * size, free * size, largest * size)

    def _taken(self) -> list[tuple[int, int]]:
        """List the runs of pages that arrays have, in order: the first page of each, and how many."""
        return sorted((block.first, block.count) for block in list(self._blocks.values()))

    # What may be said about them.

    def evict(self, array: object) -> int:
        """Compress the pages of an array, or of a view of one, now; how many were. They stay readable.

        Pages are taken whole, with what else is in the first and the last one. Of a view with
        gaps, all from the lowest byte to the highest goes. Pages that `resident` keeps stay, and so do those that
        the store has no room for. Raises BadArgument for an array of no, or another, memory.
        """
        pages = self._pages_of(array)
        return self._pager.evict(*pages) if pages else 0

    def prefetch(self, array: object) -> None:
        """Have the pages of an array, or of a view of one, restored in the background. Raises as `evict`."""
        pages = self._pages_of(array)
        if pages:
            self._pager.prefetch(*pages)

    def advise(self, array: object, advice: str) -> None:
        """Say how an array, or a view of one, will be read: "sequential", "random", or "normal" to take it back.

        Of what is read in sequence, more is restored ahead; at random, nothing is. Raises as `evict`.
        """
        kind = _ADVICE.get(advice) if isinstance(advice, str) else None
        if kind is None:
            known = ", ".join(map(repr, _ADVICE))
            raise BadArgument(f"advice is one of {known}, not {shown(advice)}")
        pages = self._pages_of(array)
        if pages:
            self._pager.advise(*pages, kind)

    @contextlib.contextmanager
    def _resident(self, array: object, pages: tuple[int, int]) -> Iterator[Any]:
        pager = self._pager
        pin, unpin = (
            pager.pin,
            pager.unpin,
        )  # what follows has no step in which a signal handler gets in between
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
        """Keep an array, or a view of one, in memory within a `with` statement, which gives it.

            with memory.resident(a[:1000]) as part:
                file.readinto(part)

        For system calls, where the kernel may not be able to fault, and for what must not wait. It may be nested, and
        used by several threads. Raises, when it is entered, BadArgument where that and what else is kept takes more than the budget;
        CorruptPage or PageError where a page cannot be restored.
        """
        pages = self._pages_of(array)
        return self._resident(array, pages) if pages else contextlib.nullcontext(array)

    def _pages_of(self, array: object) -> tuple[int, int] | None:
        """Return the first page of an array and how many it covers; None: it has no bytes. Raise BadArgument."""
        self._enter()
        address, nbytes = range_of(array)
        if not nbytes:
            return None
        try:
            return self._pager.find(address, nbytes)
        except BadArgument:
            raise BadArgument(
                "the array lies in no array of this memory: it is made by memory.array(), or a view of such"
            ) from None

    # How it stands.

    @property
    def statistics(self) -> PagedStatistics:
        """What it did so far, and what it has now; added up when it is asked for."""
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
        """Verify the checksum of every compressed page, and say what is damaged, by array. Nothing is touched.

        Other threads may go on. Of pages that are in memory, what is compressed counts if nobody wrote to them since.
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

    # The watcher's part.

    def _make_room(self) -> bool:
        """Move cold pages to the backing file. Return whether that made room in the pool."""
        store = self._store
        resources = store._resources  # noqa: SLF001 - as above
        if resources.backing is None:
            return False
        pool, held = resources.pool, resources.pool.held_bytes
        resources.full.full = True  # whatever it holds, it has no room for what the pager has
        try:
            moved = store.shrink()
            if pool.max_bytes is not None and pool.max_bytes - pool.held_bytes < _RUN_BYTES:
                moved += self._region._write_back_coldest(_RUN_BYTES // self._page_size)  # noqa: SLF001 - a part of it
                store.compact()
        except (OSError, MemoryError):
            return False
        return moved > 0 or pool.held_bytes < held

    def _excess(self, *, stuck: bool) -> str:
        """Say that the budget is exceeded, and why; nothing if it is not. `stuck`: there was no room to be made."""
        figures = self._pager.figures()
        now, budget = figures["resident_pages"], figures["budget_pages"]
        if now <= (budget if stuck else budget + budget // 8):  # a little, for a moment, is no news
            return ""
        pool, file = self._store._resources.pool, self._store._resources.backing  # noqa: SLF001 - as above
        limit = pool.max_bytes
        if figures["pinned_pages"] >= budget:
            cause = "resident() keeps as much"
        elif limit is not None and file is None and limit - pool.held_bytes < _RUN_BYTES:
            cause = f"the pool is at its limit of {limit:,} bytes: raise max_pool_bytes, or give it a backing file"
        elif not stuck:
            taker = "others are compressed" if file is None else "the backing file takes them"
            cause = f"pages come faster than {taker}"
        elif limit is None:
            cause = "there is no memory for compressed pages"
        else:
            cause = (
                "the pool is at its limit, and the backing file takes nothing: it is full, or fails"
            )
        size = self._page_size
        return (
            f"a PagedMemory keeps {now * size:,} bytes in memory, more than its "
            f"budget of {budget * size:,}, as {cause}"
        )

    def _close(self) -> None:
        self._region.close()  # the pager's threads end before what they use
        wait = not self._store._resources.in_a_call_of_the_file()  # noqa: SLF001 - as above
        if wait and self._watcher is not threading.current_thread():
            self._watcher.join()
        self._store.close()
        self._engine.close()


_FIGURES = tuple(name for name in PagedStatistics.__slots__ if not name.endswith(("_bytes", "_s")))
"""Fields that are figures of the core's."""


def _open(region: Region, pages: int, budget: int, threads: int) -> None:
    """Make the pager. Raise PagingUnavailable, or LimitReached, which names the limit."""
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
    """End the pager of a memory that nobody has any more, and free its pages; the store goes with its last reference."""
    if os.getpid() == pid:
        region.close()


def _memory_limit() -> tuple[int, str] | None:
    try:
        return memory_limit()
    except (OSError, ValueError, IndexError):  # /proc is not mounted, or unlike any known one
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
            f"pages are compressed by threads that run no Python, and {codec.algorithm} needs it here: "
            "take lz4, lz4hc or zstd"
        )
    return codec


def _as_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    try:
        kind = np.dtype(dtype)
    except (TypeError, ValueError) as error:
        raise BadArgument(f"dtype is a type of NumPy's, not {shown(dtype)}: {error}") from error
    if kind.hasobject:
        raise NotStorable(
            f"an array of {kind} refers to Python objects, which lie elsewhere: take a type without"
        )
    return np.empty(0, kind).dtype if kind.subdtype is None else kind  # "S" is of one character


def _as_shape(shape: Shape) -> tuple[int, ...]:
    try:
        lengths = (operator.index(shape),)  # type: ignore[arg-type] # that is the question
    except TypeError:
        try:
            lengths = tuple(map(operator.index, shape))  # type: ignore[arg-type, assignment]
        except TypeError:
            raise BadArgument(f"shape is an integer or several, not {shown(shape)}") from None
    if any(length < 0 for length in lengths):
        raise BadArgument(f"a shape has lengths from 0 on, not {shown(shape)}")
    return lengths


def paged_empty(
    shape: Shape,
    dtype: npt.DTypeLike = "f8",
    *,
    budget: SupportsIndex,
    page_size: SupportsIndex = 4096,
    **options: Any,
) -> Array:
    """Make one array of zeros with a PagedMemory of its own, which lives as long as the array and its views.

    `budget` is what of it may lie in RAM as it is, in bytes; one above the array's size is as good as that.
    `options` are those of PagedMemory. `batchzip.paged.memory_of` gives the memory. Raises as PagedMemory and its `array`.

    Examples:
        >>> import batchzip
        >>> x = batchzip.paged_empty((1000, 1000), "f4", budget=1 << 20)  # its memory goes with it
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
    """Return the PagedMemory that an array, or a view of one, is of. Raise BadArgument if it is of none.

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
        raise BadArgument(f"{shown(array)} is of no PagedMemory")
    return memory
