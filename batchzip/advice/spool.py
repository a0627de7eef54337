"""Spool: a file of keys and values, which fresh processes read one by one.

A value that lay in the process anyway would not count as what it takes. So the values are written
to a file once, and each process that is measured reads it. The file has no name: nothing of it is
left behind, however this process ends.

A frame: bytes of the keys, bytes of the values, whether they are pickled; then both. A value that is bytes has a
frame of its own. Up to 64 objects share one, so that what they have in common in a dict (the same str as a key
in each, for instance) is there once in its copy, too. Keys are always pickled. The file is of this process's own
making, and no other user can open it.
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
"""Objects of a frame."""
_TOGETHER_BYTES = 1 << 20
"""Bytes of pickled objects from which a frame is complete."""


@dataclass(slots=True)
class Spooled:
    """What was written."""

    values: int = 0
    value_bytes: int = 0
    short_bytes: int = 0
    """Bytes of the values that a mapping compresses in one call, whatever its pages."""
    all_bytes: bool = True
    """Whether every value is bytes."""
    complete: bool = True
    """Whether there were no more than these."""
    suiting: Suiting = field(default_factory=Suiting)
    """Serializers that take every value, where not all are bytes."""


def write(file: IO[bytes], pairs: Iterable[tuple[Any, Any]], most_bytes: int) -> Spooled:
    """Write pairs until their values have `most_bytes`.

    Raise NotStorable for what cannot be pickled, OSError.
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
    except Exception as error:  # whatever a __reduce__ raises
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
            while keys:  # what was given is not kept here
                yield keys.pop(), values.pop()


def read_keys(path: Path) -> Iterator[Any]:
    """Yield keys alone."""
    with path.open("rb") as file:
        while head := file.read(_HEAD.size):
            key_bytes, value_bytes, _ = _HEAD.unpack(head)
            yield from pickle.loads(file.read(key_bytes))
            file.seek(value_bytes, 1)
