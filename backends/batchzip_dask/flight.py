"""Flight: one request whose shares the cluster has.

Shares are cut from the batch's order one by one, when there is room for them. Each is copied out of the
caller's memory when it is handed out; what comes back is copied in by the thread that owns the flight,
and by nobody else, so a flight that was given up writes nothing to the batch any more.

A share is cut so that every thread of the cluster gets one, within bounds: a message costs 5 to 15 ms
whatever it carries.

Belongs to one thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from batchzip.batch import CompressBatch
from batchzip.errors import BackendUnavailable
from batchzip_dask.share import Share

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Sequence

    from batchzip.batch import Batch
    from batchzip.request import Request
    from batchzip_dask.share import Outcome

MOST_BYTES = 4 << 20
"""Bytes of pages of a share; those of 1 MiB took twice as long a page, those of 8 no less. What a dead
worker had is done again whole."""

_LEAST_BYTES = 64 << 10
"""Bytes of pages below which dividing a batch among more threads costs more messages than it saves."""

_CODEC_TIMES = 8
"""A share is at least so many times as long as the codec that travels with it, a dictionary maybe."""


class Flight:
    """A request, what of it is to be handed out, and what is out."""

    def __init__(self, request: Request[Batch], codec: bytes, threads: int) -> None:
        self.request = request
        self._codec = codec
        batch = request.batch
        size = batch.page_size
        least = max(1, _LEAST_BYTES // size, _CODEC_TIMES * len(codec) // size)
        most = max(1, MOST_BYTES // size, least)
        self._share_pages = min(max(-(-len(batch) // max(1, threads)), least), most)
        self._order = batch.order()
        self._position = 0
        self.out: dict[int, tuple[Sequence[int], Callable[[], None]]] = {}
        """Shares that are out, by their numbers, and how to drop each."""

    @property
    def has_more(self) -> bool:
        """Whether there are shares to hand out."""
        return self._position < len(self._order)

    def cut(self) -> Sequence[int]:
        """Cut the next share."""
        start = self._position
        self._position = min(start + self._share_pages, len(self._order))
        return self._order[start : self._position]

    def pack(self, indices: Sequence[int]) -> Share:
        """Copy what a worker needs for these pages."""
        batch = self.request.batch
        inputs = batch.inputs(indices)
        return Share(
            operation=batch.operation,
            codec=self._codec,
            page_size=batch.page_size,
            capacity=batch.capacity,
            data=np.frombuffer(b"".join(inputs), np.uint8),
            lengths=np.fromiter(map(len, inputs), np.uint32, len(inputs)),
        )

    def accept(
        self, indices: Sequence[int], outcome: Outcome, worked: tuple[Counter[str], Counter[str]]
    ) -> None:
        """Take what became of a share, and count it.

        Raise BackendUnavailable where that cannot be right: a worker runs another version, maybe.
        """
        batch = self.request.batch
        data = memoryview(outcome.data).cast("B")  # type: ignore[arg-type] # an array is a buffer
        if len(outcome.results) != len(indices) or not batch.accept(indices, data, outcome.results):
            raise BackendUnavailable("a worker returned lengths that cannot be right")
        compresses = batch.operation == CompressBatch.operation
        worked[batch.operation].update(
            pages=len(indices),
            bytes_in=len(indices) * batch.page_size
            if compresses
            else sum(map(len, batch.inputs(indices))),
            bytes_out=int(outcome.results[outcome.results > 0].sum()),
        )

    def give_up(self, code: int) -> None:
        """Drop what is out; every page that is not done gets the negative errno `code`."""
        for _, drop in self.out.values():
            drop()
        self.out.clear()
        self._position = len(self._order)
        batch = self.request.batch
        batch.fail(np.flatnonzero((batch.dlens == 0) & (batch.errors == 0)), code)
