"""WorkerData: a Dask worker's data, whose cold values are compressed in RAM before any goes to disk.

    Worker(data=(WorkerData, {"memory_limit": …}))

    data[key] = value ─▶ live values, the most recently used ones
                            │ too many, or the process too large: the coldest
                            ▼
                         CompressedMapping: pages in the pool of a SwapStore
                            │ the pool is at its limit: the coldest pages, as they are compressed
                            ▼
                         an unnamed file in the worker's local directory

Values are taken apart by Dask's own serialisation, so that arrays and frames are compressed from where they
lie; what only cloudpickle can pickle is taken, too. A value that is used is live again. What cannot be
serialised, or finds no room anywhere, stays live, and the log says so.

It has what Dask asks of a mapping that takes part in its memory management (`fast`, `evict`,
`spilled_total`), so live values are evicted, too, when the process grows for another reason.

As Dask's own buffer, it is used by the worker's event loop; zict's locks make it thread-safe.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import zict
from dask.sizeof import sizeof
from dask.utils import parse_bytes
from distributed.protocol import deserialize, serialize
from distributed.spill import SpilledSize

from batchzip.checks import as_fraction
from batchzip.engine import Engine
from batchzip.errors import BadArgument, BatchzipError
from batchzip.mapping import CompressedMapping
from batchzip.store import Counters, SwapStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from batchzip.lifetime import Closing

    Key: TypeAlias = str | int | float | tuple[Any, ...]

_LOG = logging.getLogger("batchzip.dask")

_PAGE_SIZE = 64 << 10
"""Bytes of a page: values have megabytes, and a page of 64 KiB compresses better than 16 of 4."""


class WorkerData(zict.Buffer[Any, Any]):
    """The mapping for `distributed.Worker(data=…)`, `Nanny(data=…)` or `LocalCluster(data=…)`.

    `worker_local_directory`  given by Dask: where the file lies that has neither name nor traces.
    `memory_limit`            the worker's own memory_limit: bytes, or a text as "4 GiB".
    `live`                    fraction of it that live values may have, by `dask.sizeof`.
    `compressed`              fraction of it that compressed pages may have; then they go to disk.
    `engine`                  keyword arguments of the Engine: algorithm, level, shuffle, …; lz4 in the
                              worker's own process, without others.
    `max_disk_bytes`          bytes the file may have, or None.

    Live values are handed out as they are, compressed ones as equal copies.
    """

    def __init__(
        self,
        worker_local_directory: str,
        *,
        memory_limit: int | str,
        live: float = 0.3,
        compressed: float = 0.3,
        engine: Mapping[str, Any] | None = None,
        max_disk_bytes: int | None = None,
    ) -> None:
        limit = _bytes_of(memory_limit)
        for name, fraction in (("live", live), ("compressed", compressed)):
            as_fraction(fraction, name)
        options: dict[str, Any] = {"algorithm": "lz4", "backend": "sequential"}
        made = Engine(**{"page_size": _PAGE_SIZE, **options, **(engine or {})})
        try:
            self._store = SwapStore(
                made,
                max_pool_bytes=int(limit * compressed),
                backing=worker_local_directory,
                max_backing_bytes=max_disk_bytes,
            )
        except BaseException:
            made.close()
            raise
        mapping = CompressedMapping(self._store, serializer="pickle")
        self._held: tuple[Closing, ...] = (mapping, self._store, made)
        self._slow = _Compressed(mapping)
        # A value that is still in use somewhere is not made a second time.
        slow = zict.Cache(self._slow, zict.WeakValueMapping())
        super().__init__(fast={}, slow=slow, n=int(limit * live), weight=_weight)
        self._complained: set[Key] = set()

    def __setitem__(self, key: Key, value: object) -> None:
        """Take a value; colder ones are compressed to make room. It never raises for want of room."""
        self._complained.discard(key)
        self._trying(lambda: super(WorkerData, self).__setitem__(key, value))

    def __getitem__(self, key: Key) -> object:
        """Give a value, which is live then; colder ones are compressed to make room."""
        try:
            return super().__getitem__(key)
        except (BatchzipError, OSError, MemoryError):
            # Making room failed, and the value is live; or it could not be read.
            if key not in self.fast:
                raise
            return self.fast[key]

    def __delitem__(self, key: Key) -> None:
        super().__delitem__(key)
        self._complained.discard(key)

    def evict(self) -> int:
        """Compress the coldest live value; its bytes, or -1 if that failed. It never raises."""
        evicted: list[int] = []
        if self.fast:
            self._trying(lambda: evicted.append(int(self.fast.evict()[2])))
        return evicted[0] if evicted else -1

    def _trying(self, work: Callable[[], object]) -> None:
        """Do what may compress values: what fails stays live (zict's LRU sees to that), and is logged."""
        try:
            work()
        except (BatchzipError, OSError, MemoryError) as error:
            if self._slow.refused not in self._complained:
                self._complained.add(self._slow.refused)
                _LOG.warning("%r is kept in memory as it is: %s", self._slow.refused, error)

    def pop(self, key: Key, default: object = None) -> object:
        """Refused, as by Dask's own buffer: it would restore what is to be thrown away."""
        raise NotImplementedError(f"use `del` to discard {key!r}")

    @property
    def spilled_total(self) -> SpilledSize:
        """Bytes that values which are not live would have in memory, and bytes on disk."""
        return SpilledSize(self._slow.whole_bytes, self._store.counters.backing_file_size)

    @property
    def counters(self) -> Counters:
        """The store's counters: what compressed values take in memory, and on disk."""
        return self._store.counters

    def close(self) -> None:
        """Release everything, values included; further calls do nothing."""
        for one in self._held:
            one.close()

    def __del__(self) -> None:
        """Leave it to the parts: the collector may have ended some of them already."""


class _Compressed(MutableMapping[Any, Any]):
    """A CompressedMapping for any key and value that Dask has."""

    def __init__(self, mapping: CompressedMapping) -> None:
        self._mapping = mapping
        self._weights: dict[Key, int] = {}
        self.whole_bytes = 0
        """Bytes its values would have in memory."""
        self.refused: Key = ""
        """The key that was tried last."""

    def __setitem__(self, key: Key, value: object) -> None:
        self.refused = key
        self._mapping[key,] = _Framed(value)
        self.whole_bytes += (weight := _weight(key, value)) - self._weights.get(key, 0)
        self._weights[key] = weight

    def __getitem__(self, key: Key) -> object:
        return self._mapping[key,]

    def __delitem__(self, key: Key) -> None:
        del self._mapping[key,]
        self.whole_bytes -= self._weights.pop(key)

    def __contains__(self, key: object) -> bool:
        return key in self._weights

    def __iter__(self) -> Iterator[Key]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


class _Framed:
    """A value that pickles as the frames of Dask's serialisation, and comes back as itself."""

    __slots__ = ("_value",)

    def __init__(self, value: object) -> None:
        self._value = value

    def __reduce__(self) -> tuple[Any, ...]:
        header, frames = serialize(self._value, serializers=("dask", "pickle"), on_error="raise")
        return _restore, (header, [pickle.PickleBuffer(frame) for frame in frames])


def _restore(header: dict[str, Any], frames: Sequence[memoryview]) -> object:
    return deserialize(header, frames)


def _weight(key: Key, value: object) -> int:
    del key
    return cast("int", sizeof(value))


def _bytes_of(memory_limit: int | str) -> int:
    try:
        limit = int(parse_bytes(memory_limit))
    except (TypeError, ValueError):
        limit = 0
    if limit < 1:
        raise BadArgument(
            f"memory_limit is the worker's, in bytes or as '4 GiB', not {memory_limit!r}"
        )
    return limit
