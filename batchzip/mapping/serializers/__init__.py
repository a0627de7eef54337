"""Serializers: a mapping's values as buffers, and back.

    pack(value)     ─▶ parts: flat buffers; what is large in the value is not copied
    unpack(buffers) ─▶ the value; the buffers are its own, and may become part of it

    "bytes" (the default)   one part: the value, which has the buffer protocol; comes back as bytes
    "pickle"                the pickle stream (protocol 5), then the buffers of arrays and frames
    "json", "msgpack"       one part, by msgspec
    "numpy", "torch"        what the array is, then its data
    "arrow"                 the stream of Arrow's IPC format, cut at its large buffers
    an object               one part: what its `dumps` gives; its `loads` gets bytes

A value of up to 64 KiB, or a page, is one part, as the mapping compresses it in one call. A shorter buffer
is copied into the part before it: on pages of its own it would take more than the copy costs.

A value comes back as what it was, or is refused (NotStorable) when it is put in. Bytes that no
value was packed into raise UnreadableValue. Only "pickle", and objects of the user, may run code
that is in the bytes.
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
    """Find what packs values.

    Raises BadArgument for what is no serializer, and MissingExtra where its library is missing.
    """
    if isinstance(serializer, str):
        make = _PACKERS.get(serializer)
        if make is not None:
            return make(page_size)
    elif all(callable(getattr(serializer, name, None)) for name in ("dumps", "loads")):
        return HookPacker(serializer)
    raise BadArgument(
        f"serializer is {', '.join(map(repr, _PACKERS))} or an object with dumps and loads, "
        f"not {shown(serializer)}"
    )
