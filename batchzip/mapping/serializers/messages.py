"""JSON and MessagePack, by msgspec: values that survive the round trip unchanged.

msgspec encodes many values that come back changed: a tuple as a list, a NaN in JSON as None, a key
1 as "1". Such values are refused (core/trees.pyx). Other types, such as msgspec's Struct, need a
serializer object with `dumps` and `loads`.
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
    """Packs trees of lists and dicts. Loading never runs code from the bytes."""

    def __init__(self, name: str) -> None:
        msgspec = load_extra("msgspec", extra="msgspec", needed_by=f"serializer={name!r}")
        module = getattr(msgspec, name)
        self._error: type[Exception] = msgspec.DecodeError
        self._encode = module.Encoder().encode
        self._decode = module.Decoder().decode
        self._name = name
        self._binary = name == "msgpack"

    def pack(self, value: object) -> list[Flat]:
        """Encode a value. Raise NotStorable if it would not be restored unchanged."""
        why: object = misfit(value, binary=self._binary)
        if why is None:
            try:
                return [self._encode(value)]
            except (TypeError, ValueError, OverflowError, RecursionError) as error:
                why = error  # an int is too large, or a str has a lone surrogate
        raise NotStorable(f"serializer={self._name!r} takes {_TAKES[self._name]}, not {why}")

    def unpack(self, parts: Sequence[memoryview]) -> object:
        """Decode the only part. Raise UnreadableValue."""
        if len(parts) != 1:
            raise UnreadableValue(f"a value in {self._name} has one part, not {len(parts)}")
        return self.unpack_one(parts[0])

    def unpack_one(self, data: bytes | memoryview) -> object:
        """Decode a value. Raise UnreadableValue."""
        try:
            return self._decode(data)
        except (self._error, ValueError, TypeError, RecursionError) as error:
            raise UnreadableValue(f"the bytes are not valid {self._name}: {error}") from None
