"""Spool: a file of keys and values, which fresh processes read one by one.

Values that are already in a process would not add to its memory. Therefore the values are written
to a file once, and each measuring process reads them from there. The file has no name, so nothing
is left behind, however this process ends.

A frame consists of the length of the keys, the length of the values, whether the values are
pickled, the keys and the values. A bytes value has a frame of its own. Up to 64 objects share a
frame, so that pickling keeps what they share (such as the same str as a key in each) shared. Keys
are always pickled. Only this process writes the file, and no other user can open it.
"""

from __future__ import annotations

import pickle
import struct
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from batchzip.advice.suiting import Suiting
from batchzip.core.coder import most_value_bytes
from batchzip.errors import NotStorable
from batchzip.wording import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_HEAD = struct.Struct("<QQ?")

_SHORT = most_value_bytes(4096)

TOGETHER = 64
"""Maximum number of objects in a frame."""
_TOGETHER_BYTES = 1 << 20
"""Bytes of pickled objects after which a frame is complete."""


@dataclass(slots=True)
class Spooled:
    """Figures about the values in a spool."""

    values: int = 0
    value_bytes: int = 0
    short_bytes: int = 0
    """Bytes of the values that a mapping compresses in one call, whatever its page size."""
    all_bytes: bool = True
    """Whether every value is bytes."""
    complete: bool = True
    """Whether these are all values."""
    suiting: Suiting = field(default_factory=Suiting)
    """The serializers that accept every value, if not all are bytes."""


def write(file: IO[bytes], pairs: Iterable[tuple[Any, Any]], most_bytes: int) -> Spooled:
    """Write pairs until their values have `most_bytes`. Return figures about them.

    Raise NotStorable for a key or value that cannot be pickled, and OSError.
    """
    done = Spooled()
    objects: list[tuple[Any, Any]] = []
    object_bytes = 0
    has_bytes = False
    for key, value in pairs:
        if done.value_bytes >= most_bytes:
            done.complete = False
            break
        keys = _pickled([key], "a key", key)
        if isinstance(value, bytes | bytearray | memoryview):
            _write_objects(file, objects)
            objects, object_bytes = [], 0
            has_bytes = True
            length = _write(file, keys, bytes(value), is_pickled=False)
        else:
            length = len(_pickled(value, "the value", key))
            done.suiting.note(value)
            done.all_bytes = False
            objects.append((key, value))
            object_bytes += length
            if len(objects) == TOGETHER or object_bytes >= _TOGETHER_BYTES:
                _write_objects(file, objects)
                objects, object_bytes = [], 0
        done.values += 1
        done.value_bytes += length
        done.short_bytes += length * (length <= _SHORT)
    _write_objects(file, objects)
    if has_bytes and not done.all_bytes:
        done.suiting.note(b"bytes")
    file.flush()
    return done


def _pickled(value: object, what: str, key: object) -> bytes:
    try:
        return pickle.dumps(value, protocol=5)
    except Exception as error:  # a __reduce__ may raise anything
        raise NotStorable(
            f"{what}, of {type(value).__name__}, cannot be pickled: {error} (key {shown(key)})"
        ) from error


def _write_objects(file: IO[bytes], objects: list[tuple[Any, Any]]) -> None:
    if objects:
        keys, values = map(list, zip(*objects, strict=True))
        first = keys[0]
        _write(
            file, _pickled(keys, "keys", first), _pickled(values, "values", first), is_pickled=True
        )


def _write(file: IO[bytes], keys: bytes, values: bytes, *, is_pickled: bool) -> int:
    file.write(_HEAD.pack(len(keys), len(values), is_pickled))
    file.write(keys)
    file.write(values)
    return len(values)


def read(path: Path) -> Iterator[tuple[Any, Any]]:
    """Yield keys and values."""
    with path.open("rb") as file:
        while head := file.read(_HEAD.size):
            key_bytes, value_bytes, is_pickled = _HEAD.unpack(head)
            keys = pickle.loads(file.read(key_bytes))
            data = file.read(value_bytes)
            values = pickle.loads(data) if is_pickled else [data]
            del data
            keys.reverse()
            values.reverse()
            while keys:  # popped, so that no reference is kept here
                yield keys.pop(), values.pop()


def read_keys(path: Path) -> Iterator[Any]:
    """Yield the keys only."""
    with path.open("rb") as file:
        while head := file.read(_HEAD.size):
            key_bytes, value_bytes, _ = _HEAD.unpack(head)
            yield from pickle.loads(file.read(key_bytes))
            file.seek(value_bytes, 1)
