"""Context: a codec made ready for one thread, and the two loops that everything runs.

The sequential backend, the caller's share of a batch and a worker's share all come down to
`compress_into` and `decompress_into`. Per page there is the codec call, one copy of its output to
where it belongs and one length; nothing is collected first, so that the output is copied while it
is in the nearest cache and its memory is free again for the next. A list comprehension over the
codec followed by a pass that places the outputs measured 0.4 µs a page slower.

One bad page never hides the others: an exception is noted as that page's error and the loop goes on
behind it. A `try` around the loop costs nothing while nothing is raised.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from batchzip.statistics import Tally

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from batchzip.buffers import Flat
    from batchzip.codecs.codec import Codec, Transcode

_SNAPSHOT_BYTES = 256 << 10

COMPRESS = 0
DECOMPRESS = 1


class _NoSpaceError(Exception):
    """An output does not fit its destination."""


class Snapshot:
    """Room for private copies of some pages, which are compressed in place of the originals.

    A page that its owner changes while a codec reads it may come out as bytes that no codec decodes:
    4 of 200,000 with lz4, under a writer that did nothing else. So what is compressed is a copy, one
    version of the page. 64 pages are copied at once, as one array; then the codec finds them in the
    cache, and a copy costs 0.1 µs (page by page it is 0.5).
    """

    __slots__ = ("array", "memory", "pages")

    def __init__(self, page_size: int) -> None:
        count = max(1, _SNAPSHOT_BYTES // page_size)
        self.memory = memoryview(bytearray(count * page_size))
        self.pages = [self.memory[i * page_size : (i + 1) * page_size] for i in range(count)]
        self.array: object = None
        """The same as an array (count, page_size), where somebody has NumPy."""


class Context:
    """A codec's compressor and decompressor for pages of `page_size` bytes, for one thread."""

    __slots__ = ("__weakref__", "compress", "decompress", "page_size", "snapshot", "tallies")

    def __init__(self, codec: Codec, page_size: int) -> None:
        self.page_size = page_size
        self.compress: Transcode = codec.compressor(page_size)
        self.decompress: Transcode = codec.decompressor(page_size)
        self.tallies = Tally(), Tally()
        """What was done with it, by operation."""
        self.snapshot = Snapshot(page_size)
        """Room for copies of pages that their owner may change meanwhile."""

    def compress_into(
        self,
        pages: Iterable[Flat],
        dst: memoryview,
        hop: int,
        lengths: memoryview,
        share: range,
        capacity: int,
    ) -> dict[int, int]:
        """Compress `pages` to `dst`, and their bytes to `lengths`.

        Page number i of the share (`share[i]` = k) goes to `dst[k * hop:]` and `lengths[k]`; with
        `hop` 0, outputs are packed one behind the other. Returns the negative errno of each page
        that failed, by k; its length is 0.
        """
        compress = self.compress
        errors: dict[int, int] = {}
        at, index, step = share.start * hop, share.start, share.step
        leap = hop * step
        total = 0
        remaining = iter(pages)
        while True:
            try:
                for page in remaining:
                    output = compress(page)
                    length = len(output)
                    if not 0 < length <= capacity:
                        raise _NoSpaceError if length else EOFError  # noqa: TRY301 - that page's
                    dst[at : at + length] = output
                    lengths[index] = length
                    total += length
                    index += step
                    at += leap or length
            except Exception as error:  # noqa: BLE001 - whatever a codec raises is that page's error
                errors[index] = _code(error, -errno.EIO)
                lengths[index] = 0
                index += step
                at += leap
            else:
                tally = self.tallies[COMPRESS]
                tally.pages += len(share)
                tally.bytes_in += len(share) * self.page_size
                tally.bytes_out += total
                return errors

    def decompress_into(
        self, srcs: Sequence[Flat], dst: memoryview, hop: int, share: Sequence[int]
    ) -> dict[int, int]:
        """Restore pages from `srcs` to `dst`, each output exactly a page.

        Source number i of the share (`share[i]` = k) goes to `dst[k * hop:]`. Returns the negative
        errno of each that failed, by k.
        """
        decompress = self.decompress
        size = self.page_size
        errors: dict[int, int] = {}
        remaining = zip(srcs, share, strict=True)
        index = -1
        while True:
            try:
                for src, index in remaining:
                    at = index * hop
                    dst[at : at + size] = decompress(src)  # another length raises ValueError
            except Exception as error:  # noqa: BLE001 - as above
                errors[index] = _code(error, -errno.EBADMSG)
            else:
                tally = self.tallies[DECOMPRESS]
                tally.pages += len(share)
                tally.bytes_in += sum(map(len, srcs))
                tally.bytes_out += (len(share) - len(errors)) * size
                return errors


def _code(error: Exception, otherwise: int) -> int:
    if isinstance(error, _NoSpaceError):
        return -errno.ENOSPC
    return -errno.ENOMEM if isinstance(error, MemoryError) else otherwise
