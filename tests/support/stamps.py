"""Pages that say which they are, and can tell that they are whole."""

from __future__ import annotations

import random
import struct
import zlib

SIZE = 512
HEADER = struct.Struct("<QQI")
"""Index, version, CRC of all that follows."""

MAKES = ("text", "random", "word")


def stamped(index: int, version: int) -> bytes:
    """Make a page that says which it is and can tell that it is whole."""
    make = MAKES[version % 3]
    if make == "word":  # a same-filled page: the stamp is the word
        return (index << 40 | version).to_bytes(8, "little") * (SIZE // 8)
    rng = random.Random(f"{index} {version}")
    room = SIZE - HEADER.size
    body = rng.randbytes(room) if make == "random" else (b"%d text " % version * room)[:room]
    return HEADER.pack(index, version, zlib.crc32(body)) + body


def stamp(page: bytes) -> tuple[int, int]:
    """Read index and version of a page, which must be whole."""
    word = page[:8]
    if page == word * (SIZE // 8):
        number = int.from_bytes(word, "little")
        return number >> 40, number & (1 << 40) - 1
    index, version, check = HEADER.unpack_from(page)
    assert zlib.crc32(page[HEADER.size :]) == check, "a torn page"
    return index, version
