"""FakeLane: a worker's side of a ring, written from the layout that core/ring.pyx documents.

It does shares honestly, in this process and at once; a test spoils what it says before it says so.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import xxhash

from batchzip.core.ring import Ring, ring_bytes, share_pages

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchzip.codecs import Codec

READY, POSTED, DONE = 0, 64, 128
_CONTROL_BYTES, _SLOTS, _HEAD_BYTES, _STAGED_BYTES = 4096, 4, 320, 128 << 10
_DESCRIPTOR, _FINISHED, _CHECKSUM = 64, 192, 200
"""Where these begin in a slot; its claim comes first."""


def _fold(total: int, word: int) -> int:
    """Add 64 bits to a checksum, as `bz_fold` in native.h."""
    total = (total ^ word) * 0xFF51AFD7ED558CCD % 2**64
    return total ^ total >> 32


@dataclass
class Results:
    """What a lane says of the pages of a share, and the outputs, one behind the other."""

    dlens: list[int]
    errors: list[int]
    hashes: list[int]
    outputs: bytes


class FakeLane:
    """The lane of `ring`. `do_share` does the next share that is posted."""

    def __init__(self, codec: Codec, page_size: int) -> None:
        self.memory = memoryview(bytearray(ring_bytes(page_size)))
        self._page_size = page_size
        self._compress = codec.compressor(page_size)
        self._restore = codec.decompressor(page_size)
        self.begin_anew()

    def begin_anew(self) -> None:
        """Make another ring in the same memory, for a lane that has done nothing."""
        self.memory[:_CONTROL_BYTES] = bytes(_CONTROL_BYTES)
        for number in range(_SLOTS):
            at = self._slot(number)
            self.memory[at : at + _HEAD_BYTES] = bytes(_HEAD_BYTES)
        self.ring = Ring(self._page_size, 0, self.memory)
        self._done = 0
        self._write(READY, 1)

    def _write(self, at: int, word: int) -> None:
        struct.pack_into("<I", self.memory, at, word)

    def _words(self, at: int, count: int) -> tuple[int, ...]:
        return struct.unpack_from(f"<{count}I", self.memory, at)

    @property
    def has_work(self) -> bool:
        """Whether a share is posted that is not done."""
        return self._words(POSTED, 1) != (self._done,)

    def do_share(
        self, spoil: Callable[[Results], object] = lambda _: None, *, done: int | None = None
    ) -> int:
        """Do a share and report it. `spoil` may change the results, `done` replaces its number.

        Return the number of its pages.
        """
        end = self.begin_share(spoil=spoil)
        self._done += 1
        self._write(self._slot(self._done - 1) + _FINISHED, self._done)
        self._write(DONE, self._done if done is None else done)
        return end

    def begin_share(
        self,
        finished: int | None = None,
        *,
        claim: tuple[int, int] | None = None,
        results: int | None = None,
        spoil: Callable[[Results], object] = lambda _: None,
    ) -> int:
        """Do the first pages of a share, by default all, and begin one more if there is one.

        `claim` and `results` replace these words. Return the number of the share's pages.
        """
        assert self.has_work
        pages = share_pages(self._page_size)
        slot = self._slot(self._done)
        begun, end = self._words(slot, 2)
        assert begun == 0
        count = end if finished is None else finished
        struct.pack_into("<II", self.memory, slot, *(claim or (min(count + 1, end), end)))
        _, operation, _, _ = self._words(slot + _DESCRIPTOR, 4)
        hashes = slot + _HEAD_BYTES
        lengths = hashes + 8 * pages
        dlens, errors = lengths + 8 * pages, lengths + 12 * pages
        data = slot + (_HEAD_BYTES + 24 * pages + 4095) // 4096 * 4096
        outputs = data + max(2 * self._page_size, _STAGED_BYTES)

        made, at = [], data
        for length in self._words(lengths, count):
            source = bytes(self.memory[at : at + length])
            at += length
            made.append((self._restore if operation else self._compress)(source))
        said = Results(
            [len(output) for output in made],
            [0] * count,
            [xxhash.xxh3_64_intdigest(output) for output in made],
            b"".join(made),
        )
        spoil(said)
        struct.pack_into(f"<{count}I", self.memory, dlens, *said.dlens)
        struct.pack_into(f"<{count}i", self.memory, errors, *said.errors)
        struct.pack_into(f"<{count}Q", self.memory, hashes, *said.hashes)
        self.memory[outputs : outputs + len(said.outputs)] = said.outputs
        total = _fold(self._done, 1)
        for dlen, error in zip(said.dlens, said.errors, strict=True):
            total = _fold(total, dlen << 32 | error % 2**32)
        struct.pack_into("<Q", self.memory, slot + _CHECKSUM, total if results is None else results)
        return end

    def _slot(self, share: int) -> int:
        slot_bytes = (ring_bytes(self._page_size) - _CONTROL_BYTES) // _SLOTS
        return _CONTROL_BYTES + share % _SLOTS * slot_bytes
