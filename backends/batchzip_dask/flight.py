"""Flight: a request in progress. Parcel: the pages of one or more flights that one task carries.

A flight hands out pages when the cluster has room for them. Only then are they copied from the
caller's memory; pages that wait are not copied. Only the thread that owns the flight copies results
back. So a flight that is over never writes to its batch again.

Both classes are used by one thread only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from batchzip.batch import CompressBatch
from batchzip.errors import BackendUnavailable
from batchzip_dask.task_pages import TaskGroup, TaskPages

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from batchzip.arguments.buffers import Flat
    from batchzip.batch import Batch
    from batchzip.request import Request
    from batchzip_dask.task_pages import Outcome


class Flight:
    """A request, which of its pages are still to be handed out, and how many are unfinished."""

    def __init__(self, request: Request[Batch]) -> None:
        self.request = request
        self.over = False
        """Whether the request is finished or given up. Results that arrive later are discarded."""
        self.undone = request.pages
        """Pages without a result."""
        self._order = request.batch.order()
        self._position = 0

    @property
    def left(self) -> int:
        """Return the number of pages still to be handed out."""
        return len(self._order) - self._position

    @property
    def group(self) -> tuple[int, int]:
        """Return operation and capacity. Adjacent pages that share both run as one batch."""
        batch = self.request.batch
        return batch.operation, min(batch.capacity, 2 * batch.page_size)

    def cut(self, most: int) -> Sequence[int]:
        """Return the next pages to hand out, at most `most`."""
        start = self._position
        self._position = min(start + most, len(self._order))
        return self._order[start : self._position]

    def accept(
        self,
        indices: Sequence[int],
        results: npt.NDArray[np.int32],
        data: memoryview,
        worked: tuple[Counter[str], Counter[str]],
    ) -> None:
        """Take and count the results of some pages. Raise BackendUnavailable if they are bad."""
        batch = self.request.batch
        if not batch.accept(indices, data, results):
            raise BackendUnavailable("a worker returned lengths that do not fit its data")
        self.undone -= len(indices)
        compresses = batch.operation == CompressBatch.operation
        worked[batch.operation].update(
            pages=len(indices),
            bytes_in=len(indices) * batch.page_size
            if compresses
            else sum(map(len, batch.inputs(indices))),
            bytes_out=int(results[results > 0].sum()),
        )

    def fail(self, indices: Sequence[int], code: int) -> None:
        """Give pages that were handed out a negative errno."""
        self.request.batch.fail(indices, code)
        self.undone -= len(indices)

    def give_up(self, code: int) -> None:
        """Give every page without a result the negative errno `code`."""
        self._position = len(self._order)
        batch = self.request.batch
        batch.fail(np.flatnonzero((batch.dlens == 0) & (batch.errors == 0)), code)


class Parcel:
    """Pages of one or more flights, carried by one task."""

    def __init__(
        self,
        parts: list[tuple[Flight, Sequence[int]]],
        *,
        cancelled: int = 0,
        suspect: bool = False,
    ) -> None:
        self.parts = parts
        self.cancelled = cancelled
        """How often a task with these pages was cancelled before."""
        self.suspect = suspect
        """Whether every worker that had these pages died. Such a parcel has pages of one flight
        only."""
        self.pages = sum(len(indices) for _, indices in parts)
        self.drop: Callable[[], None] = lambda: None
        """Makes the cluster forget the task."""

    @property
    def live_parts(self) -> list[tuple[Flight, Sequence[int]]]:
        """Return the parts whose flights are not over."""
        return [(flight, indices) for flight, indices in self.parts if not flight.over]

    def pack(self, codec: bytes) -> TaskPages:
        """Return a copy of what a worker needs."""
        groups: list[TaskGroup] = []
        inputs: list[Flat] = []
        for flight, indices in self.parts:
            count = len(indices)
            if groups and groups[-1][:2] == flight.group:
                groups[-1] = groups[-1]._replace(pages=groups[-1].pages + count)
            else:
                groups.append(TaskGroup(*flight.group, count))
            inputs += flight.request.batch.inputs(indices)
        return TaskPages(
            codec=codec,
            page_size=self.parts[0][0].request.batch.page_size,
            groups=tuple(groups),
            data=np.frombuffer(b"".join(inputs), np.uint8),
            lengths=np.fromiter(map(len, inputs), np.uint32, len(inputs)),
        )

    def accept(self, outcome: Outcome, worked: tuple[Counter[str], Counter[str]]) -> None:
        """Give each flight the results of its pages.

        Raise BackendUnavailable if they cannot be right. The worker may run another version.
        """
        data = memoryview(outcome.data).cast("B")  # type: ignore[arg-type] # an array is a buffer
        results = np.ascontiguousarray(outcome.results, np.int32)
        if len(results) != self.pages:
            raise BackendUnavailable(
                f"a worker returned {len(results)} results for {self.pages} pages"
            )
        at = start = 0
        for flight, indices in self.parts:
            batch = flight.request.batch
            own = results[at : at + len(indices)]
            at += len(indices)
            if batch.operation == CompressBatch.operation:
                end = start + int(own[own > 0].sum())
            else:
                end = start + len(indices) * batch.page_size
            if not flight.over:
                flight.accept(indices, own, data[start:end], worked)
            start = end
