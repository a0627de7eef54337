"""The sequential backend: the calling thread does all pages, one after the other.

It is the reference: the results of every other backend must agree with it. It takes one page at a
time, so it needs only the engine's direct path. Several threads may use it at once, because each
call takes its own coder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchzip.backend import Backend

if TYPE_CHECKING:
    from batchzip.batch import Batch

__all__ = ["SequentialBackend"]


class SequentialBackend(Backend):
    """Does the work in the calling thread. `submit` returns a request that is done."""

    name = "sequential"
    is_local = True

    def __init__(self, *, workers: int | None = None) -> None:
        del workers  # only the caller works

    def execute(self, batch: Batch) -> None:
        """Do a batch page by page."""
        batch.has_errors = batch.pointers.run(self.coders) > 0

    def run(self, batch: Batch) -> None:
        """Do a batch page by page."""
        self.execute(batch)
