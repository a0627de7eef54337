"""Batches as plain memory: the core's view of a batch descriptor.

A Pointers holds addresses of memory that other objects own. It keeps references to those owners, so
the memory stays valid. Buffers that it was given as lists stay exported, so they cannot be resized.
It checks neither shapes nor types nor overlap: `CompressBatch` and `DecompressBatch` do that before
they call it.

    inputs    pages of `page_size` bytes, or sources of at most two pages
    outputs   rows of an array, buffers of a page each, or packed one after another
    results   `dlens`, uint32: bytes produced, 0 where a page failed
              `errors`, int32: 0 or a negative errno

Not thread-safe: a batch belongs to one request at a time.
"""

from typing import Self, final

import numpy as np
import numpy.typing as npt

from batchzip.arguments.buffers import Buffer, Bytes, Flat
from batchzip.core.coder import Coders

@final
class Pointers:
    """The addresses of one batch.

    `operation`  0: compress, 1: decompress.

    Set results, inputs and outputs before `run`.
    """

    def __new__(cls, operation: int, page_size: int) -> Self: ...
    @property
    def failed(self) -> int:
        """Pages that failed in the last run."""

    def set_results(
        self, dlens: npt.NDArray[np.uint32], errors: npt.NDArray[np.int32], count: int
    ) -> None:
        """Set the arrays for the lengths and errors of `count` pages. Both have room for them."""

    def set_inputs(
        self, array: Bytes, pitch: int, lengths: npt.NDArray[np.uint32] | None = None
    ) -> None:
        """Set the inputs: they lie `pitch` bytes apart in an array.

        `lengths` has the length of each input in bytes. Without it, each input is a page.
        """

    def set_input_list(self, buffers: list[Flat], lengths: npt.NDArray[np.uint32]) -> int:
        """Set the inputs to a list of buffers, and write their lengths to `lengths`.

        Return −1. If a buffer is not contiguous, return the index of the first such one and keep
        the previous inputs.
        """

    @property
    def runs(self) -> int:
        """The number of resets of the results, modulo 2³². Each run gets another number."""

    def refill(self, array: Buffer, most: int) -> int:
        """Replace the pages by an array (n, page_size) of bytes, with 1 ≤ n ≤ `most`.

        Return n. If the array has another form or overlaps the outputs, change nothing and return
        −1. The arrays of the results stay the same.
        """

    def drop_inputs(self) -> None:
        """Release the inputs. The batch then has no pages until new results and inputs are set."""

    def set_outputs(
        self, array: Bytes, pitch: int, capacity: int, *, may_spoil: bool = False
    ) -> None:
        """Set the outputs: they lie `pitch` bytes apart, each with `capacity` bytes of room.

        `may_spoil`  whether a page that cannot be restored may leave arbitrary bytes in its output.
        """

    def set_packed_outputs(
        self, array: Bytes, offsets: npt.NDArray[np.uint64], capacity: int
    ) -> None:
        """Set packed outputs: they follow one another in `array`, and begin at `offsets`.

        `array` has `capacity` bytes per page. The run fills `offsets`.
        """

    def set_output_list(self, buffers: list[memoryview]) -> None:
        """Set the outputs to writable buffers of a page each."""

    def run(self, coders: Coders, deadline: int = -1) -> int:
        """Run the batch in the calling thread, and count it. Return the number of failed pages.

        `deadline`  nanoseconds of the monotonic clock; −1: there is none. Pages that are not done
                    by then get -ETIMEDOUT. The clock is read after every 64 KiB of pages.

        Run without the GIL, except for codecs in Python. If such a codec raises an exception that
        is not the error of a page, raise it. The pages after that one then have no result.
        """

    def accept(
        self, indices: npt.NDArray[np.uint32], memory: Buffer, results: npt.NDArray[np.int32]
    ) -> bool:
        """Take the results of pages that were done elsewhere. Return False if they are impossible.

        `indices`  the indices of the pages.
        `memory`   their outputs, one after another. Each restored page takes a page of room.
        `results`  int32: the length of each output in bytes, or its negative errno. 0 is a restored
                   page.

        Every value is checked before it is used. If the result is False, the pages before the bad
        one are taken already, and the caller runs all of them again.
        """

    def reset(self) -> None:
        """Clear the results of an earlier run."""

    def fail_undone(self, code: int) -> None:
        """Set the error of every page without a result to the negative errno `code`."""

@final
class Blocks:
    """The arrays of this process that lie in the arena shared with an engine's workers.

    It holds no references to the arrays: `remove` one before its memory is freed. Every call is one
    step under the GIL.
    """

    def __len__(self) -> int: ...
    def add(self, array: Bytes, offset: int) -> None:
        """Add a contiguous array that begins `offset` bytes into the arena."""

    def remove(self, offset: int) -> None:
        """Remove the array at an offset, before its memory is freed."""

    def locate(self, array: Bytes) -> int:
        """Return the offset of an array in the arena, in bytes, or −1 if it does not lie there."""
