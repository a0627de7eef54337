"""CompressedValues: those of a worker's values that are not live, as pages of a store.

    values[key] = value ─▶ Dask's serialisation ─▶ header and frames ─▶ CompressedMapping ─▶ SwapStore

Values are taken apart by Dask's own serialisation, so that arrays and frames are compressed from where they
lie; what only cloudpickle can pickle is taken, too.

Engine, store and file are made with the first value, so a worker that never needs them has none.

What a value's own code raises says nothing of others: NotPicklable is about this value, NoRoom about all.
"""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import MutableMapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from distributed.metrics import context_meter
from distributed.protocol import deserialize, serialize
from distributed.sizeof import safe_sizeof

from batchzip.engine import Engine
from batchzip.errors import ClosedError, NotStorable
from batchzip.mapping import CompressedMapping
from batchzip.store import SwapStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from batchzip.lifetime import Closing

    Key: TypeAlias = str | int | float | tuple[Any, ...]

_UNKNOWN_SIZE = 1_000_000
"""Bytes of a value that does not say: what Dask takes one for whose `sizeof` raises."""


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
    except (TypeError, ValueError, OverflowError):  # no number, or none that counts
        return _UNKNOWN_SIZE


class CompressedValues(MutableMapping[Any, Any]):
    """A mapping for any key and value that Dask has, and their sizes. Thread-safe.

    `folder` is where the file lies that has neither name nor traces; `engine` are the Engine's keyword
    arguments; `max_disk_bytes` the most that the file may have, or None.

    To store raises NotPicklable or NoRoom, to restore what the value's own code raises, or the mapping.
    """

    def __init__(self, folder: str, engine: Mapping[str, Any], max_disk_bytes: int | None) -> None:
        self.max_pool_bytes: int | None = None
        """Bytes that compressed pages may have, or None; counts when the first value comes."""
        self._folder = folder
        self._engine = engine
        self._max_disk_bytes = max_disk_bytes
        self._sizes: dict[Key, int] = {}
        self._parts: dict[str, tuple[CompressedMapping, SwapStore, Engine]] = {}
        """At the only key, once they are made."""
        self.closed = False

    def __setitem__(self, key: Key, value: object) -> None:
        try:
            with context_meter.meter("serialize"):
                header, frames = serialize(value, serializers=("dask", "pickle"), on_error="raise")
                buffers = [pickle.PickleBuffer(frame) for frame in frames]
        except Exception as error:  # noqa: BLE001 - whatever the value's own code raises
            cause = _own_error(error)
            kind = NoRoom if isinstance(cause, MemoryError) else NotPicklable
            raise kind(key) from cause
        try:
            with context_meter.meter("compress"):
                self._mapping()[key,] = header, buffers
        except NotStorable as error:
            raise NotPicklable(key) from (error.__cause__ or error)
        except Exception as error:
            raise NoRoom(key) from error
        self._sizes[key] = size_of(value)
        _count("disk-write", frames)

    def __getitem__(self, key: Key) -> object:
        if key not in self._sizes:
            raise KeyError(key)
        with context_meter.meter("decompress"):
            header, frames = self._mapping()[key,]
        _count("disk-read", frames)
        try:
            with context_meter.meter("deserialize"):
                return deserialize(header, frames)
        except Exception as error:
            error.add_note(f"it was raised as the value of key {key!r} was restored")
            raise

    def __delitem__(self, key: Key) -> None:
        del self._sizes[key]
        with suppress(ClosedError):
            del self._mapping()[key,]

    def __contains__(self, key: object) -> bool:
        return key in self._sizes

    def __iter__(self) -> Iterator[Key]:
        return iter(self._sizes)

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def whole_bytes(self) -> int:
        """Bytes its values would have in memory; added up when it is asked for."""
        return sum(list(self._sizes.values()))

    @property
    def store(self) -> SwapStore | None:
        """The store that has the pages; None before there is one, and once it is closed."""
        parts = self._parts.get("parts")
        return None if parts is None or parts[1].closed else parts[1]

    def _mapping(self) -> CompressedMapping:
        parts = self._parts.get("parts") or self._make()
        if self.closed:  # by another thread, maybe, while they were made
            self.close()
            raise ClosedError("this worker's data is closed")
        return parts[0]

    def _make(self) -> tuple[CompressedMapping, SwapStore, Engine]:
        if not Path(self._folder).is_dir():  # a store would make a file of that name
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), self._folder)
        with ExitStack() as stack:
            engine = stack.enter_context(Engine(**self._engine))
            store = stack.enter_context(
                SwapStore(
                    engine,
                    max_pool_bytes=self.max_pool_bytes,
                    backing=self._folder,
                    max_backing_bytes=self._max_disk_bytes,
                )
            )
            mapping = stack.enter_context(CompressedMapping(store, serializer="pickle"))
            # No lock: another thread, or a finalizer, may come here too. The first one's stay.
            parts = self._parts.setdefault("parts", (mapping, store, engine))
            if parts[0] is mapping:
                stack.pop_all()
        return parts

    def close(self) -> None:
        """Release everything, values included; further calls do nothing."""
        self.closed = True
        self._sizes.clear()
        parts: tuple[Closing, ...] = self._parts.get("parts", ())
        for part in parts:
            part.close()
        self._parts.clear()


def _own_error(error: BaseException) -> BaseException:
    """Return what a value's own code raised, without what Dask's serialisation makes of it."""
    while (
        isinstance(error, TypeError)
        and error.__cause__ is not None
        and str(error.args[:1]).startswith("('Could not serialize object of type")
    ):
        error = error.__cause__
    return error


def _count(activity: str, frames: Sequence[Any]) -> None:
    """Have Dask count a value that went out of live memory, or came back; bytes before compression."""
    context_meter.digest_metric(activity, 1, "count")
    context_meter.digest_metric(
        activity, sum(memoryview(frame).nbytes for frame in frames), "bytes"
    )
