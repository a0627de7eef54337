"""CodecTable: the codecs that entries were made with, by a number of one byte.

Kernel counterpart: a zswap pool for each compressor, where old entries stay in theirs until it drains.
Here all share one pool, and each entry has the number of its codec: how it is read is told by the
entry, never by a current setting. Equal codecs have one number. Number 0 is no codec: the stored bytes
are the page.

Decompressors belong to a thread each (sharing a zstandard one crashes), and are made when first used.

Locks: `number_of` is called under the store's lock; `decompress` takes none.
"""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING

from batchzip.errors import BadArgument, PageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batchzip.buffers import Flat
    from batchzip.codecs import Codec
    from batchzip.codecs.codec import Transcode

NO_CODEC = 0
"""The number of entries whose stored bytes are the page itself."""

_MOST = 255


class CodecTable:
    """Numbers of codecs, and their decompressors for the calling thread. Thread-safe but for numbering."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self._codecs: dict[int, Codec] = {}
        self.given = 0
        """How many numbers were given out."""
        self.reused = 0
        """How many of them had been another codec's."""
        self._threads = threading.local()

    def __getitem__(self, number: int) -> Codec:
        return self._codecs[number]

    def number_of(self, codec: Codec, in_use: Iterable[int] | None = None) -> int:
        """Give the number of a codec, a new one if it has none.

        `in_use` are the numbers that entries have, needed once all were given out; without it
        there is BadArgument then. A number that no entry has is given to the new codec.
        """
        for number, known in self._codecs.items():
            if known is codec or (type(known) is type(codec) and known == codec):
                return number
        if len(self._codecs) == _MOST:
            free = set(self._codecs).difference(self._codecs if in_use is None else in_use)
            if not free:
                raise BadArgument(f"a store holds pages of at most {_MOST} codecs at a time")
            number = min(free)
            self.reused += 1
        else:
            number = len(self._codecs) + 1
        self._codecs[number] = codec
        self.given += 1
        return number

    def restore(self, codecs: dict[int, Codec]) -> None:
        """Take over another table's numbers."""
        self._codecs = dict(codecs)

    @property
    def codecs(self) -> dict[int, Codec]:
        """The codecs by number."""
        return dict(self._codecs)

    def decompressor(self, number: int) -> Transcode:
        """Make or find the calling thread's decompressor for that number."""
        codec = self._codecs[number]
        try:
            made: dict[int, tuple[Codec, Transcode]] = self._threads.made
        except AttributeError:
            made = self._threads.made = {}
        found = made.get(number)
        if found is None or found[0] is not codec:
            found = made[number] = codec, codec.decompressor(self.page_size)
        return found[1]

    def decompress(self, number: int, stored: Flat) -> bytes:
        """Restore one page. Raises PageError: -EBADMSG, -ENOMEM."""
        try:
            try:
                codec, decompress = self._threads.made[number]
                if codec is not self._codecs[number]:
                    decompress = self.decompressor(number)
            except (AttributeError, KeyError):
                decompress = self.decompressor(number)
            page: bytes = decompress(stored)
        except MemoryError:
            raise PageError(0, -errno.ENOMEM) from None
        except Exception:  # noqa: BLE001 - whatever a codec raises means the same here
            raise PageError(0, -errno.EBADMSG) from None
        if len(page) != self.page_size:
            raise PageError(0, -errno.EBADMSG)
        return page
