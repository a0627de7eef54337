"""Values through a packer, as a mapping takes them: into memory of their own, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchzip.errors import UnreadableValue

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batchzip.mapping.serializers import Packer

PAGE = 4096


def packed(packer: Packer, value: object) -> list[bytes]:
    """Return the parts of a value, checked: what fits a page is one part."""
    parts = [bytes(part) for part in packer.pack(value)]
    assert len(parts) == 1 or sum(map(len, parts)) > PAGE
    return parts


def restored(packer: Packer, parts: Sequence[bytes]) -> Any:
    """Return the value of parts, read as a mapping reads them."""
    if len(parts) == 1 and len(parts[0]) <= PAGE:
        return packer.unpack_one(parts[0])
    return packer.unpack([memoryview(bytearray(part)) for part in parts])


def back(packer: Packer, value: object) -> Any:
    """Return a value that went there and back."""
    return restored(packer, packed(packer, value))


def read_damaged(packer: Packer, parts: Sequence[bytes], use: Callable[[Any], object]) -> int:
    """Read parts with every bit of the first one flipped, and cut short everywhere.

    Whatever is raised is UnreadableValue; what is read can be used. Returns how many were refused.
    """
    first, *others = parts
    damaged = [first[:end] for end in range(len(first))]
    for bit in range(8 * len(first)):
        spoiled = bytearray(first)
        spoiled[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(spoiled))
    refused = 0
    for each in damaged:
        try:
            value = restored(packer, [each, *others])
        except UnreadableValue:
            refused += 1
        else:
            use(value)
    return refused
