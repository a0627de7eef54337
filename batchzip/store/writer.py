"""Writer: what makes folios ready with one engine, here or with the engine's lanes.

    pages ─▶ Folio ─▶ compressed in the calling thread, in one call     (no lanes, or a single page)
                  └─▶ batches of at most `max_batch` ─▶ engine ─▶ taken back into the folio

Descriptors and folios are used again: their memory is touched once, and stays in the cache from call to
call. Each thread that stores takes one from a free list.

A writer is of one engine; a store that is given another engine makes another writer.
"""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING

import numpy as np

from batchzip.batch.compress import CompressBatch
from batchzip.batch.descriptor import Batch
from batchzip.core.folio import Folio
from batchzip.errors import LimitReached

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchzip.arguments.buffers import Bytes, Flat
    from batchzip.core.entries import Objects
    from batchzip.engine import Engine

_CACHE_LINE = 64
"""Keeps rows from starting a power of two apart, where all would fall in the same set of the cache."""

_MOST_KEPT = 4
"""Folios and descriptors that are kept: as many as threads that store at the same moment."""


class Writer:
    """Makes folios ready with one engine, whose codec has `number`. Thread-safe."""

    def __init__(
        self,
        engine: Engine,
        number: int,
        objects: Objects,
        *,
        max_batch: int,
        keep_incompressible: bool,
    ) -> None:
        self.engine = engine
        self.number = number
        self._objects = objects
        self._max_batch = max_batch
        self._keep_incompressible = keep_incompressible
        self._closed = False
        self._folios: list[Folio] = []
        self._descriptors: list[FolioBatch] = []

    def prepare(self, pages: Bytes | list[Flat], *, to_file: bool = False) -> tuple[Folio, int]:
        """Make a folio of pages ready to be published. Return it, and how many of its pages failed.

        What goes `to_file` does not fail: a page that cannot be compressed is kept as it is. Give the
        folio back with `give_back`. Raise MemoryError, or whatever the engine raises.
        """
        try:
            folio = self._folios.pop()  # one step
        except IndexError:
            folio = Folio(self.engine.page_size)
        try:
            if isinstance(pages, list):
                folio.take_list(pages)
            else:
                folio.take_matrix(pages)
            engine, poor = self.engine, self._keep_incompressible or to_file
            if engine.works_alone(min(len(folio), self._max_batch)):
                coders = engine.backend.coders
                failed = folio.compress(coders, self.number, keep_poor=poor, keep_failed=to_file)
            else:
                failed = self._use_lanes(folio, keep_poor=poor, keep_failed=to_file)
        except BaseException:
            folio.clear()  # it and what it was lent to keep each other, and the pages
            raise
        return folio, failed

    def give_back(self, folio: Folio) -> None:
        """Take back a folio that was published, or is given up."""
        small = len(folio) <= self._max_batch and not self._closed
        for batch in folio.clear():
            batch.forget()
            if len(self._descriptors) < _MOST_KEPT and not self._closed:
                self._descriptors.append(batch)
        if small and len(self._folios) < _MOST_KEPT:
            self._folios.append(folio)

    def close(self) -> None:
        """Keep nothing any more: descriptors have memory in the engine's arena."""
        self._closed = True
        self._folios.clear()
        self._descriptors.clear()

    def _use_lanes(self, folio: Folio, *, keep_poor: bool, keep_failed: bool) -> int:
        first = failed = 0
        left = folio.sort_out()
        while left:
            try:
                batch = self._descriptors.pop()
            except IndexError:
                batch = self._new_descriptor()
            pages = batch.take(folio, first)
            self.engine.run(batch)
            failed = folio.absorb(
                pages,
                batch,
                batch.pointers,
                self.number,
                keep_poor=keep_poor,
                keep_failed=keep_failed,
            )
            left -= len(pages)
            first = pages[-1] + 1
        return failed

    def _new_descriptor(self) -> FolioBatch:
        # In the arena, so that workers have outputs where they are; not where outputs are verified, as
        # no worker may change them afterwards. Where that gives nothing, outputs are copied.
        engine, rows = self.engine, None
        shape = self._max_batch, engine.page_size + _CACHE_LINE
        if not engine.codec.plan().verify:
            with contextlib.suppress(LimitReached):
                rows = engine.arena(*shape)
        return FolioBatch(np.empty(shape, np.uint8) if rows is None else rows, engine.page_size)


class FolioBatch(Batch):
    """Pages of a folio that an engine's lanes compress; `rows` (n, width) have their outputs."""

    __slots__ = ("_folio", "_full", "_pages", "_rows")

    operation = CompressBatch.operation

    def __init__(self, rows: Bytes, page_size: int) -> None:
        super().__init__(len(rows), page_size)
        self.capacity = rows.shape[1]
        self._rows = rows
        self._full = self.dlens, self.errors
        self.pointers.set_outputs(rows, self.capacity, self.capacity)

    def take(self, folio: Folio, first: int) -> list[int]:
        """Take the next pages of a folio that are to be compressed. Return their numbers."""
        self._folio = folio
        self._pages = pages = folio.lend(first, len(self._rows), self.pointers)
        self._count = len(pages)
        self.dlens, self.errors = self._full[0][: len(pages)], self._full[1][: len(pages)]
        return pages

    def forget(self) -> None:
        """Let go of the folio."""
        del self._folio, self._pages
        self.pointers.drop_inputs()

    def inputs(self, share: Sequence[int]) -> Sequence[Flat]:
        """Return copies of the pages of `share`."""
        return [self._folio.page(self._pages[index]) for index in share]


def failures(folio: Folio) -> tuple[list[int], int, int]:
    """Return a folio's errors by page, how many pages did not shrink, and how many failed otherwise."""
    errors = folio.errors()
    poor = sum(code == -errno.ENOSPC for code in errors)
    return errors, poor, sum(code != 0 for code in errors) - poor
