"""Verified: wraps any codec, and restores and compares each output before it counts.

Kernel counterpart: the Intel IAA driver's verify_compress. It guards against everything that would
make a compressed page unreadable: memory errors, bugs of a codec, and pages that change while they
are compressed. The codec compresses a private copy of the page, so that the comparison uses the
same version.

Because it is a codec itself, backends and workers need no special code for it.
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
    """The restored page differs from the original."""


@dataclass(frozen=True, slots=True)
class Verified(Codec):
    """Wraps `codec`. Restores and compares each page right after compressing it."""

    name: ClassVar[str] = "verified"

    codec: Codec

    @property
    def algorithm(self) -> str:
        """The wrapped codec's algorithm."""
        return self.codec.algorithm

    @property
    def deterministic(self) -> bool:
        """Whether the wrapped codec is deterministic."""
        return self.codec.deterministic

    def plan(self) -> Plan:
        """Return the wrapped codec's plan, with verification."""
        return self.codec.plan()._replace(verify=True)

    def compressor(self, page_size: int) -> Transcode:
        """Return a compressor that raises if a page cannot be restored from its output."""
        compress, decompress = self.codec.compressor(page_size), self.codec.decompressor(page_size)

        def verified(page: Flat) -> bytes:
            version = bytes(page)
            output = compress(version)
            if decompress(output) != version:
                raise _DiffersError
            return output

        return verified

    def decompressor(self, page_size: int) -> Transcode:
        """Return the decompressor of `codec`."""
        return self.codec.decompressor(page_size)
