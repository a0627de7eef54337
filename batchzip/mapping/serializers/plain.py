"""Values that are bytes already, and those of a serializer that the user brings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchzip.arguments.buffers import as_view
from batchzip.errors import BadBatch, NotStorable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchzip.arguments.buffers import Flat
    from batchzip.mapping.serializers.packer import Serializer


class BytesPacker:
    """Values are buffers, and come back as bytes."""

    def pack(self, value: object) -> list[Flat]:
        """View the value."""
        if type(value) is bytes:
            return [value]
        try:
            return [as_view(value, "the value")]  # type: ignore[arg-type] # refuses what is no buffer
        except BadBatch as error:
            raise NotStorable(f"{error}; or say serializer='pickle'") from None

    def unpack(self, parts: Sequence[memoryview]) -> bytes:
        """Copy the value."""
        return bytes(parts[0])

    def unpack_one(self, data: bytes) -> bytes:
        """Return it."""
        return data


class HookPacker:
    """Values are what an object's `dumps` takes and its `loads` gives."""

    def __init__(self, serializer: Serializer) -> None:
        self.serializer = serializer

    def pack(self, value: object) -> list[Flat]:
        """Have it serialised; what is raised there goes through."""
        data = self.serializer.dumps(value)
        try:
            return [as_view(data, "what dumps gives")]
        except BadBatch as error:
            raise NotStorable(str(error)) from None

    def unpack(self, parts: Sequence[memoryview]) -> object:
        """Have it restored."""
        return self.serializer.loads(bytes(parts[0]))

    def unpack_one(self, data: bytes) -> object:
        """Have it restored."""
        return self.serializer.loads(data)
