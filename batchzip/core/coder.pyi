"""A codec made ready: what is done with one page, and what was done so far.

A page is exactly `page_size` bytes; a source is at most two pages. An operation is 0 (compress) or
1 (decompress). Errors of a page are negative errno values:

    -EINVAL    the page has another size
    -EIO       the codec failed, or the page did not come back when it was verified
    -ENOSPC    the output does not fit its destination
    -EBADMSG   the source cannot be decoded to exactly a page
    -ENOMEM    there is no memory for it

What is compressed is a private copy of the page, so its owner may change it meanwhile. A codec that
is a C function runs without the GIL. Any other codec is called back under the GIL, page by page;
what it raises becomes -EIO or -EBADMSG, but KeyboardInterrupt, SystemExit and the like are raised
here.
"""

from typing import Self, final

from batchzip.arguments.buffers import Buffer
from batchzip.codecs.codec import Codec
from batchzip.core.plan import Native, Plan

def is_available(native: Native) -> bool:
    """Return whether the C function that a codec asks for was found here."""

def most_value_bytes(page_size: int) -> int:
    """Return how many bytes a value has at most that is compressed in one call."""

@final
class Coder:
    """A codec made ready: compresses and restores pages of one size, for one user at a time.

    `codec`   a codec, or its plan.
    `like`    a coder of the same codec, whose dictionary tables are used. It is kept.
    `names_dictionary`  whether zstd's frames name their dictionary, in four bytes.

    Raise whatever the codec raises where it cannot be made ready.

    Not thread-safe: two threads need a coder each, as Coders gives them.
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
        """What it was made of."""

    @property
    def native(self) -> bool:
        """Whether it is a C function, and runs without the interpreter."""

    def compress(self, page: Buffer) -> bytes:
        """Compress one page. Raise PageError: -EINVAL for another size, -EIO, -ENOMEM."""

    def decompress(self, src: Buffer) -> bytes:
        """Restore one page. Raise PageError: -EBADMSG, -ENOMEM."""

@final
class Coders:
    """The coders of one codec: as many as are in use at a time, made when they are needed.

    Thread-safe, and safe to use from a signal handler or finalizer that comes in the middle of
    another call: a coder is taken and given back in one step each, under the GIL. All are kept
    until this object goes, and with them what they counted.
    """

    def __init__(
        self, codec: Codec | Plan, page_size: int, *, names_dictionary: bool = True
    ) -> None: ...
    @property
    def codec(self) -> Codec | Plan:
        """What the coders are made of."""

    @property
    def page_size(self) -> int:
        """Bytes of a page."""

    @property
    def native(self) -> bool:
        """Whether the codec runs without the interpreter.

        Makes the codec ready where it was not yet, and raises whatever the codec raises then.
        """

    def compress_page(self, page: Buffer) -> bytes:
        """Compress one page, and count it; see Coder.compress."""

    def decompress_page(self, src: Buffer) -> bytes:
        """Restore one page, and count it; see Coder.decompress."""

    def memory_bytes(self) -> int:
        """Return the bytes of memory that the coders have: buffers, the codec's contexts, dictionary tables.

        Of zstd all of these are counted, of other codecs the buffers alone.
        """

    def size_of(self, values: list[bytes]) -> int:
        """Return the bytes of values that are compressed alone, if they are not too long and it pays."""

    def add_errors(self, codes: list[int]) -> None:
        """Count pages that failed elsewhere, by their negative errno."""

    def errors(self) -> dict[int, int]:
        """Return the number of pages that failed, by negative errno."""

    def add_batch(self, operation: int, *, divided: bool = False) -> None:
        """Count a batch that was done elsewhere; `divided`: lanes had shares of it."""

    def totals(self, operation: int) -> dict[str, int]:
        """Return what was done of one operation.

        "batches", "divided", "waits", "wait_ns", "fallbacks", and of the pages that these coders
        did: "pages", "bytes_in", "bytes_out", "busy_ns". Figures of work under way may be a batch
        apart.
        """
