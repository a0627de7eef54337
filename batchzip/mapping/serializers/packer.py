"""What a serializer is, for its users and for a mapping."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchzip.arguments.buffers import Buffer, Flat


class Serializer(Protocol):
    """What `CompressedMapping(serializer=…)` takes besides names."""

    def dumps(self, value: object, /) -> Buffer:
        """Give the value as one buffer of bytes."""

    def loads(self, data: bytes, /) -> object:
        """Give the value of the bytes that `dumps` gave."""


class Packer(Protocol):
    """Values as parts, for a mapping whose pages have a size."""

    def pack(self, value: object) -> list[Flat]:
        """Give the parts of a value; they may refer to its memory. Raises NotStorable."""

    def unpack(self, parts: Sequence[memoryview]) -> object:
        """Give the value of its parts, in writable memory that becomes the value's.

        Raises UnreadableValue where they are not what `pack` gives.
        """

    def unpack_one(self, data: bytes) -> object:
        """Give the value of its only part. Raises UnreadableValue as `unpack`."""
