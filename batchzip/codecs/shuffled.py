"""Shuffled: any codec, whose pages have the bytes of their elements sorted by place first.

Of an array of numbers, the high bytes are much alike and the low ones are not. Apart from each other
they compress better: byte 0 of every element, then byte 1 of every element, and so on.

    element_size 4:  a0 a1 a2 a3  b0 b1 b2 b3  c0 …  ──▶  a0 b0 c0 …  a1 b1 c1 …  a2 …  a3 …

Of floating-point numbers, the sign is the first bit, and noise; the exponent behind it lies in two bytes.
So the sign goes last, behind the mantissa, and the codec is told of the planes (`for_planes`):

    bf16:  seeeeeee emmmmmmm  ──▶  eeeeeeee mmmmmmms

The core does it, in the step before a page goes to the codec. The callables here do the same with
NumPy, for a codec that wraps this one and is none of ours.

A codec that wraps another, as Verified is; Verified goes around this one.
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
"""Bytes of an element; each divides every page size."""

FLOATS = ("f2", "f4", "f8")
"""NumPy's names of floating-point numbers, with their bytes. bfloat16 is an "f2", too."""


@dataclass(frozen=True, slots=True)
class Shuffled(Codec):
    """Compresses with `codec` pages of elements of `element_size` bytes: 2, 4 or 8.

    `floats` says that they are floating-point numbers.
    """

    name: ClassVar[str] = "shuffled"

    codec: Codec
    element_size: int
    floats: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "element_size", as_elements(self.element_size)[0])

    @property
    def algorithm(self) -> str:
        """The wrapped codec's."""
        return self.codec.algorithm

    @property
    def deterministic(self) -> bool:
        """As the wrapped codec."""
        return self.codec.deterministic

    def plan(self) -> Plan:
        """Plan the wrapped codec, with pages that are shuffled."""
        plan = self._inner().plan()
        if plan.element_size or plan.verify:  # shuffling is the outermost step but for verifying
            return Plan(self, None)
        return plan._replace(element_size=self.element_size, floats=self.floats)

    def _inner(self) -> Codec:
        return self.codec.for_planes(self.element_size) if self.floats else self.codec

    def compressor(self, page_size: int) -> Transcode:
        """Make a compressor of shuffled pages; of a buffer of another size it raises."""
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
        """Make a decompressor; what the wrapped one returns is a page or refused."""
        decompress = self.codec.decompressor(page_size)
        shuffled_bytes = np.empty(page_size, np.uint8)
        room = flat(shuffled_bytes)
        shuffled = shuffled_bytes.reshape(self.element_size, -1)
        page = np.empty(page_size, np.uint8)
        words = page.view(f"<u{self.element_size}")
        elements = page.reshape(-1, self.element_size).T

        def decompress_shuffled(src: Flat) -> bytes:
            room[:] = decompress(src)  # another length raises ValueError
            # A plain assignment goes along the rows of `page`, 2 to 8 bytes each: 3 times as long.
            np.positive(shuffled, out=elements)
            if self.floats:
                words[:] = _turned(words, 8 * self.element_size - 1)
            return page.tobytes()

        return decompress_shuffled


def shuffle_bytes(page: bytes, shuffle: object) -> bytes:
    """Shuffle one page, whose length must be a multiple of the elements'. `shuffle` is as Engine has it."""
    element_size, floats = as_elements(shuffle)
    if len(page) % element_size:
        raise BadArgument(
            f"a page of {len(page)} bytes is no array of {element_size}-byte elements"
        )
    words = np.frombuffer(page, f"<u{element_size}")
    if floats:
        words = _turned(words, 1)
    return words.view(np.uint8).reshape(-1, element_size).T.tobytes()


def as_elements(given: object) -> tuple[int, bool]:
    """Return the bytes of an element, and whether it is a float, of what `shuffle` is. Raise BadArgument."""
    if isinstance(given, str) and given in FLOATS:
        return int(given[1]), True
    with contextlib.suppress(BadArgument):
        if (size := as_integer(given, "shuffle")) in ELEMENT_SIZES:
            return size, False
    raise BadArgument(
        "shuffle must be the bytes of an element, 2, 4 or 8, not "
        f"{shown(given)}; of floating-point numbers 'f2', 'f4' or 'f8'"
    )


def _turned(words: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """Turn each word to the left: bits that fall off come in on the right."""
    return words << bits | words >> (8 * words.itemsize - bits)
