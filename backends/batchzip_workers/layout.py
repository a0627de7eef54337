"""What lies where in the segment that an owner and one worker share.

Each worker has a ring of its own, single producer and single consumer, in a sealed memfd. Rejected:
one queue for all workers (needs a lock or a compare-and-swap that a dead process could hold or
leave half done) and pipes (each share copied twice through the kernel, two system calls a share).

    segment = control page | slot 0 | slot 1 | …          share n lies in slot n % SLOTS
    slot    = descriptor line | lengths | rows | results | data (inputs, then outputs)

    control page, one cache line a word, little-endian u64     written by
       0  READY      1 once the worker takes descriptors       worker
      64  POSTED     shares ever posted                        owner
     128  STARTED    shares ever begun                         worker
     192  DONE       shares ever finished                      worker
     256  ASLEEP     1 while the worker needs a bell to wake   worker
     320  STOP       1 when the worker shall exit              owner
     384  OWNER_CPU  1 + the CPU a waking owner posts from,    owner, before POSTED
                     else 0 (see placement.py)
     448  WAITING    one word a slot: 1 while the owner needs  owner
                     the slot's bell to wake
    2048  figures    what the worker did; see SHARES …         worker

    slot                                                       written by
       0  descriptor: sequence u64, operation u32, count u32,  owner, before POSTED covers it
          capacity u32, input bytes u32, placement (offset of
          inputs u64, of outputs u64, their pitches u64, u64),
          crc32 of these u32
      64  lengths    u32 a page: bytes of each source          owner, likewise
          rows       u32 a page: where its output goes         owner, likewise
          results    i32 a page: bytes produced or −errno,     worker, before DONE covers it
                     then the number of pages that failed
                     and the bytes of all outputs, u32, u32
          data       inputs packed from the start              owner
                     outputs packed behind the inputs' room    worker

    arena    Inputs and outputs of a pitch that is not 0 lie in the engine's arena instead, each that
             far from the one before; outputs of a decompressed share at their row × pitch.

Invariants
* One writer a field; every field is aligned and written by one store.
* 0 ≤ DONE ≤ STARTED ≤ DONE + 1, STARTED ≤ POSTED ≤ DONE + SLOTS. A slot is written again only after
  its outputs were collected.
* A worker that dies holds nothing: the owner drops the ring and gives the next worker a new one.

Order. Data is written before the word that announces it and read after it. That relies on stores
being seen in program order, which x86-64 gives and others do not: the backend refuses to work
elsewhere. Going to sleep needs more (a store before a load, on both sides): `fence()`.
"""

from __future__ import annotations

import struct
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING
from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import Callable

SLOTS = 4
"""Shares in flight a worker: one under way, one behind it, two so that collecting may lag."""

LINE = 64
CONTROL_BYTES = 4096

READY, POSTED, STARTED, DONE, ASLEEP, STOP, OWNER_CPU = (line * LINE // 8 for line in range(7))
"""Indices of the control words, in u64."""

WAITING = tuple((7 + slot) * LINE // 8 for slot in range(SLOTS))

_FIELDS = struct.Struct("<QIIIIQQQQ")
_SEALED = struct.Struct("<QIIIIQQQQI")

SHARES, SLEEPS, BUSY_NS, STARTED_NS = range(256, 260)
"""Indices of a worker's figures in the control page, in u64; the last is when it began the share under
way, on the system's monotonic clock."""

PAGES, BYTES_IN, BYTES_OUT = 260, 262, 264
"""Indices of figures that there are two of, + 0 for compress and + 1 for decompress."""

_SHARE_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes and offsets of a ring for pages of `page_size` bytes; equal on both ends."""

    page_size: int
    share_pages: int
    """Most pages a share may have."""

    @classmethod
    def of(cls, page_size: int) -> Layout:
        """Lay out for shares of 256 KiB: enough to amortise a hand-over, few enough to balance."""
        return cls(page_size, max(1, min(256, _SHARE_BYTES // page_size)))

    @property
    def input_room(self) -> int:
        """Bytes for a share's inputs; a compressed source may be up to two pages long."""
        return 2 * self.share_pages * self.page_size

    @property
    def data_offset(self) -> int:
        """Where a slot's data begins: behind the descriptor, lengths, rows and results."""
        return -(-(LINE + 12 * self.share_pages + LINE) // 4096) * 4096

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot: outputs have as much room as inputs, two pages each."""
        return self.data_offset + 2 * self.input_room

    @property
    def segment_bytes(self) -> int:
        """Bytes of the whole segment."""
        return CONTROL_BYTES + SLOTS * self.slot_bytes


class SlotViews:
    """Views of one slot, made once: nothing is sliced on the hot path that need not be."""

    __slots__ = (
        "descriptor",
        "inputs",
        "lengths",
        "outcome",
        "outputs",
        "pages",
        "results",
        "rows",
    )

    def __init__(self, segment: memoryview, layout: Layout, slot: int) -> None:
        start = CONTROL_BYTES + slot * layout.slot_bytes
        count, page_size = layout.share_pages, layout.page_size
        view = segment[start : start + layout.slot_bytes]
        self.descriptor = view[:LINE]
        at, size = LINE, 4 * count
        self.lengths = view[at : at + size].cast("I")
        self.rows = view[at + size : at + 2 * size].cast("I")
        self.results = view[at + 2 * size : at + 3 * size].cast("i")
        self.outcome = view[at + 3 * size : at + 3 * size + 8].cast("I")
        data = view[layout.data_offset :]
        self.inputs = data[: layout.input_room]
        self.outputs = data[layout.input_room :]
        self.pages = [self.inputs[i * page_size : (i + 1) * page_size] for i in range(count)]


def seal_descriptor(slot: memoryview, *fields: int) -> None:
    """Write a descriptor; the check tells one torn or written over from another."""
    packed = _FIELDS.pack(*fields)
    slot[: _SEALED.size] = packed + crc32(packed).to_bytes(4, "little")


def open_descriptor(slot: memoryview) -> tuple[int, ...] | None:
    """Copy a descriptor once and check the copy; its fields, or None where it is damaged."""
    copied = bytes(slot)
    *fields, check = _SEALED.unpack_from(copied)
    return None if check != crc32(copied[: _FIELDS.size]) else tuple(fields)


def make_fence() -> Callable[[], object]:
    """Make a function that orders the caller's earlier stores before its later loads.

    Going to sleep is "announce it, look once more, sleep" against "post, look whether they sleep":
    each side stores and then loads what the other stored, and x86-64 lets such a load overtake the
    store. Taking an uncontended lock is a locked instruction, which does not.

    Taken by `with`: an interrupt may come behind any call, acquire() too, but not between a lock's
    __enter__ and the block.
    """
    lock = threading.Lock()

    def fence() -> None:
        with lock:
            pass

    return fence
