"""Flight: a request on its way; and Parcel: what travels in one task, pages of one flight or of several.

Pages are cut from a batch's order when there is room for them out on the cluster, and copied out of the
caller's memory just then: what waits is not copied. What comes back is copied in by the thread that owns
the flight, and by nobody else, so a flight that is over writes nothing to its batch any more.

Both belong to one thread.
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
    """A request, what of it is to be handed out, and how much is not done."""

    def __init__(self, request: Request[Batch]) -> None:
        self.request = request
        self.over = False
        """Whether it is done or given up: what still comes back of it is nobody's."""
        self.undone = request.pages
        """Pages whose results are not there."""
        self._order = request.batch.order()
        self._position = 0

    @property
    def left(self) -> int:
        """Pages that are to be handed out."""
        return len(self._order) - self._position

    @property
    def group(self) -> tuple[int, int]:
        """Operation and capacity: what pages in a row have in common to be done as one batch."""
        batch = self.request.batch
        return batch.operation, min(batch.capacity, 2 * batch.page_size)

    def cut(self, most: int) -> Sequence[int]:
        """Cut up to `most` pages off."""
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
        """Take the results of some pages, and count them. Raise BackendUnavailable if they cannot be right."""
        batch = self.request.batch
        if not batch.accept(indices, data, results):
            raise BackendUnavailable("a worker returned lengths that cannot be right")
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
        """Give some pages that were handed out a negative errno."""
        self.request.batch.fail(indices, code)
        self.undone -= len(indices)

    def give_up(self, code: int) -> None:
        """Give every page that is not done the negative errno `code`."""
        self._position = len(self._order)
        batch = self.request.batch
        batch.fail(np.flatnonzero((batch.dlens == 0) & (batch.errors == 0)), code)


class Parcel:
    """Pages of one or more flights, on their way in one task."""

    def __init__(
        self,
        parts: list[tuple[Flight, Sequence[int]]],
        *,
        cancelled: int = 0,
        suspect: bool = False,
    ) -> None:
        self.parts = parts
        self.cancelled = cancelled
        """How often these pages were handed out before, and cancelled."""
        self.suspect = suspect
        """Whether every worker that had these pages has died; what travels so has one flight."""
        self.pages = sum(len(indices) for _, indices in parts)
        self.drop: Callable[[], None] = lambda: None
        """Has the cluster forget it."""

    @property
    def live_parts(self) -> list[tuple[Flight, Sequence[int]]]:
        """The parts whose flights are not over."""
        return [(flight, indices) for flight, indices in self.parts if not flight.over]

    def pack(self, codec: bytes) -> TaskPages:
        """Copy what a worker needs."""
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
        """Give each flight what became of its pages.

        Raise BackendUnavailable where that cannot be right: a worker runs another version, maybe.
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
