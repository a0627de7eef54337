"""Context: a codec made ready for one thread, and the one loop everything runs.

The sequential backend, the caller's share of a batch and a worker's share all come down to
`Context.run`: a list comprehension over a C call. The bookkeeping per page is left to whoever
places the outputs. Only when some page raised is the list gone through again with care, page by
page, so that one bad page never hides the others and the good ones pay nothing for it.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

    from batchzip.codecs.codec import Codec, Transcode

COMPRESS = 0
DECOMPRESS = 1

_NOTHING_FAILED: dict[int, int] = {}


class Context:
    """A codec's compressor and decompressor for pages of `page_size` bytes, for one thread."""

    __slots__ = ("compress", "decompress", "page_size")

    def __init__(self, codec: Codec, page_size: int) -> None:
        self.page_size = page_size
        self.compress: Transcode = codec.compressor(page_size)
        self.decompress: Transcode = codec.decompressor(page_size)

    def run(
        self, operation: int, inputs: Sequence[Buffer], capacity: int
    ) -> tuple[list[bytes], dict[int, int]]:
        """Compress (at most `capacity` bytes each) or decompress (exactly a page each) `inputs`.

        Returns the outputs in order and, by position, the negative errno of each that failed; a
        failed one's output is empty. Exceptions of the codec never leave this method;
        KeyboardInterrupt does.
        """
        if operation == COMPRESS:
            compress = self.compress
            try:
                outputs = [compress(page) for page in inputs]
            except Exception:  # noqa: BLE001 - whatever a codec raises is that page's error
                return self._run_one_by_one(compress, inputs, -errno.EIO, capacity, 1)
            if max(map(len, outputs)) <= capacity and all(outputs):
                return outputs, _NOTHING_FAILED
            return self._checked(outputs, {}, capacity, 1)
        decompress = self.decompress
        page_size = self.page_size
        try:
            outputs = [decompress(src) for src in inputs]
        except Exception:  # noqa: BLE001 - as above
            return self._run_one_by_one(decompress, inputs, -errno.EBADMSG, page_size, page_size)
        for output in outputs:
            if len(output) != page_size:
                return self._checked(outputs, {}, page_size, page_size)
        return outputs, _NOTHING_FAILED

    def _run_one_by_one(
        self,
        call: Transcode,
        inputs: Sequence[Buffer],
        failed: int,
        most: int,
        least: int,
    ) -> tuple[list[bytes], dict[int, int]]:
        outputs: list[bytes] = []
        errors: dict[int, int] = {}
        for position, source in enumerate(inputs):
            try:
                outputs.append(call(source))
            except Exception as error:  # noqa: BLE001 - as above
                errors[position] = -errno.ENOMEM if isinstance(error, MemoryError) else failed
                outputs.append(b"")
        return self._checked(outputs, errors, most, least)

    def _checked(
        self, outputs: list[bytes], errors: dict[int, int], most: int, least: int
    ) -> tuple[list[bytes], dict[int, int]]:
        """Fail the outputs outside `least`…`most` bytes; those already in `errors` stay as is."""
        for position, output in enumerate(outputs):
            if least <= len(output) <= most or position in errors:
                continue
            # A page has one right length; of compressed bytes only too many are the caller's fault.
            if least == most:
                errors[position] = -errno.EBADMSG
            else:
                errors[position] = -errno.ENOSPC if output else -errno.EIO
            outputs[position] = b""
        return outputs, errors
