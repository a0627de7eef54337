"""CompressedValues: a worker's values that are not live, as pages of a store.

    values[key] = value ─▶ Dask's serialisation ─▶ frames
                                                     │
                                                  Sampler ─┬─▶ CompressedMapping ─▶ SwapStore
                                                           └─▶ RawFiles: frames that do not shrink

Dask's own serialisation splits a value into frames, so arrays are compressed from where they lie.
Values that it would change are pickled instead (whole_values.py), with cloudpickle as the last
resort.

Engines, store and files are made with the first value. A worker that never compresses has none.

Errors of a value's own code do not concern other values. NotPicklable is about one value; NoRoom is
about the whole store.
"""

from __future__ import annotations

import errno
import itertools
import os
import pickle
import threading
from collections.abc import MutableMapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from distributed.metrics import context_meter
from distributed.protocol import deserialize, serialize
from distributed.sizeof import safe_sizeof
from xxhash import xxh3_128

from batchzip.backend import Backend
from batchzip.dask.raw_files import RawFiles
from batchzip.dask.sampling import Sampler
from batchzip.dask.whole_values import SERIALIZERS
from batchzip.engine import Engine
from batchzip.errors import ClosedError, CorruptValue, NotStorable, StoreRejected
from batchzip.mapping import CompressedMapping
from batchzip.store import SwapStore
from batchzip.store.backing.file_io import open_storage
from batchzip.system.lifetime import Closing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from batchzip.arguments.buffers import Flat
    from batchzip.dask.raw_files import FileRange
    from batchzip.store.backing.file_io import Storage

    Key: TypeAlias = str | int | float | tuple[Any, ...]

_UNKNOWN_SIZE = 1_000_000
"""Assumed bytes of a value that does not report its size, as in Dask."""

_PLAIN = 1
"""Element size of buffers that are compressed without shuffling."""

_ELEMENTS = (2, 4, 8)
"""Element sizes in bytes for which the bytes of elements are shuffled; see `shuffle` of Engine."""

_SAMPLED = 64 << 10
"""Bytes from which a buffer is sampled. Sampling takes about 0.1 ms."""

_FULL = 0.9
"""Fraction of the pool's limit up to which new values may fill it while leftovers can be freed."""


class Refused(Exception):
    """A value was not compressed. `__cause__` says why."""

    def __init__(self, key: Key) -> None:
        super().__init__(key)
        self.key = key


class NotPicklable(Refused):
    """The value cannot be serialised: its own code or its content does not allow it."""


class NoRoom(Refused):
    """The store cannot take this value now, nor any other."""


def size_of(value: object) -> int:
    """Return the bytes of a value in memory, as it reports them. Never raise."""
    try:
        return max(0, int(safe_sizeof(value)))
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - a value's own code raises anything, or returns no number
        return _UNKNOWN_SIZE


class Parts(NamedTuple):
    """A serialised value: its header, and where its frames are."""

    size: int
    """Bytes of the value in memory."""
    header: bytes
    """Dask's description of the frames, pickled."""
    digest: bytes
    """A digest of header and frames. If it is equal, the value has not changed."""
    number: int
    """The value's number. Its keys in the mapping are (number, element size)."""
    ways: tuple[int | None, ...]
    """For each frame: its element size, _PLAIN, or None for a frame in `raw`."""
    raw: FileRange | None


class CompressedValues(MutableMapping[Any, Any]):
    """Maps Dask's keys to values that are kept compressed, and knows their sizes. Thread-safe.

    `folder`          where the nameless files are made; they leave no traces.
    `engine`          keyword arguments for Engine.
    `max_disk_bytes`  the limit of all files together, or None.

    Setting an item raises NotPicklable or NoRoom. Reading one raises what the value's own code
    raises, or what the mapping raises.

    Deleting a value leaves its compressed form here. If the value is set again and its digest is
    the same, nothing is compressed or written a second time. `forget` removes this leftover; so
    does a lack of room.
    """

    def __init__(self, folder: str, engine: Mapping[str, Any], max_disk_bytes: int | None) -> None:
        self._max_pool_bytes: int | None = None
        self._folder = folder
        self._engine = engine
        self._max_disk_bytes = max_disk_bytes
        self._values: dict[Key, Parts] = {}
        self._left: dict[Key, Parts] = {}
        """The leftovers of deleted values, the oldest first."""
        self._lock = threading.RLock()
        """Guards the move of a value between the two dictionaries. A key's code may run under
        it."""
        self._places: dict[str, _Places] = {}
        """The only key is "places". It appears once the storage is made."""
        self.closed = False

    def __setitem__(self, key: Key, value: object) -> None:
        try:
            with context_meter.meter("serialize"):
                header, frames = serialize(value, serializers=SERIALIZERS, on_error="raise")
                buffers = [pickle.PickleBuffer(frame).raw() for frame in frames]
                head = pickle.dumps(header, pickle.HIGHEST_PROTOCOL)
                digest = _digest(head, buffers)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever the value's own code raises
            cause = _own_error(error)
            kind = NoRoom if isinstance(cause, MemoryError) else NotPicklable
            raise kind(key) from cause
        left = self._left.pop(key, None)
        if left is not None and left.digest == digest:
            parts = left
        else:
            self._drop(left)
            digest, parts = self._write(key, head, buffers, digest)
            _count("disk-write", buffers)
        parts = parts._replace(size=size_of(value), header=head, digest=digest)
        with self._lock:
            replaced = self._values.get(key)
            self._values[key] = parts
        self._drop(replaced)
        if self.closed:  # by another thread meanwhile
            self.close()

    def _write(
        self, key: Key, head: bytes, buffers: Sequence[Flat], digest: bytes
    ) -> tuple[bytes, Parts]:
        """Store frames. Return their digest as stored. Raise NotPicklable or NoRoom."""
        try:
            with context_meter.meter("compress"):
                parts = self._place(buffers)
                if _digest(head, buffers) != digest:
                    # A task is changing the value, so the stored frames may match no digest.
                    self._drop(parts)
                    copies = [memoryview(bytes(buffer)) for buffer in buffers]
                    digest, parts = _digest(head, copies), self._place(copies)
                return digest, parts
        except NotStorable as error:
            raise NotPicklable(key) from (error.__cause__ or error)
        except Exception as error:
            raise NoRoom(key) from error

    def _place(self, buffers: Sequence[Flat]) -> Parts:
        """Compress frames, or write them uncompressed. Raise what the store raises."""
        places = self._open()
        ways = tuple(map(places.way_of, buffers))
        self._leave_room(sum(map(len, buffers)) // 2)
        raw = (None,) * len(ways)
        with suppress(StoreRejected, OSError):
            return places.write(buffers, ways, self._max_disk_bytes)
        # A store without a pool rejects small values.
        with suppress(StoreRejected, OSError):
            return places.write(buffers, raw, self._max_disk_bytes)
        while self._left:
            self._forget_one()
        return places.write(buffers, raw, self._max_disk_bytes)

    def __getitem__(self, key: Key) -> object:
        parts = self._values[key]
        try:
            with context_meter.meter("decompress"):
                frames = self._open().read(key, parts)
        except (KeyError, CorruptValue, ClosedError):
            if self._values.get(key) is not parts:  # another thread replaced or deleted it
                return self[key]
            raise
        _count("disk-read", frames)
        try:
            with context_meter.meter("deserialize"):
                return deserialize(pickle.loads(parts.header), frames)
        except Exception as error:
            error.add_note(f"raised while the value of key {key!r} was restored")
            raise

    def __delitem__(self, key: Key) -> None:
        with self._lock:
            parts = self._values.pop(key)
            older = self._left.pop(key, None)
            self._left[key] = parts
        self._drop(older)

    def forget(self, key: Key) -> None:
        """Free the leftover of a deleted value, if any."""
        self._drop(self._left.pop(key, None))

    def _drop(self, parts: Parts | None) -> None:
        places = self._places.get("places")
        if parts is not None and places is not None:
            with suppress(ClosedError):
                places.erase(parts)
                places.share_disk(self._max_disk_bytes)

    def _leave_room(self, size: int) -> None:
        """Free leftovers in the pool until `size` more bytes fit, or none is left."""
        limit = self._max_pool_bytes
        places = self._places.get("places")
        if limit is None or places is None:
            return
        while self._left and places.pool_bytes + size > limit * _FULL:
            self._forget_one()

    def _forget_one(self) -> None:
        with suppress(StopIteration, RuntimeError):  # another thread may have taken it
            self.forget(next(iter(self._left)))

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[Key]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    @property
    def whole_bytes(self) -> int:
        """Return the bytes that the values would have in memory. They are added up at each call."""
        return sum(parts.size for parts in list(self._values.values()))

    @property
    def pool_bytes(self) -> int:
        """Return the bytes of memory that compressed pages use, leftovers included."""
        places = self._places.get("places")
        return 0 if places is None else places.pool_bytes

    @property
    def disk_bytes(self) -> int:
        """Return the bytes of the files, leftovers included."""
        places = self._places.get("places")
        return 0 if places is None else places.disk_bytes

    @property
    def store(self) -> SwapStore | None:
        """Return the store, or None before it is made and after it is closed."""
        places = self._places.get("places")
        return None if places is None or places.store.closed else places.store

    @property
    def max_pool_bytes(self) -> int | None:
        """Return the limit of compressed pages in bytes, or None. A lower one evicts to disk."""
        return self._max_pool_bytes

    @max_pool_bytes.setter
    def max_pool_bytes(self, limit: int | None) -> None:
        self._max_pool_bytes = limit
        store = self.store
        if store is None or store.max_pool_bytes == limit:
            return
        with suppress(ClosedError):
            store.max_pool_bytes = limit
            if limit is not None and self.pool_bytes > limit:
                self._leave_room(0)
                with suppress(OSError):  # storing the next value raises it again
                    store.shrink()

    def _open(self) -> _Places:
        places = self._places.get("places") or self._make()
        if self.closed:  # another thread may close it while places are made
            self.close()
            raise ClosedError("this worker's data is closed")
        return places

    def _make(self) -> _Places:
        if not Path(self._folder).is_dir():  # otherwise the store would make a file of that name
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), self._folder)
        made = _Places(self._folder, self._engine, self._max_pool_bytes, self._max_disk_bytes)
        # There is no lock: another thread or a finalizer may come here, too. The first stays.
        places = self._places.setdefault("places", made)
        if places is not made:
            made.close()
        return places

    def close(self) -> None:
        """Release everything, including the values. Further calls do nothing."""
        self.closed = True
        self._values.clear()
        self._left.clear()
        places = self._places.pop("places", None)
        if places is not None:
            places.close()


class _Places(Closing):
    """The storage of values: an engine per element size, one store, and files for raw frames."""

    def __init__(
        self,
        folder: str,
        options: Mapping[str, Any],
        max_pool_bytes: int | None,
        max_disk_bytes: int | None,
    ) -> None:
        options = dict(options)
        # A given `shuffle` is respected, and a backend instance can serve only one engine.
        alone = "shuffle" in options or isinstance(options["backend"], Backend)
        with ExitStack() as stack:
            self._engines: dict[int, Engine] = {}
            for way in (_PLAIN,) if alone else (_PLAIN, *_ELEMENTS):
                own = options if way == _PLAIN else {**options, "shuffle": way}
                self._engines[way] = stack.enter_context(Engine(**own))
            self._numbers = itertools.count()
            codecs = {way: engine.codec for way, engine in self._engines.items()}
            self._sampler = stack.enter_context(Sampler(codecs))
            self._raw = stack.enter_context(RawFiles(folder))
            file = stack.enter_context(open_storage(folder))
            self.store = stack.enter_context(
                SwapStore(
                    self._engines[_PLAIN],
                    max_pool_bytes=max_pool_bytes,
                    backing=_Unsynced(file),
                    max_backing_bytes=max_disk_bytes,
                )
            )
            self._mapping = stack.enter_context(CompressedMapping(self.store, serializer="pickle"))
            self._all = stack.pop_all()

    @property
    def pool_bytes(self) -> int:
        """Return the bytes of memory that the pool holds."""
        return self.store._resources.pool.held_bytes  # noqa: SLF001 - `counters` would cost more

    @property
    def disk_bytes(self) -> int:
        """Return the bytes of all files."""
        backing = self.store._resources.backing  # noqa: SLF001 - as above
        return self._raw.held_bytes + (0 if backing is None else backing.held_bytes)

    def way_of(self, buffer: Flat) -> int | None:
        """Return the element size that compresses a buffer best, or None if it does not shrink."""
        return self._sampler.best(buffer) if len(buffer) >= _SAMPLED else _PLAIN

    def write(
        self, buffers: Sequence[Flat], ways: tuple[int | None, ...], max_disk_bytes: int | None
    ) -> Parts:
        """Store frames, or none of them. Raise StoreRejected, OSError or ClosedError."""
        of_way: dict[int | None, list[Flat]] = {}
        for buffer, way in zip(buffers, ways, strict=True):
            of_way.setdefault(way, []).append(buffer)
        parts = Parts(0, b"", b"", next(self._numbers), ways, None)
        try:
            for way, some in of_way.items():
                if way is not None:
                    self._compress(parts.number, way, some)
            if None in of_way:
                most = None
                if max_disk_bytes is not None:
                    most = max_disk_bytes - (self.disk_bytes - self._raw.held_bytes)
                raw = self._raw.write(of_way[None], most)
                parts = parts._replace(raw=raw)
                self.share_disk(max_disk_bytes)
        except BaseException:
            self.erase(parts)
            raise
        return parts

    def _compress(self, number: int, way: int, buffers: list[Flat]) -> None:
        engine = self._engines[way]
        if self.store.engine is not engine:
            # Other threads may set it at the same time. Each page records its codec.
            self.store.engine = engine
        self._mapping[number, way] = [pickle.PickleBuffer(buffer) for buffer in buffers]

    def share_disk(self, max_disk_bytes: int | None) -> None:
        """Give the store's file the disk space that the raw files do not use."""
        if max_disk_bytes is not None:
            self.store.max_backing_bytes = max(0, max_disk_bytes - self._raw.held_bytes)

    def read(self, key: Key, parts: Parts) -> list[Any]:
        """Return a value's frames. Raise KeyError if they are gone, CorruptValue or OSError."""
        of_way: dict[int | None, Iterator[Any]] = {}
        for way in set(parts.ways) - {None}:
            of_way[way] = iter(self._mapping[parts.number, way])
        if parts.raw is not None:
            raw = self._raw.read(parts.raw)
            if raw is None:
                raise CorruptValue(key)
            of_way[None] = iter(raw)
        return [next(of_way[way]) for way in parts.ways]

    def erase(self, parts: Parts) -> None:
        """Free a value's frames that are still there."""
        for way in set(parts.ways) - {None}:
            with suppress(KeyError):
                del self._mapping[parts.number, way]
        if parts.raw is not None:
            self._raw.free(parts.raw)

    def close(self) -> None:
        """Close everything. Further calls do nothing."""
        self._all.close()


class _Unsynced:
    """A store's file that is not synced after each value, just as Dask does not sync its files.

    So a checksum reveals a failing disk when the value is restored, not when it is stored.
    """

    def __init__(self, file: Storage) -> None:
        self.pread = file.pread
        self.pwrite = file.pwrite
        self.discard = file.discard
        self.truncate = file.truncate


def _digest(head: bytes, buffers: Sequence[Flat]) -> bytes:
    digest = xxh3_128(head)
    for buffer in buffers:
        digest.update(len(buffer).to_bytes(8, "little"))
        digest.update(buffer)
    return digest.digest()


def _own_error(error: BaseException) -> BaseException:
    """Return the error of a value's own code, unwrapped from Dask's serialisation errors."""
    while (
        type(error) is TypeError
        and error.__cause__ is not None
        and type(text := next(iter(error.args), None)) is str
        and text.startswith("Could not serialize object of type")
    ):
        error = error.__cause__
    return error


def _count(activity: str, frames: Sequence[Any]) -> None:
    """Count a value that left live memory or came back in Dask's metrics, in uncompressed bytes."""
    context_meter.digest_metric(activity, 1, "count")
    context_meter.digest_metric(
        activity, sum(memoryview(frame).nbytes for frame in frames), "bytes"
    )
