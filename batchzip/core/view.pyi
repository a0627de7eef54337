"""Pages of another process's store, read from its shared memory.

A load is one call without the GIL. It never waits for the owner, which may store, move and free
objects meanwhile, or be stopped or dead. Each page returned was stored at its index at some moment
during the call.

The classes take ownership of the descriptors passed to them, even if the constructor fails, and
close them at deallocation. Both are thread-safe. `close()` may be called while other threads load.
Their loads complete normally, and the last one releases the memory. Neither may be used in a forked
child.
"""

from collections.abc import Callable
from typing import Self, final

import numpy as np
import numpy.typing as npt

from batchzip.arguments.buffers import Buffer
from batchzip.codecs.codec import Codec

@final
class SharedPool:
    """The pool of another process's store, its backing file and its codecs.

    `data_fd`, `words_fd`  the pool's descriptors.
    `file_fd`              the backing file's descriptor; −1 if there is none or only the owner can
                           read the file.
    `known`                how many codec numbers had been given out when `codecs` was made.
    `codecs`               the codecs by number.
    `ask`                  a callable that asks the owner for the current `known` and `codecs`.

    Raises BadArgument if the descriptors do not belong to a store, and MemoryError.
    """

    def __new__(
        cls,
        data_fd: int,
        words_fd: int,
        file_fd: int,
        page_size: int,
        known: int,
        codecs: dict[int, Codec],
        ask: Callable[[], tuple[int, dict[int, Codec]]],
    ) -> Self: ...
    @property
    def closed(self) -> bool:
        """Whether close() was called."""

    def close(self) -> None:
        """Release the descriptors and mappings, as soon as no call uses them."""

@final
class SharedTable:
    """The table of one group of another process's store. Its objects are in a SharedPool.

    `ask`  a callable that asks the owner to read the stored bytes of an index from its file. It
           returns None if the file has none.

    Raises as SharedPool.

    A load raises PageNotStored if nothing was stored at the index at some moment during the call,
    CorruptPage if the page is damaged, PageError with -ENOMEM or the error of reading the file,
    ClosedError if this view or the store is closed, and whatever `ask` raises.
    """

    def __new__(cls, fd: int, pool: SharedPool, ask: Callable[[int], bytes | None]) -> Self: ...
    @property
    def closed(self) -> bool:
        """Whether close() was called."""

    def load(self, index: int) -> bytes:
        """Return the bytes of one page."""

    def load_into(self, index: int, page: Buffer) -> None:
        """Fill a writable buffer of one page. The buffer is unchanged on failure."""

    def load_many(self, indices: npt.NDArray[np.int64], pages: Buffer) -> None:
        """Fill a writable buffer with n pages, in the order of `indices`.

        On failure the contents of the buffer are undefined. The error is that of the first page
        that fails.
        """

    def get(self, index: int) -> tuple[int, int]:
        """Return the two words of an entry, or (0, 0) if nothing is stored.

        They are the value, and checksum | kind << 32 | codec << 40 | epoch << 48.
        """

    def close(self) -> None:
        """Release the descriptor and the mapping, as soon as no call uses them."""
