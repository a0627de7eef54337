"""Batches as plain memory: what the core knows of one batch descriptor.

A Pointers holds addresses of memory that others own. It keeps those owners, so the memory stays as
long as the Pointers points to it; buffers that it was given as lists are exported meanwhile, and so
cannot be resized. It checks neither shapes nor types nor overlap: `CompressBatch` and
`DecompressBatch` do, before they call it.

    inputs    pages of `page_size` bytes, or sources of at most two pages
    outputs   rows of an array, buffers of a page each, or packed one behind the other
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

    Results, inputs and outputs must all be set before it is run.
    """

    def __new__(cls, operation: int, page_size: int) -> Self: ...
    @property
    def failed(self) -> int:
        """Pages that failed in the last run."""

    def set_results(
        self, dlens: npt.NDArray[np.uint32], errors: npt.NDArray[np.int32], count: int
    ) -> None:
        """Note lengths and errors of `count` pages in these arrays, which have room for them."""

    def set_inputs(
        self, array: Bytes, pitch: int, lengths: npt.NDArray[np.uint32] | None = None
    ) -> None:
        """Take inputs that lie `pitch` bytes apart in an array.

        `lengths` has the bytes of each; without it each is a page.
        """

    def set_input_list(self, buffers: list[Flat], lengths: npt.NDArray[np.uint32]) -> int:
        """Take a list of buffers, and note their lengths in `lengths`.

        Return the index of the first that is no contiguous buffer, or -1. The inputs that there
        were are kept then.
        """

    @property
    def runs(self) -> int:
        """How often results were forgotten, modulo 2³²: what was read before is of another run."""

    def refill(self, array: Buffer, most: int) -> int:
        """Take other pages: an array (n, page_size) of single bytes, of at most `most` pages.

        Return n, or −1 where the array is not like that or overlaps the outputs; then nothing has
        changed. Results stay in the arrays that they were in.
        """

    def drop_inputs(self) -> None:
        """Let go of the inputs. The batch has no pages then, until `set_results` and new inputs."""

    def set_outputs(
        self, array: Bytes, pitch: int, capacity: int, *, may_spoil: bool = False
    ) -> None:
        """Put outputs `pitch` bytes apart, each with `capacity` bytes of room.

        `may_spoil`: a restored page that fails may leave anything in its place.
        """

    def set_packed_outputs(
        self, array: Bytes, offsets: npt.NDArray[np.uint64], capacity: int
    ) -> None:
        """Put outputs one behind the other, and note in `offsets` where each begins.

        `array` has `capacity` bytes for each page.
        """

    def set_output_list(self, buffers: list[memoryview]) -> None:
        """Put outputs into these writable buffers, a page each."""

    def run(self, coders: Coders, deadline: int = -1) -> int:
        """Do the batch in the calling thread, and count it. Return how many pages failed.

        What is not done at `deadline`, in nanoseconds of the monotonic clock, gets -ETIMEDOUT; the
        clock is looked at after each 64 KiB of pages. −1: there is none.

        Runs without the GIL but for codecs in Python. Raise what such a codec raises that is no
        page's error; pages behind that one have no result then.
        """

    def accept(
        self, indices: npt.NDArray[np.uint32], memory: Buffer, results: npt.NDArray[np.int32]
    ) -> bool:
        """Take pages that were done elsewhere. Return False where something in them cannot be so.

        `indices`  which pages.
        `memory`   their outputs, one behind the other; a page's room each where they were restored.
        `results`  int32: the bytes of each output, or its negative errno; 0 is a whole page,
                   restored.

        Everything is checked before it is used. Where it returns False, pages before the bad one
        are taken already, and all of them are to be done again.
        """

    def reset(self) -> None:
        """Forget the results of an earlier run."""

    def fail_undone(self, code: int) -> None:
        """Give every page without a result the negative errno `code`."""

@final
class Blocks:
    """Which memory of this process lies in the arena that an engine's workers share, and where.

    It keeps no array: `remove` one before its memory goes. Changed and searched under the GIL, each
    in one step.
    """

    def __len__(self) -> int: ...
    def add(self, array: Bytes, offset: int) -> None:
        """Note that a contiguous array lies `offset` bytes into the arena."""

    def remove(self, offset: int) -> None:
        """Forget the array at an offset: its memory is about to go."""

    def locate(self, array: Bytes) -> int:
        """Return where an array begins in the arena, in bytes; −1 if it does not lie there."""
