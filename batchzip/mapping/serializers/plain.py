"""Values that are bytes already, and values of the user's own serializer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchzip.arguments.buffers import as_view
from batchzip.errors import BadBatch, NotStorable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchzip.arguments.buffers import Flat
    from batchzip.mapping.serializers.packer import Serializer


class BytesPacker:
    """Packs buffers. They are returned as bytes."""

    def pack(self, value: object) -> list[Flat]:
        """View a value. Raise NotStorable if it is not a buffer."""
        if type(value) is bytes:
            return [value]
        try:
            return [as_view(value, "the value")]  # type: ignore[arg-type] # raises BadBatch
        except BadBatch as error:
            raise NotStorable(f"{error}; or use serializer='pickle'") from None

    def unpack(self, parts: Sequence[memoryview]) -> bytes:
        """Return a copy of the value."""
        (data,) = parts
        return bytes(data)

    def unpack_one(self, data: bytes) -> bytes:
        """Return the value."""
        return data


class HookPacker:
    """Packs values with the user's `dumps` and `loads`."""

    def __init__(self, serializer: Serializer) -> None:
        self.serializer = serializer

    def pack(self, value: object) -> list[Flat]:
        """Serialise a value. Raise whatever `dumps` raises, and NotStorable for its result."""
        data = self.serializer.dumps(value)
        try:
            return [as_view(data, "the result of dumps")]
        except BadBatch as error:
            raise NotStorable(str(error)) from None

    def unpack(self, parts: Sequence[memoryview]) -> object:
        """Restore a value. Raise whatever `loads` raises."""
        (data,) = parts
        return self.serializer.loads(bytes(data))

    def unpack_one(self, data: bytes) -> object:
        """Restore a value. Raise whatever `loads` raises."""
        return self.serializer.loads(data)
