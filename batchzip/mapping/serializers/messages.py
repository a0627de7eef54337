"""JSON and MessagePack, by msgspec: values that such a format gives back as they were.

msgspec encodes much more than that: a tuple comes back as a list, a NaN in JSON as None, a key 1 as
"1". Such values are refused (core/trees.pyx). For others, msgspec's Struct among them, there are
objects with `dumps` and `loads`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchzip.core.trees import misfit
from batchzip.errors import NotStorable, UnreadableValue
from batchzip.extras import load_extra

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchzip.arguments.buffers import Flat

_TAKES = {
    "json": "str, int, finite float, bool and None, lists of these and dicts with keys of str",
    "msgpack": "str, bytes, int of up to 64 bits, float, bool and None, lists and dicts of these",
}


class MessagePacker:
    """Values are trees of lists and dicts. Nothing in the bytes is run when they are loaded."""

    def __init__(self, name: str) -> None:
        msgspec = load_extra("msgspec", extra="msgspec", needed_by=f"serializer={name!r}")
        module = getattr(msgspec, name)
        self._error: type[Exception] = msgspec.DecodeError
        self._encode = module.Encoder().encode
        self._decode = module.Decoder().decode
        self._name = name
        self._binary = name == "msgpack"

    def pack(self, value: object) -> list[Flat]:
        """Encode it. Raises NotStorable for what would not come back as it is."""
        why: object = misfit(value, binary=self._binary)
        if why is None:
            try:
                return [self._encode(value)]
            except (TypeError, ValueError, OverflowError, RecursionError) as error:
                why = error  # an int is too large, or a str has half a character
        raise NotStorable(f"serializer={self._name!r} takes {_TAKES[self._name]}, not {why}")

    def unpack(self, parts: Sequence[memoryview]) -> object:
        """Decode the only part. Raises UnreadableValue."""
        if len(parts) != 1:
            raise UnreadableValue(f"{len(parts)} parts are no {self._name}, which has one")
        return self.unpack_one(parts[0])

    def unpack_one(self, data: bytes | memoryview) -> object:
        """Decode it. Raises UnreadableValue."""
        try:
            return self._decode(data)
        except (self._error, ValueError, TypeError, RecursionError) as error:
            raise UnreadableValue(f"the bytes are no {self._name} of a value: {error}") from None
