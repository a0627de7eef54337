"""Where the words of a worker's ring lie, as the header of batchzip/core/ring.pyx draws them.

Written a second time on purpose: what damages a ring, or looks at it, is no part of the core.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from batchzip.core.ring import ring_bytes, share_pages

if TYPE_CHECKING:
    import mmap

    import numpy.typing as npt

    Words = npt.NDArray[np.uint32]

SLOTS = 4
CONTROL = ("ready", "posted", "done", "asleep", "bell", "waiters", "stop", "owner_cpu")
LINE = 64
CONTROL_BYTES = 4096
HEAD_BYTES = 320

IN_SLOT = (
    "claim",
    "descriptor",
    "finished",
    "results",
    "lengths",
    "rows",
    "dlens",
    "errors",
    "hashes",
)


@dataclass(frozen=True, slots=True)
class RingMap:
    """The words of one ring, as arrays that change with it."""

    control: dict[str, Words]
    figures: Words
    slots: list[dict[str, Words]]

    @classmethod
    def of(cls, memory: mmap.mmap, page_size: int) -> RingMap:
        words = np.frombuffer(memory, np.uint32)
        pages = share_pages(page_size)

        def cut(start: int, count: int) -> Words:
            return words[start // 4 : start // 4 + count]

        slots = []
        slot_bytes = (ring_bytes(page_size) - CONTROL_BYTES) // SLOTS
        for number in range(SLOTS):
            at = CONTROL_BYTES + number * slot_bytes
            slot = {
                "claim": cut(at, 2),
                "descriptor": cut(at + LINE, 20),
                "finished": cut(at + 192, 1),
                "results": cut(at + 200, 2),
            }
            at += HEAD_BYTES
            slot["hashes"] = cut(at, 2 * pages)
            at += 8 * pages
            for name in ("lengths", "rows", "dlens", "errors"):
                slot[name] = cut(at, pages)
                at += 4 * pages
            slots.append(slot)
        control = {name: cut(number * LINE, 1) for number, name in enumerate(CONTROL)}
        return cls(control, cut(len(CONTROL) * LINE, 32), slots)

    def words(self, name: str, slot: int) -> Words:
        """Return the words of a name; those of one slot where each has its own."""
        if name == "figures":
            return self.figures
        return self.control[name] if name in self.control else self.slots[slot][name]


NAMES = (*CONTROL, "figures", *IN_SLOT)
