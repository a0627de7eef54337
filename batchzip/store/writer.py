"""Writer: compresses folios with one engine, in the calling thread or with the engine's lanes.

    pages ─▶ Folio ─▶ compressed and published in one call              (no lanes, or a single page)
                  └─▶ batches of at most `max_batch` ─▶ engine ─▶ outputs returned to the folio
                                                                                 ─▶ published

Descriptors and folios are reused, so their memory is faulted in once and stays in the cache. Each
thread that stores takes one from a free list.

A writer belongs to one engine. A store that gets a new engine creates a new writer.
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
    from batchzip.core.entries import Entries
    from batchzip.engine import Engine

_CACHE_LINE = 64
"""Extra bytes per row. Rows a power of two apart would all share the same set of the cache."""

_MOST_KEPT = 4
"""Folios and descriptors kept for reuse: one per thread that stores at the same time."""


class Writer:
    """Compresses folios with one engine, whose codec has `number`. Thread-safe."""

    def __init__(
        self,
        engine: Engine,
        number: int,
        *,
        max_batch: int,
        keep_incompressible: bool,
    ) -> None:
        self.engine = engine
        self.number = number
        self._max_batch = max_batch
        self._keep_incompressible = keep_incompressible
        self._closed = False
        self._folios: list[Folio] = []
        self._descriptors: list[FolioBatch] = []

    def store(
        self,
        pages: Bytes | list[Flat],
        entries: Entries,
        first: int,
        *,
        may_go_elsewhere: bool,
        limit: int | None,
    ) -> tuple[Folio, int]:
        """Compress pages, and publish them unless a page cannot be stored.

        Return the folio and the number of its pages that cannot be stored, or 0 or the negative
        errno of `Folio.publish`, whose arguments are the same. The caller returns the folio with
        `give_back`. Raise MemoryError, or any error of the engine.
        """
        folio = self._take(pages)
        try:
            if self._works_alone(folio):
                code = folio.store(
                    self.engine.backend.coders,
                    self.number,
                    entries,
                    first,
                    keep_poor=self._keep_incompressible,
                    may_go_elsewhere=may_go_elsewhere,
                    limit=limit,
                )
            else:
                code = self._use_lanes(folio, keep_poor=self._keep_incompressible)
                if not code:
                    code = folio.publish(
                        entries, first, may_go_elsewhere=may_go_elsewhere, limit=limit
                    )
        except BaseException:
            folio.clear()  # it and its batches refer to each other, and to the pages
            raise
        return folio, code

    def prepare(self, pages: Bytes | list[Flat]) -> Folio:
        """Compress pages for the backing file. Pages that cannot be compressed are kept raw.

        The caller returns the folio with `give_back`. Raise MemoryError, or any error of the
        engine.
        """
        folio = self._take(pages)
        try:
            if self._works_alone(folio):
                coders = self.engine.backend.coders
                folio.compress(coders, self.number, keep_poor=True, keep_failed=True)
            else:
                self._use_lanes(folio, keep_poor=True, keep_failed=True)
        except BaseException:
            folio.clear()
            raise
        return folio

    def _take(self, pages: Bytes | list[Flat]) -> Folio:
        """Return a folio of pages."""
        try:
            folio = self._folios.pop()  # one step: thread-safe without a lock
        except IndexError:
            folio = Folio(self.engine.page_size)
        try:
            if isinstance(pages, list):
                folio.take_list(pages)
            else:
                folio.take_matrix(pages)
        except BaseException:
            folio.clear()
            raise
        return folio

    def _works_alone(self, folio: Folio) -> bool:
        return self.engine.works_alone(min(len(folio), self._max_batch))

    def give_back(self, folio: Folio) -> None:
        """Keep a folio for reuse, after it was published or rejected."""
        small = len(folio) <= self._max_batch and not self._closed
        for batch in folio.clear():
            batch.forget()
            if len(self._descriptors) < _MOST_KEPT and not self._closed:
                self._descriptors.append(batch)
        if small and len(self._folios) < _MOST_KEPT:
            self._folios.append(folio)

    def close(self) -> None:
        """Drop all folios and descriptors: the latter have memory in the engine's arena."""
        self._closed = True
        self._folios.clear()
        self._descriptors.clear()

    def _use_lanes(self, folio: Folio, *, keep_poor: bool, keep_failed: bool = False) -> int:
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
        # In the arena, so that workers write outputs to their place. Not if outputs are verified:
        # no worker may change them afterwards. Without an arena, outputs are copied.
        engine, rows = self.engine, None
        shape = self._max_batch, engine.page_size + _CACHE_LINE
        if not engine.codec.plan().verify:
            with contextlib.suppress(LimitReached):
                rows = engine.arena(*shape)
        return FolioBatch(np.empty(shape, np.uint8) if rows is None else rows, engine.page_size)


class FolioBatch(Batch):
    """Pages of a folio that an engine's lanes compress. Outputs go to `rows` (n, width)."""

    __slots__ = ("_folio", "_full", "_pages", "_rows")

    operation = CompressBatch.operation

    def __init__(self, rows: Bytes, page_size: int) -> None:
        super().__init__(len(rows), page_size)
        self.capacity = rows.shape[1]
        self._rows = rows
        self._full = self.dlens, self.errors
        self.pointers.set_outputs(rows, self.capacity, self.capacity)

    def take(self, folio: Folio, first: int) -> list[int]:
        """Take the next pages of a folio to compress, from `first` on. Return their numbers."""
        self._folio = folio
        self._pages = pages = folio.lend(first, len(self._rows), self.pointers)
        self._count = len(pages)
        self.dlens, self.errors = self._full[0][: len(pages)], self._full[1][: len(pages)]
        return pages

    def forget(self) -> None:
        """Drop the references to the folio and its pages."""
        del self._folio, self._pages
        self.pointers.drop_inputs()

    def inputs(self, share: Sequence[int]) -> Sequence[Flat]:
        """Return copies of the pages of `share`."""
        return [self._folio.page(self._pages[index]) for index in share]


def failures(folio: Folio) -> tuple[list[int], int, int]:
    """Return a folio's errors by page, and two numbers of pages.

    They are the pages that did not shrink, and those that failed for another reason.
    """
    errors = folio.errors()
    poor = sum(code == -errno.ENOSPC for code in errors)
    return errors, poor, sum(code != 0 for code in errors) - poor
