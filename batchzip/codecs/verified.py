"""Verified: any codec, whose outputs are restored and compared before they count.

Kernel counterpart: the Intel IAA driver's verify_compress. It guards against whatever would make a
compressed page unreadable: memory errors, a codec's bugs, and pages that change while they are
compressed. What is compressed is a private copy of the page, so one version of it is compared with
itself.

A codec that wraps another: backends and workers need not know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from batchzip.codecs.codec import Codec

if TYPE_CHECKING:
    from batchzip.arguments.buffers import Flat
    from batchzip.codecs.codec import Transcode
    from batchzip.core.plan import Plan


class _DiffersError(Exception):
    """What was compressed does not come back."""


@dataclass(frozen=True, slots=True)
class Verified(Codec):
    """Compresses with `codec`, and restores and compares each page at once."""

    name: ClassVar[str] = "verified"

    codec: Codec

    @property
    def algorithm(self) -> str:
        """The wrapped codec's."""
        return self.codec.algorithm

    @property
    def deterministic(self) -> bool:
        """As the wrapped codec."""
        return self.codec.deterministic

    def plan(self) -> Plan:
        """Plan the wrapped codec, verified."""
        return self.codec.plan()._replace(verify=True)

    def compressor(self, page_size: int) -> Transcode:
        """Make a compressor that raises where a page would not come back."""
        compress, decompress = self.codec.compressor(page_size), self.codec.decompressor(page_size)

        def verified(page: Flat) -> bytes:
            version = bytes(page)
            output = compress(version)
            if decompress(output) != version:
                raise _DiffersError
            return output

        return verified

    def decompressor(self, page_size: int) -> Transcode:
        """Make the decompressor of `codec`."""
        return self.codec.decompressor(page_size)
