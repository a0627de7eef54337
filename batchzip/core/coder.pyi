"""Coder: a codec with its buffers and contexts, which compresses and restores single pages.

A page is exactly `page_size` bytes. A source is at most two pages. An operation is 0 (compress) or
1 (decompress). Errors of a page are negative errno values:

    -EINVAL    the page has another size
    -EIO       the codec failed, or verification restored another page
    -ENOSPC    the output does not fit its destination
    -EBADMSG   the source cannot be decoded to exactly a page
    -ENOMEM    there is not enough memory

The codec compresses a private copy of the page, so the owner may change the page during the call. A
codec that is a C function runs without the GIL. Any other codec is called back under the GIL, page
by page. Its exceptions become -EIO or -EBADMSG, and MemoryError becomes -ENOMEM. KeyboardInterrupt,
SystemExit and other exceptions that are no Exception are raised to the caller.
"""

from typing import Self, final

from batchzip.arguments.buffers import Buffer
from batchzip.codecs.codec import Codec
from batchzip.core.plan import Native, Plan

def is_available(native: Native) -> bool:
    """Return whether this process has found the C function of a codec."""

def most_value_bytes(page_size: int) -> int:
    """Return the length limit of a value that is compressed in one call, in bytes."""

@final
class Coder:
    """A codec with its buffers and contexts, for pages of one size and one user at a time.

    `codec`             a codec, or its plan.
    `like`              a coder of the same codec. It is kept, and its dictionary tables are shared.
    `names_dictionary`  whether zstd frames contain the ID of their dictionary, of up to four bytes.

    Raises the codec's exception if its compressor or decompressor cannot be made, and BadArgument
    for a page size that is out of range.

    Not thread-safe: each thread needs a coder of its own. Coders provides them.
    """

    def __new__(
        cls,
        codec: Codec | Plan,
        page_size: int,
        like: Coder | None = None,
        names_dictionary: bool = True,
    ) -> Self: ...
    @property
    def codec(self) -> Codec | Plan:
        """The codec or plan from which it was made."""

    @property
    def native(self) -> bool:
        """Whether the codec is a C function, which runs without the interpreter."""

    def compress(self, page: Buffer) -> bytes:
        """Compress one page. Raise PageError: -EINVAL for another size, -EIO, -ENOMEM."""

    def decompress(self, src: Buffer) -> bytes:
        """Restore one page. Raise PageError: -EBADMSG, -ENOMEM."""

@final
class Coders:
    """A free list of the coders of one codec. A coder is made when none is free.

    Thread-safe. Signal handlers and finalizers may use it in the middle of another call: taking a
    coder and giving it back is one step each, under the GIL. All coders and their counters are kept
    until this object is freed.
    """

    def __init__(
        self, codec: Codec | Plan, page_size: int, *, names_dictionary: bool = True
    ) -> None: ...
    @property
    def codec(self) -> Codec | Plan:
        """The codec or plan from which the coders are made."""

    @property
    def page_size(self) -> int:
        """Bytes of a page."""

    @property
    def native(self) -> bool:
        """Whether the codec runs without the interpreter.

        Reading it makes the first coder, which may raise the codec's exception.
        """

    def compress_page(self, page: Buffer) -> bytes:
        """Compress one page, and count it. See Coder.compress."""

    def decompress_page(self, src: Buffer) -> bytes:
        """Restore one page, and count it. See Coder.decompress."""

    def memory_bytes(self) -> int:
        """Return the memory of the coders in bytes.

        For zstd this counts buffers, contexts and dictionary tables; for other codecs only buffers.
        """

    def size_of(self, values: list[bytes]) -> int:
        """Return the total stored length of values that are compressed one by one.

        A value that is too long for one call, or does not shrink, counts with its own length.
        """

    def add_errors(self, codes: list[int]) -> None:
        """Count pages that failed elsewhere, by their negative errno."""

    def errors(self) -> dict[int, int]:
        """Return the number of pages that failed, by negative errno."""

    def add_batch(self, operation: int, *, divided: bool = False) -> None:
        """Count a batch that was done elsewhere. `divided` tells whether lanes had shares of it."""

    def totals(self, operation: int) -> dict[str, int]:
        """Return the counters of one operation.

        "batches", "divided", "waits", "wait_ns" and "fallbacks" count batches. "pages", "bytes_in",
        "bytes_out" and "busy_ns" count the pages that these coders did. While work is under way,
        counters may differ by a batch.
        """
