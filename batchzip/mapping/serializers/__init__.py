"""Serializers: turn a mapping's values into buffers, and back.

    pack(value)     ─▶ parts: flat buffers. Large buffers of the value are not copied.
    unpack(buffers) ─▶ the value. It owns the buffers, which may become part of it.

    "bytes" (the default)   one part: the value, which has the buffer protocol. Returned as bytes.
    "pickle"                the pickle stream (protocol 5), then the buffers of arrays and frames
    "json", "msgpack"       one part, encoded by msgspec
    "numpy", "torch"        a description of the array, then its data
    "arrow"                 a stream in Arrow's IPC format, cut at its large buffers
    an object               one part: the result of its `dumps`. Its `loads` receives bytes.

A value of up to 64 KiB, or a page if that is more, is one part: the mapping compresses it in one
call. A shorter buffer is copied into the part before it, because pages of its own would cost more
than the copy.

A serializer restores a value as it was, or refuses it with NotStorable when it is stored. Bytes
that no value was packed into raise UnreadableValue. Only "pickle" and the user's own serializers
may run code contained in the bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchzip.errors import BadArgument
from batchzip.mapping.serializers.arrays import ArrayPacker
from batchzip.mapping.serializers.messages import MessagePacker
from batchzip.mapping.serializers.packer import Packer, Serializer
from batchzip.mapping.serializers.pickles import PicklePacker
from batchzip.mapping.serializers.plain import BytesPacker, HookPacker
from batchzip.mapping.serializers.tables import TablePacker
from batchzip.mapping.serializers.tensors import TensorPacker
from batchzip.wording import shown

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Packer", "Serializer", "packer_of"]

_PACKERS: dict[str, Callable[[int], Packer]] = {
    "arrow": TablePacker,
    "bytes": lambda _: BytesPacker(),
    "json": lambda _: MessagePacker("json"),
    "msgpack": lambda _: MessagePacker("msgpack"),
    "numpy": ArrayPacker,
    "pickle": PicklePacker,
    "torch": TensorPacker,
}


def packer_of(serializer: str | Serializer, page_size: int) -> Packer:
    """Return the packer for a serializer. `page_size` is the size of the largest value in one part.

    Raise BadArgument if `serializer` is not a serializer, and MissingExtra if its library is
    missing.
    """
    if isinstance(serializer, str):
        make = _PACKERS.get(serializer)
        if make is not None:
            return make(page_size)
    elif all(callable(getattr(serializer, name, None)) for name in ("dumps", "loads")):
        return HookPacker(serializer)
    raise BadArgument(
        f"serializer must be {', '.join(map(repr, _PACKERS))} or an object with dumps and loads, "
        f"not {shown(serializer)}"
    )
