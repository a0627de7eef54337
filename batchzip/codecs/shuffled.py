"""Shuffled: wraps any codec, and groups the bytes of elements by position before compression.

In an array of numbers, the high bytes of neighbours are similar and the low bytes are not. They
compress better when they are separated: byte 0 of every element, then byte 1 of every element, and
so on.

    element_size 4:  a0 a1 a2 a3  b0 b1 b2 b3  c0 …  ──▶  a0 b0 c0 …  a1 b1 c1 …  a2 …  a3 …

In floating-point numbers, the first bit is the sign, which is noise, and the exponent after it is
split between two bytes. So the sign is moved to the end, after the mantissa, and the codec learns
the number of planes (`for_planes`):

    bf16:  seeeeeee emmmmmmm  ──▶  eeeeeeee mmmmmmms

The core does this just before it calls the codec. The callables here do the same with NumPy, for
a foreign codec that wraps this one.

Like Verified, this codec wraps another one. If both are used, Verified is the outer one.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from batchzip.arguments.buffers import flat
from batchzip.arguments.checks import as_integer
from batchzip.codecs.codec import Codec
from batchzip.core.plan import Plan
from batchzip.errors import BadArgument
from batchzip.wording import shown

if TYPE_CHECKING:
    from typing import Any

    from batchzip.arguments.buffers import Flat
    from batchzip.codecs.codec import Transcode

ELEMENT_SIZES = (2, 4, 8)
"""Valid bytes per element. Each divides every page size."""

FLOATS = ("f2", "f4", "f8")
"""NumPy's names of floating-point types, with their size in bytes. "f2" includes bfloat16."""


@dataclass(frozen=True, slots=True)
class Shuffled(Codec):
    """Wraps `codec` for pages of elements of `element_size` bytes: 2, 4 or 8.

    `floats` is True for floating-point numbers.
    """

    name: ClassVar[str] = "shuffled"

    codec: Codec
    element_size: int
    floats: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "element_size", as_elements(self.element_size)[0])

    @property
    def algorithm(self) -> str:
        """The wrapped codec's algorithm."""
        return self.codec.algorithm

    @property
    def deterministic(self) -> bool:
        """Whether the wrapped codec is deterministic."""
        return self.codec.deterministic

    def plan(self) -> Plan:
        """Return the wrapped codec's plan, with shuffled pages."""
        plan = self._inner().plan()
        if plan.element_size or plan.verify:  # only verifying may come around shuffling
            return Plan(self, None)
        return plan._replace(element_size=self.element_size, floats=self.floats)

    def _inner(self) -> Codec:
        return self.codec.for_planes(self.element_size) if self.floats else self.codec

    def compressor(self, page_size: int) -> Transcode:
        """Return a compressor that shuffles pages first. It raises for a buffer of another size."""
        compress = self._inner().compressor(page_size)
        page_bytes = np.empty(page_size, np.uint8)
        room = flat(page_bytes)
        words = page_bytes.view(f"<u{self.element_size}")
        shuffled = page_bytes.reshape(-1, self.element_size).T

        def compress_shuffled(page: Flat) -> bytes:
            room[:] = page
            if self.floats:
                words[:] = _turned(words, 1)
            return compress(shuffled.tobytes())

        return compress_shuffled

    def decompressor(self, page_size: int) -> Transcode:
        """Return a decompressor. It raises if the wrapped one does not return a whole page."""
        decompress = self.codec.decompressor(page_size)
        shuffled_bytes = np.empty(page_size, np.uint8)
        room = flat(shuffled_bytes)
        shuffled = shuffled_bytes.reshape(self.element_size, -1)
        page = np.empty(page_size, np.uint8)
        words = page.view(f"<u{self.element_size}")
        elements = page.reshape(-1, self.element_size).T

        def decompress_shuffled(src: Flat) -> bytes:
            room[:] = decompress(src)  # another length raises ValueError
            # A plain assignment iterates over rows of 2 to 8 bytes, and takes 3 times as long.
            np.positive(shuffled, out=elements)
            if self.floats:
                words[:] = _turned(words, 8 * self.element_size - 1)
            return page.tobytes()

        return decompress_shuffled


def shuffle_bytes(page: bytes, shuffle: object) -> bytes:
    """Return a shuffled page. `shuffle` is as in Engine. Raise BadArgument if an element is cut."""
    element_size, floats = as_elements(shuffle)
    if len(page) % element_size:
        raise BadArgument(
            f"a page of {len(page)} bytes cannot be divided into elements of {element_size} bytes"
        )
    words = np.frombuffer(page, f"<u{element_size}")
    if floats:
        words = _turned(words, 1)
    return words.view(np.uint8).reshape(-1, element_size).T.tobytes()


def as_elements(given: object) -> tuple[int, bool]:
    """Return the bytes per element, and whether it is a float. Raise BadArgument."""
    if isinstance(given, str) and given in FLOATS:
        return int(given[1]), True
    with contextlib.suppress(BadArgument):
        if (size := as_integer(given, "shuffle")) in ELEMENT_SIZES:
            return size, False
    raise BadArgument(
        "shuffle must be 2, 4 or 8 (bytes per element), or 'f2', 'f4' or 'f8' for floating-point "
        f"numbers, not {shown(given)}"
    )


def _turned(words: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """Rotate each word to the left."""
    return words << bits | words >> (8 * words.itemsize - bits)
