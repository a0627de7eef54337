"""RawFiles: buffers that do not compress, written unchanged to files without names.

    write(buffers) ─▶ FileRange: segment, offset ─▶ read ─▶ buffers
                                             └▶ free: a hole; a segment without buffers is closed

The pool cannot make these buffers smaller. They are written from where they lie, and read into
their final place. A segment takes buffers one after another until it has _SEGMENT bytes, so there
is no search for room.

The lock guards the numbers of the segments. No system call and no code of a value runs under it.
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
"""Bytes after which a new segment begins. So there are few descriptors, and no file grows
forever."""

_BLOCK = 4096
"""Bytes of a file system's block. Holes consist of whole blocks."""

_MOST_BUFFERS = 512
"""Buffers per system call. The system takes up to 1,024."""


@dataclass(eq=False, slots=True)
class RawFile:
    """A file, and which parts of it are in use."""

    calls: Calls[Storage]
    end: int = 0
    """Bytes that were allocated, holes included."""
    used: set[int] = field(default_factory=set)
    """Offsets of the ranges in use."""


class FileRange(NamedTuple):
    """A range of a file with some buffers, and one checksum for all of them."""

    segment: RawFile
    offset: int
    lengths: tuple[int, ...]
    checksum: int

    @property
    def size(self) -> int:
        """Return the bytes of the range in the file, in whole blocks."""
        return _blocks(sum(self.lengths))


class RawFiles(Closing):
    """Buffers in nameless files of a folder. Thread-safe."""

    def __init__(self, folder: str) -> None:
        self.held_bytes = 0
        """Bytes in use in all files."""
        self._folder = folder
        self._lock = threading.RLock()
        self._segments: list[RawFile] = []
        self._closed = False

    def write(self, buffers: Sequence[Flat], max_bytes: int | None = None) -> FileRange:
        """Write all buffers or none. Raise OSError or ClosedError.

        Raise StoreRejected if the files would exceed `max_bytes`.
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
        """Return the buffers in fresh memory that the caller owns, or None if they are damaged.

        Raise OSError; ClosedError after `free` or `close`.
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
        """Free the range of some buffers. Further calls do nothing."""
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
        """Close all files. Further calls do nothing."""
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
                        f"the files have no room for {size} bytes: "
                        f"{self.held_bytes} of {max_bytes} bytes are in use",
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
    """Read or write all buffers with as many system calls as it takes."""
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
    """Return `size` rounded up to whole blocks, at least one. So each range has its own offset."""
    return max(1, -(-size // _BLOCK)) * _BLOCK
