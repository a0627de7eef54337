"""The protocols of serializers (for users) and of packers (for mappings)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchzip.arguments.buffers import Buffer, Flat


class Serializer(Protocol):
    """An object that `CompressedMapping(serializer=…)` takes instead of a name."""

    def dumps(self, value: object, /) -> Buffer:
        """Return the value as one buffer of bytes."""

    def loads(self, data: bytes, /) -> object:
        """Return the value of the bytes that `dumps` returned."""


class Packer(Protocol):
    """Turns values into parts, and back, for one mapping."""

    def pack(self, value: object) -> list[Flat]:
        """Return the parts of a value. They may refer to its memory. Raise NotStorable."""

    def unpack(self, parts: Sequence[memoryview]) -> object:
        """Return the value of its parts. Their memory is writable and becomes the value's.

        Raise UnreadableValue if `pack` cannot have made the parts.
        """

    def unpack_one(self, data: bytes) -> object:
        """Return the value of its only part. Raise UnreadableValue as `unpack`."""
