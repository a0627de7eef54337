"""CompressedValues: those of a worker's values that are not live, as pages of a store.

    values[key] = value ─▶ Dask's serialisation ─▶ frames ─▶ Sampler ─┬─▶ CompressedMapping ─▶ SwapStore
                                                                     └─▶ RawFiles: what does not shrink

Values are taken apart by Dask's own serialisation, so that arrays and frames are compressed from where they
lie; what it does not keep whole is pickled (whole_values.py), by cloudpickle where nothing else can.

Engines, store and files are made with the first value, so a worker that never needs them has none.

What a value's own code raises says nothing of others: NotPicklable is about this value, NoRoom about all.
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
"""Bytes of a value that does not say: what Dask takes one for whose `sizeof` raises."""

_PLAIN = 1
"""Elements of one byte: compressed as it is."""

_ELEMENTS = (2, 4, 8)
"""Bytes of elements whose bytes are put together by place; see `shuffle` of Engine."""

_SAMPLED = 64 << 10
"""Bytes from which on a buffer is worth a look at samples of it: that takes about 0.1 ms."""

_FULL = 0.9
"""Of its limit: what a store calls full, until it is below."""


class Refused(Exception):
    """A value is not compressed; `__cause__` is why."""

    def __init__(self, key: Key) -> None:
        super().__init__(key)
        self.key = key


class NotPicklable(Refused):
    """It cannot be: its own code, or what it holds, does not allow it."""


class NoRoom(Refused):
    """It cannot be now, and no other could."""


def size_of(value: object) -> int:
    """Return the bytes that a value has in memory, as far as it says so; never raise."""
    try:
        return max(0, int(safe_sizeof(value)))
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - no number, none that counts, or what its own code raises
        return _UNKNOWN_SIZE


class Parts(NamedTuple):
    """A value's header, and where its frames are."""

    size: int
    """Bytes of the value in memory."""
    header: bytes
    """What Dask's serialisation says of the frames, pickled."""
    digest: bytes
    """Of header and frames: if it is the same, the value was not changed."""
    number: int
    """Of its parts in the mapping, which are (number, bytes of an element)."""
    ways: tuple[int | None, ...]
    """Of each frame: the bytes of its elements, _PLAIN, or None for one that is in `raw`."""
    raw: FileRange | None


class CompressedValues(MutableMapping[Any, Any]):
    """A mapping for any key and value that Dask has, and their sizes. Thread-safe.

    `folder` is where the files lie that have neither name nor traces; `engine` are the Engine's keyword
    arguments; `max_disk_bytes` the most that the files may have, or None.

    To store raises NotPicklable or NoRoom, to restore what the value's own code raises, or the mapping.

    A value that is taken out leaves what it was compressed to. If it comes again unchanged, which its digest
    says, nothing is compressed or written a second time. `forget` ends that; so does want of room.
    """

    def __init__(self, folder: str, engine: Mapping[str, Any], max_disk_bytes: int | None) -> None:
        self._max_pool_bytes: int | None = None
        self._folder = folder
        self._engine = engine
        self._max_disk_bytes = max_disk_bytes
        self._values: dict[Key, Parts] = {}
        self._left: dict[Key, Parts] = {}
        """Of values that were taken out, the longest ago first."""
        self._lock = threading.RLock()
        """Around the step of a value from one dictionary to the other; a key's code may run under it."""
        self._places: dict[str, _Places] = {}
        """At the only key, once they are made."""
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
        if self.closed:  # meanwhile, by another thread
            self.close()

    def _write(
        self, key: Key, head: bytes, buffers: Sequence[Flat], digest: bytes
    ) -> tuple[bytes, Parts]:
        """Store frames; their digest as they were stored. Raise NotPicklable, NoRoom."""
        try:
            with context_meter.meter("compress"):
                parts = self._place(buffers)
                if _digest(head, buffers) != digest:
                    # A task changes it meanwhile, so what was stored may be of no digest at all.
                    self._drop(parts)
                    copies = [memoryview(bytes(buffer)) for buffer in buffers]
                    digest, parts = _digest(head, copies), self._place(copies)
                return digest, parts
        except NotStorable as error:
            raise NotPicklable(key) from (error.__cause__ or error)
        except Exception as error:
            raise NoRoom(key) from error

    def _place(self, buffers: Sequence[Flat]) -> Parts:
        """Compress frames, or write them as they are. Raise what the store raises."""
        places = self._open()
        ways = tuple(map(places.way_of, buffers))
        self._leave_room(sum(map(len, buffers)) // 2)
        raw = (None,) * len(ways)
        with suppress(StoreRejected, OSError):
            return places.write(buffers, ways, self._max_disk_bytes)
        # Where it has no pool, a store takes no small values.
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
            if self._values.get(key) is not parts:  # replaced, or deleted, by another thread
                return self[key]
            raise
        _count("disk-read", frames)
        try:
            with context_meter.meter("deserialize"):
                return deserialize(pickle.loads(parts.header), frames)
        except Exception as error:
            error.add_note(f"it was raised as the value of key {key!r} was restored")
            raise

    def __delitem__(self, key: Key) -> None:
        with self._lock:
            parts = self._values.pop(key)
            older = self._left.pop(key, None)
            self._left[key] = parts
        self._drop(older)

    def forget(self, key: Key) -> None:
        """Give back what a value that was taken out has left, if it has."""
        self._drop(self._left.pop(key, None))

    def _drop(self, parts: Parts | None) -> None:
        places = self._places.get("places")
        if parts is not None and places is not None:
            with suppress(ClosedError):
                places.erase(parts)
                places.share_disk(self._max_disk_bytes)

    def _leave_room(self, size: int) -> None:
        """Free what deleted or restored values left in the pool until `size` more bytes fit."""
        limit = self._max_pool_bytes
        places = self._places.get("places")
        if limit is None or places is None:
            return
        while self._left and places.pool_bytes + size > limit * _FULL:
            self._forget_one()

    def _forget_one(self) -> None:
        with suppress(StopIteration, RuntimeError):  # other threads may be faster
            self.forget(next(iter(self._left)))

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[Key]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    @property
    def whole_bytes(self) -> int:
        """Bytes its values would have in memory; added up when it is asked for."""
        return sum(parts.size for parts in list(self._values.values()))

    @property
    def pool_bytes(self) -> int:
        """Bytes of memory that compressed pages have, those that values have left, too."""
        places = self._places.get("places")
        return 0 if places is None else places.pool_bytes

    @property
    def disk_bytes(self) -> int:
        """Bytes of the files, of what values have left, too."""
        places = self._places.get("places")
        return 0 if places is None else places.disk_bytes

    @property
    def store(self) -> SwapStore | None:
        """The store that has the pages; None before there is one, and once it is closed."""
        places = self._places.get("places")
        return None if places is None or places.store.closed else places.store

    @property
    def max_pool_bytes(self) -> int | None:
        """Bytes that compressed pages may have, or None. What is beyond a lowered limit goes to disk."""
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
                with suppress(OSError):  # the next value that is stored says so
                    store.shrink()

    def _open(self) -> _Places:
        places = self._places.get("places") or self._make()
        if self.closed:  # by another thread, maybe, while they were made
            self.close()
            raise ClosedError("this worker's data is closed")
        return places

    def _make(self) -> _Places:
        if not Path(self._folder).is_dir():  # a store would make a file of that name
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), self._folder)
        made = _Places(self._folder, self._engine, self._max_pool_bytes, self._max_disk_bytes)
        # No lock: another thread, or a finalizer, may come here too. The first one's stay.
        places = self._places.setdefault("places", made)
        if places is not made:
            made.close()
        return places

    def close(self) -> None:
        """Release everything, values included; further calls do nothing."""
        self.closed = True
        self._values.clear()
        self._left.clear()
        places = self._places.pop("places", None)
        if places is not None:
            places.close()


class _Places(Closing):
    """Where parts of values are: an engine for each size of elements, one store, and files of what does not shrink."""

    def __init__(
        self,
        folder: str,
        options: Mapping[str, Any],
        max_pool_bytes: int | None,
        max_disk_bytes: int | None,
    ) -> None:
        options = dict(options)
        # One, as it was asked for, or as a backend that was made by hand serves one engine.
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
        """Bytes of memory that the pool has."""
        return self.store._resources.pool.held_bytes  # noqa: SLF001 - `counters` adds up much more

    @property
    def disk_bytes(self) -> int:
        """Bytes of all files."""
        backing = self.store._resources.backing  # noqa: SLF001 - as above
        return self._raw.held_bytes + (0 if backing is None else backing.held_bytes)

    def way_of(self, buffer: Flat) -> int | None:
        """Choose how to make a buffer smaller: the bytes of its elements, _PLAIN, or None for not at all."""
        return self._sampler.best(buffer) if len(buffer) >= _SAMPLED else _PLAIN

    def write(
        self, buffers: Sequence[Flat], ways: tuple[int | None, ...], max_disk_bytes: int | None
    ) -> Parts:
        """Store frames. Raise StoreRejected, OSError, ClosedError; nothing of them is stored then."""
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
            # Another thread may do so, too: each page says what it was compressed with.
            self.store.engine = engine
        self._mapping[number, way] = [pickle.PickleBuffer(buffer) for buffer in buffers]

    def share_disk(self, max_disk_bytes: int | None) -> None:
        """Leave to the store's file what the others have not."""
        if max_disk_bytes is not None:
            self.store.max_backing_bytes = max(0, max_disk_bytes - self._raw.held_bytes)

    def read(self, key: Key, parts: Parts) -> list[Any]:
        """Return a value's frames. Raise KeyError where they are gone, CorruptValue, OSError."""
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
        """Give back the room of a value's frames, as far as they are there."""
        for way in set(parts.ways) - {None}:
            with suppress(KeyError):
                del self._mapping[parts.number, way]
        if parts.raw is not None:
            self._raw.free(parts.raw)

    def close(self) -> None:
        """Close all; further calls do nothing."""
        self._all.close()


class _Unsynced:
    """A store's file that is not synced after each value, as Dask does not sync its own.

    A disk that fails is noticed by a checksum then, when the value is restored, and not when it is stored.
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
    """Return what a value's own code raised, without what Dask's serialisation makes of it."""
    while (
        type(error) is TypeError
        and error.__cause__ is not None
        and type(text := next(iter(error.args), None)) is str
        and text.startswith("Could not serialize object of type")
    ):
        error = error.__cause__
    return error


def _count(activity: str, frames: Sequence[Any]) -> None:
    """Have Dask count a value that went out of live memory, or came back; bytes before compression."""
    context_meter.digest_metric(activity, 1, "count")
    context_meter.digest_metric(
        activity, sum(memoryview(frame).nbytes for frame in frames), "bytes"
    )
