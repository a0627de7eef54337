"""Pages of another process's store, read from its shared memory.

A load is one call without the GIL. It waits for nobody: the owner may store, move and free meanwhile, be
stopped, or dead. Each page is one that was stored at its index at some moment of the call.

Objects take ownership of the descriptors they are given, also where they cannot be made, and close them
when they go. Both are thread-safe. `close()` may come while other threads load: they end as they would
have, and the last one gives the memory up. Neither may be used in a forked child.
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
    `file_fd`              of the backing file; −1 where there is none, or only its owner can read it.
    `known`                how many numbers of codecs were given out when `codecs` had them.
    `codecs`               the codecs by number.
    `ask`                  returns both as they are now, from the owner.

    Raise BadArgument where the descriptors are not of a store, MemoryError.
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
        """Give up descriptors and mappings, once no call uses them."""

@final
class SharedTable:
    """The table of one group of another process's store; the objects it names are in a pool.

    `ask`  returns the stored bytes of an index, read by the owner; None where it has none in its file.

    Raise as SharedPool.

    What is loaded raises PageNotStored where nothing was stored there at some moment of the call; CorruptPage;
    PageError: -ENOMEM, or what reading the file gave; ClosedError where this or the store is closed;
    whatever `ask` raises.
    """

    def __new__(cls, fd: int, pool: SharedPool, ask: Callable[[int], bytes | None]) -> Self: ...
    @property
    def closed(self) -> bool:
        """Whether close() was called."""

    def load(self, index: int) -> bytes:
        """Return the bytes of one page."""

    def load_into(self, index: int, page: Buffer) -> None:
        """Fill a writable buffer of one page, which stays as it was where that fails."""

    def load_many(self, indices: npt.NDArray[np.int64], pages: Buffer) -> None:
        """Fill a writable buffer with n pages, in the order of their indices.

        It may hold anything where that fails; the error is of the first page concerned.
        """

    def get(self, index: int) -> tuple[int, int]:
        """Return the two words of an entry: (0, 0) where nothing is stored.

        The value, and checksum | kind << 32 | codec << 40 | epoch << 48.
        """

    def close(self) -> None:
        """Give up the descriptor and the mapping, once no call uses them."""
