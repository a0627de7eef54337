"""Spool: a file of keys and values, which fresh processes read one by one.

A value that lay in the process anyway would not count as what it takes. So the values are written
to a file once, and each process that is measured reads it. The file has no name: nothing of it is
left behind, however this process ends.

A frame: bytes of the key, bytes of the value, whether the value is pickled; then both. Keys are
always pickled. The file is of this process's own making, and no other user can open it.
"""

from __future__ import annotations

import pickle
import struct
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from batchzip.errors import NotStorable
from batchzip.wording import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_HEAD = struct.Struct("<IQ?")


@dataclass(frozen=True, slots=True)
class Spooled:
    """What was written."""

    values: int
    value_bytes: int
    bytes_up_to: dict[int, int]
    """Bytes of the values that fit a page, for pages of 4 and 16 KiB."""
    all_bytes: bool
    """Whether every value is bytes."""
    complete: bool
    """Whether there were no more than these."""


def write(file: IO[bytes], pairs: Iterable[tuple[Any, Any]], most_bytes: int) -> Spooled:
    """Write pairs until their values have `most_bytes`.

    Raise NotStorable for what cannot be pickled, OSError.
    """
    values = value_bytes = 0
    bytes_up_to = {4096: 0, 16384: 0}
    all_bytes = complete = True
    for key, value in pairs:
        if value_bytes >= most_bytes:
            complete = False
            break
        is_object = not isinstance(value, bytes | bytearray | memoryview)
        head = _pickled(key, "a key", key)
        data = _pickled(value, "the value", key) if is_object else bytes(value)
        file.write(_HEAD.pack(len(head), len(data), is_object))
        file.write(head)
        file.write(data)
        values += 1
        value_bytes += len(data)
        for page_size in bytes_up_to:
            bytes_up_to[page_size] += len(data) * (len(data) <= page_size)
        all_bytes = all_bytes and not is_object
    file.flush()
    return Spooled(values, value_bytes, bytes_up_to, all_bytes, complete)


def _pickled(value: object, what: str, key: object) -> bytes:
    try:
        return pickle.dumps(value, protocol=5)
    except Exception as error:  # whatever a __reduce__ raises
        raise NotStorable(
            f"{what}, of {type(value).__name__}, cannot be pickled: {error} (key {shown(key)})"
        ) from error


def read(path: Path) -> Iterator[tuple[Any, Any]]:
    """Yield keys and values."""
    with path.open("rb") as file:
        while head := file.read(_HEAD.size):
            key_bytes, value_bytes, is_object = _HEAD.unpack(head)
            key = pickle.loads(file.read(key_bytes))
            data = file.read(value_bytes)
            yield key, pickle.loads(data) if is_object else data
            del key, data


def read_keys(path: Path) -> Iterator[Any]:
    """Yield keys alone."""
    with path.open("rb") as file:
        while head := file.read(_HEAD.size):
            key_bytes, value_bytes, _ = _HEAD.unpack(head)
            yield pickle.loads(file.read(key_bytes))
            file.seek(value_bytes, 1)
