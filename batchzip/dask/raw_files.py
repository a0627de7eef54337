"""RawFiles: buffers that do not shrink, as they are, in files without names.

    write(buffers) ─▶ FileRange: segment, offset ─▶ read ─▶ buffers
                                             └▶ free: a hole; a segment without buffers is closed

What does not get smaller gains nothing in the pool. Here it is written from where it lies, and read to where it
stays. A segment takes buffers one behind the other until it has _SEGMENT bytes, so no room has to be looked for.

Lock: around the numbers of a segment; no call of the system is made under it, nor any code of a value's.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from xxhash import xxh3_64

from batchzip.arguments.buffers import flat
from batchzip.core.calls import Calls
from batchzip.errors import ClosedError, StoreRejected
from batchzip.store.backing.file_io import open_storage
from batchzip.system.lifetime import Closing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchzip.arguments.buffers import Flat
    from batchzip.store.backing.file_io import Storage

_SEGMENT = 1 << 30
"""Bytes after which a new segment is begun: few descriptors, and no file grows for ever."""

_BLOCK = 4096
"""Bytes of a file system's block, of which holes are made."""

_MOST_BUFFERS = 512
"""Buffers of one call; the system takes up to 1,024."""


@dataclass(eq=False, slots=True)
class RawFile:
    """A file, and which of it is in use."""

    calls: Calls[Storage]
    end: int = 0
    """Bytes that were given out, holes included."""
    used: set[int] = field(default_factory=set)
    """Offsets of what it has."""


class FileRange(NamedTuple):
    """Where buffers are; their checksum is of all of them together."""

    segment: RawFile
    offset: int
    lengths: tuple[int, ...]
    checksum: int

    @property
    def size(self) -> int:
        """Bytes that they take in the file."""
        return _blocks(sum(self.lengths))


class RawFiles(Closing):
    """Buffers in files of a folder, which have no names there. Thread-safe."""

    def __init__(self, folder: str) -> None:
        self.held_bytes = 0
        """Bytes of the files that are in use."""
        self._folder = folder
        self._lock = threading.RLock()
        self._segments: list[RawFile] = []
        self._closed = False

    def write(self, buffers: Sequence[Flat], max_bytes: int | None = None) -> FileRange:
        """Write buffers. Raise OSError, and nothing of them is kept then; ClosedError.

        Raise StoreRejected if the files would have more than `max_bytes`.
        """
        lengths = tuple(map(len, buffers))
        checksum = xxh3_64()
        for buffer in buffers:
            checksum.update(buffer)
        segment, offset = self._reserve(_blocks(sum(lengths)), max_bytes)
        place = FileRange(segment, offset, lengths, checksum.intdigest())
        try:
            with place.segment.calls.enter() as storage:
                _move(os.pwritev, storage.descriptor, buffers, place.offset)
        except BaseException:
            self.free(place)
            raise
        return place

    def read(self, place: FileRange) -> list[memoryview] | None:
        """Return buffers in memory that becomes the caller's; None if they are damaged.

        Raise OSError; ClosedError if they were given back.
        """
        buffers = [flat(np.empty(length, np.uint8)) for length in place.lengths]
        try:
            with place.segment.calls.enter() as storage:
                _move(os.preadv, storage.descriptor, buffers, place.offset)
        except EOFError:
            return None
        checksum = xxh3_64()
        for buffer in buffers:
            checksum.update(buffer)
        return buffers if checksum.intdigest() == place.checksum else None

    def free(self, place: FileRange) -> None:
        """Give back the room of buffers, once."""
        segment = place.segment
        with self._lock:
            if place.offset not in segment.used:
                return
            segment.used.remove(place.offset)
            self.held_bytes -= place.size
            ended = not segment.used and (
                segment.end >= _SEGMENT or self._segments[-1:] != [segment]
            )
            if ended and segment in self._segments:
                self._segments.remove(segment)
        if ended:
            segment.calls.close()
        else:
            with suppress(ClosedError), segment.calls.enter() as storage:
                storage.discard(place.offset, place.size)

    def close(self) -> None:
        """Let go of all files; further calls do nothing."""
        self._closed = True
        with self._lock:
            segments, self._segments = self._segments, []
            self.held_bytes = 0
            for segment in segments:
                segment.used.clear()
        for segment in segments:
            segment.calls.close()

    def _reserve(self, size: int, max_bytes: int | None) -> tuple[RawFile, int]:
        while True:
            with self._lock:
                if max_bytes is not None and self.held_bytes + size > max_bytes:
                    raise StoreRejected(
                        "reject_reclaim_fail",
                        f"the files have no room for {size} bytes beside {self.held_bytes}, of {max_bytes}",
                    )
                if self._segments and self._segments[-1].end < _SEGMENT:
                    segment = self._segments[-1]
                    offset = segment.end
                    segment.end += size
                    segment.used.add(offset)
                    self.held_bytes += size
                    return segment, offset
            made = RawFile(Calls(open_storage(self._folder), "worker's data"))
            with self._lock:
                if not self._closed:
                    self._segments.append(made)
                    continue
            made.calls.close()
            raise ClosedError("this worker's data is closed")


def _move(call: object, descriptor: int | None, buffers: Sequence[Flat], at: int) -> None:
    """Read or write buffers, however many bytes the system takes at a time."""
    left = deque(buffer for buffer in buffers if len(buffer))
    while left:
        moved = call(descriptor, list(islice(left, _MOST_BUFFERS)), at)  # type: ignore[operator]
        if not moved:
            raise EOFError
        at += moved
        while left and moved >= len(left[0]):
            moved -= len(left.popleft())
        if moved:
            left[0] = left[0][moved:]


def _blocks(size: int) -> int:
    """Return `size` in whole blocks, one at least: each place needs an offset of its own."""
    return max(1, -(-size // _BLOCK)) * _BLOCK
