"""The sequential backend: every page in the calling thread, one after the other.

The reference that every other backend is measured against and must agree with. It takes one page
in one go, so the engine's direct path is all there is to it; several threads may use it at once, as
each call takes a coder of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchzip.backend import Backend

if TYPE_CHECKING:
    from batchzip.batch import Batch

__all__ = ["SequentialBackend"]


class SequentialBackend(Backend):
    """Does the work in the calling thread; `submit` returns a request that is done."""

    name = "sequential"

    def __init__(self, *, workers: int | None = None) -> None:
        del workers  # the caller is all there is

    def execute(self, batch: Batch) -> None:
        """Do a batch page by page."""
        batch.has_errors = batch.pointers.run(self.coders) > 0

    def run(self, batch: Batch) -> None:
        """Do a batch page by page."""
        self.execute(batch)
