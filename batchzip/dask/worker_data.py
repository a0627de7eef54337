"""WorkerData: a Dask worker's data, whose cold values are compressed before any go to disk.

    Worker(data=WorkerData)   or   Worker(data=(WorkerData, {"compressed": 0.4, …}))

    data[key] = value ─▶ live values, the most recently used ones
                            │ too many bytes, or the process is too large: the coldest
                            ▼
                         CompressedValues: pages in a SwapStore's pool ── frames that do not ──┐
                            │ the pool is at its limit: the coldest pages, compressed  shrink  │
                            ▼                                                                  ▼
                         nameless files in the worker's local directory

A value that is used becomes live again. Its compressed form is kept while there is room, so
evicting it again unchanged costs almost nothing. A value that cannot be pickled, or for which there
is no room anywhere, stays live, and the log says so. If it cannot be pickled, other values make
room instead.

Live values and compressed pages share the memory that Dask's `target` leaves to values. The pool
grows at the expense of live values, up to its limit. Both are memory of the process. When Dask
finds the process too large, the pool's limit is lowered to its part of what the rest of the process
leaves, and pages beyond that go to disk.

WorkerData has everything that Dask uses of its own buffer: `fast` and `evict` for memory
management; `spilled_total`, `cumulative_metrics`, `memory` and `disk` for heartbeats, Prometheus
and the dashboard.

Dask's workers do not close their data. This one is closed nevertheless; see worker_end.py.

Dask uses it in the worker's event loop. It is thread-safe all the same. zict's own buffer is not
quite: it could lose a value that was set while the old one was being evicted. Lock order: the
buffer's lock, then the lock of the live values. Neither is held while a value's own code runs.
"""

from __future__ import annotations

import logging
import sys
import traceback
import weakref
from collections import defaultdict
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zict
import zict.common
from distributed.metrics import context_meter
from distributed.spill import SpilledSize
from distributed.system import MEMORY_LIMIT
from distributed.utils import RateLimiterFilter
from distributed.worker import Worker

from batchzip.arguments.checks import check_kind
from batchzip.backend import Backend
from batchzip.dask.compressed_values import CompressedValues, NoRoom, NotPicklable, size_of
from batchzip.dask.memory_limits import MemoryLimits, ValueRoom
from batchzip.dask.worker_end import end_with
from batchzip.engine import Engine
from batchzip.errors import BadArgument, ClosedError
from batchzip.store import Counters
from batchzip.system.lifetime import Closing
from batchzip.wording import shown

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    from batchzip.dask.compressed_values import Key
    from batchzip.dask.memory_limits import MemoryLimit

_LOG = logging.getLogger("batchzip.dask")
_LOG.addFilter(RateLimiterFilter("There is no room to compress"))

_PAGE_SIZE = 64 << 10
"""Bytes of a page. Values have megabytes, and one page of 64 KiB compresses better than 16 of 4
KiB."""

_LOOKED_AT = 32
"""Values that are searched for one that nobody uses. Small values are often shared by many keys."""

_UNUSED = 2
"""Reference count of a value that only the dictionary has: its own reference, and getrefcount's
argument."""


class WorkerData(zict.Buffer[Any, Any], Closing):
    """The mapping for `distributed.Worker(data=…)`, `Nanny(data=…)` or `LocalCluster(data=…)`.

    `worker_local_directory`  Given by Dask. Nameless files are made there; they leave no traces.
    `memory_limit`            "auto": the worker's own limit. Otherwise as Dask takes it: bytes, a
                              text such as "4 GiB", or a fraction of the machine's memory; None or 0
                              for no limit.
    `live`                    Fraction of the limit for live values, by `dask.sizeof`. Default:
                              Dask's setting `distributed.worker.memory.target` less the compressed
                              pages, but at least half of it.
    `compressed`              Fraction of the limit for compressed pages. Beyond it they go to disk.
                              Default: half of `target`, or half of `spill` if that is off.
    `engine`                  Keyword arguments of the Engine: algorithm, level, shuffle, … Default:
                              lz4, in the worker's own process. Without `shuffle`, each large buffer
                              of a value is compressed in the way that makes it smallest: as bytes,
                              or as numbers of 2, 4 or 8 bytes.
    `max_disk_bytes`          Limit of all files in bytes. Default: Dask's setting `max-spill`.

    Live values are returned as they are, others as equal copies. Raises BadArgument for invalid
    arguments. It is closed with its worker, and is empty afterwards.

    Examples:
        >>> import batchzip.dask
        >>> from distributed import Client, LocalCluster
        >>> here = {"processes": False, "dashboard_address": ":0", "memory_limit": "1 GiB"}
        >>> data = batchzip.dask.WorkerData
        >>> with LocalCluster(n_workers=1, data=data, **here) as cluster, Client(cluster) as client:
        ...     future = client.submit(bytes, 1000)
        ...     len(future.result())
        1000
    """

    def __init__(
        self,
        worker_local_directory: str | os.PathLike[str],
        *,
        memory_limit: MemoryLimit = "auto",
        live: float | None = None,
        compressed: float | None = None,
        engine: Mapping[str, Any] | None = None,
        max_disk_bytes: int | None = None,
    ) -> None:
        self._limits = MemoryLimits.make(memory_limit, live, compressed, max_disk_bytes)
        options: dict[str, Any] = {"algorithm": "lz4", "backend": "sequential"}
        if engine is not None:
            check_kind(engine, "engine", Mapping)
            options.update(engine)
        options.setdefault("page_size", _PAGE_SIZE)
        if not isinstance(options["backend"], Backend):  # an instance would be closed with it
            Engine(**options).close()  # raises if the options are wrong
        try:
            folder = Path(worker_local_directory)
        except TypeError:
            folder = None
        if folder is None or not folder.is_dir():
            raise BadArgument(
                f"worker_local_directory must be a directory, not {shown(worker_local_directory)}"
            )
        self._values = CompressedValues(str(folder), options, self._limits.disk)
        # A value that is still in use somewhere is returned itself, not restored a second time.
        slow = zict.Cache(self._values, zict.WeakValueMapping())
        super().__init__(fast={}, slow=slow, n=sys.maxsize, weight=_weight)
        self.fast: _Live = _Live(self)
        self._room: ValueRoom | None = None
        self.cumulative_metrics: defaultdict[tuple[str, str], float] = defaultdict(float)
        """By activity and unit, as in Dask's own buffer. "disk-read" and "disk-write" count values
        that are not live, wherever they are, in uncompressed bytes."""
        self._restoring: dict[Key, object] = {}
        """Keys that are being restored. Setting or deleting a value removes its key."""

    def __setitem__(self, key: Key, value: object) -> None:
        """Set a value. Compress colder ones to make room. Never raise for lack of room."""
        self._enter()
        size = size_of(value)
        with self._counting():
            with self.lock, self.fast.lock:
                old = self.fast.d.get(key)
                self._restoring.pop(key, None)
                zict.common.discard(self.slow, key)
                self._values.forget(key)
                self.fast.put(key, value, size)
            del old  # only now: it may have a finalizer
            self.fast.evict_until_below_target()

    def __delitem__(self, key: Key) -> None:
        with self.lock:
            old = self.fast.d.get(key)
            self._restoring.pop(key, None)
            super().__delitem__(key)
            zict.common.discard(self.slow, key)  # it may be there while its eviction ends
            self._values.forget(key)
        del old

    def __getitem__(self, key: Key) -> object:
        """Return a value, which becomes live. Compress colder ones to make room."""
        self._enter()
        with self._counting():
            size = self.fast.weights.get(key)
            if size is not None:
                context_meter.digest_metric("memory-read", 1, "count")
                context_meter.digest_metric("memory-read", size, "bytes")
            return super().__getitem__(key)

    def __len__(self) -> int:
        with self.lock, self.fast.lock:
            leaving = list(self.fast.leaving.items())
            not_there = sum(
                key in self.slow and (changed or key in self.fast) for key, changed in leaving
            )
            return len(self.fast) + len(self.slow) - not_there

    def __contains__(self, key: object) -> bool:
        if key in self.fast:
            return True
        gone = self._is_gone(key)  # first, because it becomes false when an eviction ends
        return key in self.slow and not gone

    def __iter__(self) -> Iterator[Key]:
        return (key for key in super().__iter__() if key in self)

    def _is_gone(self, key: object) -> bool:
        """Return whether a value was deleted during its eviction. `slow` may still have it."""
        return self.fast.leaving.get(key, False) and key not in self.fast

    def slow_to_fast(self, key: Key) -> object:
        """Restore a value. Make it live unless it exceeds the limit of all live values."""
        if self._is_gone(key):
            raise KeyError(key)
        mark = self._restoring.setdefault(key, object())
        try:
            with self.unlock():
                value = self.slow[key]
                size = size_of(value)
        except BaseException as error:
            if self._restoring.get(key) is mark:
                del self._restoring[key]
            elif isinstance(error, KeyError) and key in self:  # another thread restored it
                try:
                    return self.fast[key]
                except KeyError:
                    return self.slow_to_fast(key)
            raise
        if self._restoring.get(key) is mark:
            del self._restoring[key]
            if size <= self.n:
                with self.fast.lock:
                    self.fast.put(key, value, size)
                    del self.slow[key]
        with self.unlock():
            self.fast.evict_until_below_target()
        return value

    def evict(self) -> int:
        """Compress the coldest value that can be. Return its bytes, or -1. Never raise."""
        if self._values.closed:
            return -1
        with self._counting():
            freed = self._divide(pressed=True)
            return max(self.fast.evict_coldest(), freed or -1)

    def _divide(self, *, pressed: bool = False) -> int:
        """Divide memory between live values and compressed pages. Return the pool's freed bytes.

        `pressed` says that Dask finds the process too large. The pool makes room then, too.
        """
        values, room = self._values, self._room
        if room is None:
            return 0
        held = values.pool_bytes
        room.look(held, self.fast.total_weight, now=pressed)
        values.max_pool_bytes = room.compressed(held, pressed=pressed)
        left = values.pool_bytes if pressed else held
        self.n = room.live(left)
        return max(0, held - left)

    def _pool_is_too_large(self) -> bool:
        """Return whether compressed pages use more than the process leaves to them."""
        if self._room is None or not (held := self._values.pool_bytes):
            return False
        self._room.look(held, self.fast.total_weight, now=True)
        limit = self._room.compressed(held, pressed=True)
        return limit is not None and held > limit

    def pop(self, key: Key, default: object = None) -> object:
        """Raise NotImplementedError, as Dask's buffer does: it would restore a discarded value."""
        raise NotImplementedError(f"use `del` to discard {key!r}")

    @property
    def memory(self) -> Mapping[Key, object]:
        """Return the live values, for reading only. Dask's buffer has the same name for them."""
        return self.fast

    @property
    def disk(self) -> Mapping[Key, object]:
        """Return the other values, for reading only, whether they are in RAM or on disk."""
        return self.slow

    @property
    def spilled_total(self) -> SpilledSize:
        """Return the uncompressed bytes of values that are not live, and the bytes on disk."""
        return SpilledSize(self._values.whole_bytes, self._values.disk_bytes)

    @property
    def counters(self) -> Counters:
        """Return the counters of the store that has the compressed pages."""
        store = self._values.store
        if store is None:
            return Counters(**{field.name: 0 for field in fields(Counters)})
        return store.counters

    @contextmanager
    def _counting(self) -> Iterator[None]:
        def count(activity: Any, value: float, unit: str) -> None:
            self.cumulative_metrics[activity, unit] += value

        with context_meter.add_callback(count):
            yield

    def _enter(self) -> None:
        if self._room is None:
            self._join()
        if self._values.closed:
            raise ClosedError("this worker's data is closed, because its worker is closed")

    def _join(self) -> None:
        """Find the worker. Its limit applies, and its end closes this object.

        The worker does not exist yet when it makes its data, but it does when it stores a value.
        """
        workers = [one for one in _all_workers() if one.data is self]
        limit: int | None = MEMORY_LIMIT
        process: Callable[[], int] | None = None
        for worker in workers:
            limit = worker.memory_manager.memory_limit
            process = worker.monitor.get_process_memory
            if not end_with(worker, self):
                self.close()
        self._room = ValueRoom(self._limits, limit, process)
        self._divide()

    def close(self) -> None:
        """Release everything, including the values. Further calls do nothing."""
        self._values.close()
        self.fast.close()
        self.fast.clear()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} values, {len(self.fast)} of them live>"

    __str__ = __repr__

    def __del__(self) -> None:
        """Do nothing. The parts end themselves, and the collector may have ended some already."""


class _Live(zict.LRU[Any, Any]):
    """The live values. A value that cannot be compressed stays, and the next coldest makes room.

    zict's LRU stops at the first one that cannot. After that it would not compress anything.
    """

    def __init__(self, data: WorkerData) -> None:
        super().__init__(sys.maxsize, {}, weight=_weight)
        self._slow = data.slow
        self._data = weakref.proxy(data)
        self._stuck: set[Key] = set()
        """Keys whose values cannot be pickled."""
        self.leaving: dict[object, bool] = {}
        """Keys whose values are being compressed, and whether they were set or deleted
        meanwhile."""
        self._told: set[tuple[str, str]] = set()

    def __bool__(self) -> bool:
        """Return whether live values or the pool can make room. Dask asks for this."""
        return len(self) > 0 or self._data._pool_is_too_large()  # noqa: SLF001 - they are one

    def set_noevict(self, key: Key, value: object) -> None:
        """Set a value without compressing any."""
        self.put(key, value, size_of(value))

    def put(self, key: Key, value: object, size: int) -> None:
        """Set a value whose size is known, without compressing any."""
        with self.lock:
            self.discard(key)
            self._stuck.discard(key)
            self.d[key] = value
            self.order.add(key)
            if size > self.n:
                self.heavy.add(key)
            self.weights[key] = size
            self.total_weight += size

    def __delitem__(self, key: Key) -> None:
        with self.lock:
            super().__delitem__(key)
            if key in self.leaving:
                self.leaving[key] = True

    def evict_until_below_target(self, n: float | None = None) -> None:
        """Compress the coldest values until the live ones fit in `n` bytes, or none can be."""
        for _ in range(len(self)):  # bounded, because values may be set meanwhile
            self._data._divide()  # noqa: SLF001
            most = self.n if n is None else n
            if self.closed or self.total_weight + self.offset <= most or self.evict_coldest() < 0:
                return

    def evict_coldest(self) -> int:
        """Compress the coldest value that can be. Return its bytes, or -1 if none can."""
        for _ in range(len(self)):
            with self.lock:
                key = self._coldest()
                is_heavy = key in self.heavy
            if key is None:
                return -1
            try:
                return int(self.evict(key)[2])
            except KeyError:  # another thread evicted it
                continue
            except NoRoom as refused:
                if not self.closed:
                    _LOG.warning("There is no room to compress %s: %s", shown(key), _said(refused))
                if not is_heavy:  # if even a small value has no room, others have none, either
                    return -1
            except NotPicklable as refused:
                self._tell(key, refused)
        return -1

    def _coldest(self) -> Key | None:
        """Return the key of the coldest value that can be compressed, preferably an unused one."""
        keys = chain(self.heavy, self.order)
        able = (key for key in keys if not (key in self._stuck or key in self.leaving))
        some = list(islice(able, _LOOKED_AT))
        # Compressing a value that a task still uses would free no memory.
        unused = (key for key in some if sys.getrefcount(self.d[key]) <= _UNUSED)
        return next(unused, some[0] if some else None)

    def evict(self, key: Any = None) -> tuple[Any, Any, float]:
        """Compress a value, by default the coldest. Return its key, the value and its size.

        Return (None, None, 0) if it was set or deleted meanwhile. Raise KeyError, NoRoom or
        NotPicklable.
        """
        with self.lock:
            key = self._coldest() if key is None else key
            if key in self.leaving:
                return None, None, 0
            value = self.d[key]
            self.heavy.discard(key)
            self.leaving[key] = False
        undo = False
        try:
            self._slow[key] = value
            undo = True
            with self.lock:
                if self.leaving[key]:
                    return None, None, 0
                undo = False
                size = self.weights[key]
                super().__delitem__(key)
                return key, value, size
        except NotPicklable:
            with self.lock:
                if not self.leaving[key]:
                    self._stuck.add(key)
            raise
        finally:
            if undo:
                zict.common.discard(self._slow, key)
                self._data._values.forget(key)  # noqa: SLF001
            with self.lock:
                del self.leaving[key]

    def _tell(self, key: Key, refused: NotPicklable) -> None:
        """Log a value that cannot be pickled, once per type: there may be thousands of them."""
        kind = type(self.d.get(key)).__qualname__
        said = kind, type(refused.__cause__).__qualname__
        if said not in self._told:
            self._told.add(said)
            _LOG.warning(
                "Failed to pickle %s, of type %s. It and others like it stay in memory: %s",
                shown(key),
                kind,
                _said(refused),
            )


def _all_workers() -> list[Worker]:
    """Return this process's workers. Other threads may be making some."""
    while True:
        with suppress(RuntimeError):
            return list(Worker._instances)  # noqa: SLF001


def _said(refused: NoRoom | NotPicklable) -> str:
    """Return the last line of the error's traceback, whatever its own `str` does."""
    return "".join(traceback.format_exception_only(refused.__cause__)).strip()


def _weight(key: Key, value: object) -> int:
    del key
    return size_of(value)
