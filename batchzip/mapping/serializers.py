"""Serializers: a mapping's values as buffers, and back.

    pack(value)     ─▶ parts: flat buffers; what is large in the value is not copied
    unpack(buffers) ─▶ the value; the buffers are its own, and may become part of it

    bytes (the default)   one part: the value, which has the buffer protocol; comes back as bytes
    "pickle"              the pickle stream (protocol 5), then the buffers of arrays and frames
    an object             one part: what its `dumps` gives; its `loads` gets bytes

A buffer shorter than a page stays in the stream: in a page of its own it would take more than the copy costs.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Protocol

from batchzip.buffers import as_view
from batchzip.errors import BadArgument, BadBatch, NotStorable
from batchzip.wording import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchzip.buffers import Buffer, Flat


class Serializer(Protocol):
    """What `CompressedMapping(serializer=…)` takes besides "bytes" and "pickle"."""

    def dumps(self, value: object, /) -> Buffer:
        """Give the value as one buffer of bytes."""

    def loads(self, data: bytes, /) -> object:
        """Give the value of the bytes that `dumps` gave."""


class Packer(Protocol):
    """Values as parts, for a mapping whose pages have a size."""

    def pack(self, value: object) -> list[Flat]:
        """Give the parts of a value; they may refer to its memory. Raises NotStorable."""

    def unpack(self, parts: Sequence[memoryview]) -> object:
        """Give the value of its parts, in writable memory that becomes the value's."""

    def unpack_one(self, data: bytes) -> object:
        """Give the value of its only part."""


class BytesPacker:
    """Values are buffers, and come back as bytes."""

    def pack(self, value: object) -> list[Flat]:
        """View the value."""
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


class PicklePacker:
    """Values are whatever can be pickled; buffers of `least` bytes or more stay out of the stream."""

    def __init__(self, least: int) -> None:
        self.least = least

    def pack(self, value: object) -> list[Flat]:
        """Pickle it. If buffers stay outside, the last part says which were read-only: they will be again."""
        buffers: list[Flat] = []
        writable = bytearray()

        def keep_inside(buffer: pickle.PickleBuffer) -> bool:
            try:
                view = buffer.raw()
            except BufferError:  # not contiguous
                return True
            if view.nbytes < self.least:
                return True
            buffers.append(view)
            writable.append(not view.readonly)
            return False

        try:
            stream = pickle.dumps(value, protocol=5, buffer_callback=keep_inside)
        except Exception as error:  # whatever a __reduce__ raises
            raise NotStorable(
                f"the value, of {type(value).__name__}, cannot be pickled: {error}"
            ) from error
        return [stream, *buffers, bytes(writable)] if buffers else [stream]

    def unpack(self, parts: Sequence[memoryview]) -> object:
        """Unpickle it around the buffers."""
        if len(parts) == 1:
            return pickle.loads(parts[0])
        stream, *buffers, writable = parts
        return pickle.loads(
            stream,
            buffers=[
                buffer if may_write else buffer.toreadonly()
                for buffer, may_write in zip(buffers, writable, strict=True)
            ],
        )

    def unpack_one(self, data: bytes) -> object:
        """Unpickle a value without buffers."""
        return pickle.loads(data)


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


def packer_of(serializer: str | Serializer, page_size: int) -> Packer:
    """Find what packs values; raises BadArgument for what is no serializer."""
    if serializer == "bytes":
        return BytesPacker()
    if serializer == "pickle":
        return PicklePacker(page_size)
    if not isinstance(serializer, str) and all(
        callable(getattr(serializer, name, None)) for name in ("dumps", "loads")
    ):
        return HookPacker(serializer)
    raise BadArgument(
        f"serializer is 'bytes', 'pickle' or an object with dumps and loads, not {shown(serializer)}"
    )
