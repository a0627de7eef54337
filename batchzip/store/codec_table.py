"""CodecTable: the codecs that entries were made with, by a number of one byte.

Kernel counterpart: a zswap pool for each compressor, where old entries stay in theirs until it drains.
Here all share one pool, and each entry has the number of its codec: how it is read is told by the
entry, never by a current setting. Equal codecs have one number. Number 0 is no codec: the stored bytes
are the page.

Pages of an engine's codec are restored, and counted, by that engine while it is open. Its codec is made
ready here when a page is to be restored after that.

Locks: `number_of` is called under the store's lock; `decompress` takes none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchzip.core.coder import Coders
from batchzip.errors import BadArgument, ClosedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batchzip.buffers import Flat
    from batchzip.codecs import Codec
    from batchzip.engine import Engine

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
        self._engines: dict[int, Engine] = {}
        self._made: dict[int, Coders] = {}

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

    def adopt(self, number: int, engine: Engine) -> None:
        """Have pages of that number restored by an engine while it is open."""
        self._engines[number] = engine

    def decompress(self, number: int, stored: Flat) -> bytes:
        """Restore one page. Raise PageError: -EBADMSG, -ENOMEM."""
        codec = self._codecs[number]
        engine = self._engines.get(number)
        if engine is not None and engine.codec == codec:
            try:
                return engine.decompress_page(stored)
            except ClosedError:
                self._engines.pop(number, None)
        made = self._made.get(number)
        if made is None or made.codec is not codec:
            made = self._made[number] = Coders(codec, self.page_size)
        return made.decompress_page(stored)
