"""Targets: the words of a ring, written by a hostile owner or by a hostile worker."""

from __future__ import annotations

import mmap
import os
import struct
from typing import TYPE_CHECKING

import numpy as np
from support.fake_lane import DONE, READY, FakeLane
from support.fuzzing import Source
from support.store_pages import noise, text

from batchzip import CompressBatch, DecompressBatch
from batchzip.codecs.lz4 import Lz4
from batchzip.codecs.verified import Verified
from batchzip.core.coder import Coders
from batchzip.core.division import DONE as ALL_DONE
from batchzip.core.division import Divider
from batchzip.core.lane import BAD_DESCRIPTOR, ENDED, FAILED, serve
from batchzip.core.ring import ring_bytes, share_pages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.fuzzing import Target

SIZE = 512
SLOTS, CONTROL_BYTES, SLOT_HEAD = 4, 4096, 320
PAGES = share_pages(SIZE)
SLOT_BYTES = (ring_bytes(SIZE) - CONTROL_BYTES) // SLOTS
DATA = (SLOT_HEAD + 24 * PAGES + 4095) // 4096 * 4096
ARENA_BYTES = 64 << 10
_MASK = (1 << 64) - 1


def fold(total: int, word: int) -> int:
    """Add 64 bits to a checksum, as `bz_fold` in native.h."""
    total = (total ^ word) * 0xFF51AFD7ED558CCD & _MASK
    return total ^ total >> 32


class Worker:
    """A worker's loop, given descriptors by a hostile owner, ends and raises nothing.

    An input is a sequence of shares. Those marked so get the checksums that let them in.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, ring_bytes(SIZE))
        self._arena = os.memfd_create("fuzz", os.MFD_CLOEXEC)
        os.ftruncate(self._arena, ARENA_BYTES)
        os.pwrite(self._arena, text(1, ARENA_BYTES), 0)
        self._codec = Lz4()

    def close(self) -> None:
        self._memory.close()
        os.close(self._arena)

    def __call__(self, data: bytes) -> None:
        source, memory = Source(data), self._memory
        memory[:CONTROL_BYTES] = bytes(CONTROL_BYTES)
        number = 0
        while source and number < SLOTS:
            at = CONTROL_BYTES + number * SLOT_BYTES
            self._write_share(source, number, at)
            number += 1
        if number < SLOTS:  # the share behind them ends the loop
            at = CONTROL_BYTES + number * SLOT_BYTES
            memory[at + 64 : at + 144] = bytes(80)
        memory[64:68] = struct.pack("<I", number + 1)
        memory[384:388] = struct.pack("<I", 1)  # stop
        outcome = serve(memory, self._codec, SIZE, 0, self._arena)
        assert outcome in {ENDED, BAD_DESCRIPTOR, FAILED}

    def _write_share(self, source: Source, number: int, at: int) -> None:
        memory, how = self._memory, source.byte()
        operation, count, flags = source.byte() & 3, source.byte() & 15, source.byte() & 7
        lengths = [source.number(2) for _ in range(count)]
        rows = [source.number(2) for _ in range(count)]
        capacity, claimed = source.number(2), source.byte()
        inputs, pitch, outputs, step = (source.number(4) for _ in range(4))
        if how & 2:  # beyond 32 bits
            inputs, pitch, outputs, step = (
                word << (source.byte() & 31) for word in (inputs, pitch, outputs, step)
            )
        total = sum(lengths) if how & 4 else source.number(4)
        words = [count, *([] if not how & 8 else [source.number(4)])]
        tables = 0
        for word in lengths if not flags & 1 else ():
            tables = fold(tables, word)
        for word in rows if flags & 2 else ():
            tables = fold(tables, word)
        head = struct.pack(
            "<8I5Q", number, operation, words[-1], capacity, 0, total & 0xFFFFFFFF, flags,
            tables & 0xFFFFFFFF, 0, inputs, pitch, outputs, step,
        )  # fmt: skip
        if how & 16:
            patch, given = source.byte() % 72, source.take(8)
            head = (head[:patch] + given + head[patch + len(given) :])[:72]
        check = 0x9E3779B97F4A7C15
        for word in struct.unpack("<9Q", head):
            check = fold(check, word)
        if how & 32:
            check ^= source.number(8)
        memory[at : at + 8] = struct.pack("<II", source.byte() if how & 64 else 0, claimed)
        memory[at + 64 : at + 144] = head + struct.pack("<Q", check)
        tables_at = at + SLOT_HEAD + 8 * PAGES
        memory[tables_at : tables_at + 4 * count] = struct.pack(f"<{count}I", *lengths)
        tables_at += 4 * PAGES
        memory[tables_at : tables_at + 4 * count] = struct.pack(f"<{count}I", *rows)
        given = source.take(source.number(2) % 2048)
        memory[at + DATA : at + DATA + len(given)] = given

    def seeds(self) -> Iterator[bytes]:
        page = text(1, SIZE)
        staged = [4, 0, 2, 0, *struct.pack("<4H", SIZE, SIZE, 0, 0)]
        tail = struct.pack("<HB4I", 2 * SIZE, 2, 0, 0, 0, 0)
        yield bytes(staged) + tail + struct.pack("<H", 2 * SIZE) + page + page
        made = Lz4().compressor(SIZE)(page)
        back = [4, 1, 1, 0, *struct.pack("<2H", len(made), 0)]
        yield bytes(back) + struct.pack("<HB4I", SIZE, 1, 0, 0, 0, 0) + b"\0\2" + made
        shared = [4, 0, 2, 3, *struct.pack("<4H", SIZE, SIZE, 0, 1)]
        yield bytes(shared) + struct.pack("<HB4I", 2 * SIZE, 2, 0, SIZE, 8192, 2 * SIZE) + b"\0\0"
        yield (
            bytes([4, 1, 1, 6, *struct.pack("<2H", len(made), 3)])
            + struct.pack("<HB4I", SIZE, 1, 0, 0, 4096, SIZE)
            + b"\0\2"
            + made
        )


class Owner:
    """A batch comes out right, whatever a hostile worker writes in its ring. Outputs are hashed."""

    def __init__(self) -> None:
        self._codec = Verified(Lz4())
        self._coders = Coders(self._codec, SIZE)
        self._pages = np.stack(
            [np.frombuffer((text, noise)[at % 2](at, SIZE), np.uint8) for at in range(8)]
        )
        self._outputs = [self._coders.compress_page(page) for page in self._pages]
        self._divider = Divider(self._coders, verify=True)
        self._divider.generous = True
        self._lane, self._honest = FakeLane(self._codec, SIZE), FakeLane(self._codec, SIZE)

    def close(self) -> None:
        """Hold nothing but memory."""

    def __call__(self, data: bytes) -> None:
        source = Source(data)
        how = source.byte()
        batch = (
            CompressBatch(self._pages)
            if how & 1
            else DecompressBatch(self._outputs, page_size=SIZE)
        )
        lane = self._lane
        lane.begin_anew()
        job = self._divider.start(batch.pointers, (lane.ring,))
        if how & 2 and lane.has_work:
            lane.do_share()
        while source:
            self._spoil(source)
        for turn in range(64):
            if job.run(0.001, may_wait=False) == ALL_DONE:
                break
            job.untrusted(0.0)
            lane.ring.is_neglected(0.0), lane.ring.figures(), lane.ring.ready, lane.ring.done
            if turn == 2:  # what that lane may have died of waits for another one
                lane.ring.mark_gone()
                self._honest.begin_anew()
                job.set_rings((self._honest.ring,))
            if turn > 2 and self._honest.has_work:
                self._honest.do_share()
        else:
            raise AssertionError("the batch does not end")
        assert not batch.errors.any()
        if isinstance(batch, DecompressBatch):
            assert (batch.pages == self._pages).all()
        else:
            assert isinstance(batch, CompressBatch)
            assert [bytes(output) for output in batch.outputs()] == self._outputs

    def _spoil(self, source: Source) -> None:
        """Write a few bytes where the lane may write."""
        place, at = source.byte(), source.number(2)
        if place & 3 == 0:
            at = (READY, DONE, 192, 256, 320, 448, 512)[at % 7]
        else:
            slot = CONTROL_BYTES + (place >> 2 & 3) * SLOT_BYTES
            at = slot + (at % SLOT_HEAD, SLOT_HEAD + at % (24 * PAGES), DATA + at)[(place & 3) - 1]
        given = source.take(1 + (place >> 5))
        self._lane.memory[at : at + len(given)] = given

    def seeds(self) -> Iterator[bytes]:
        for how in range(4):
            yield bytes([how])
            yield bytes([how, 0, 1, 0, 1])
            yield bytes([how, 1, 200, 0, 7, 2, 0, 12, 1])


TARGETS: dict[str, type[Target]] = {"worker": Worker, "owner": Owner}
