"""Loader: from an index to its page, and out of the store with it where that is asked for.

    one page, in memory, of the current codec    core's `load`: one call (group.py)
    everything else                              Gathered: copies of one moment
        bytes in the file ─▶ checksums ─▶ pages that need no codec ─▶ the others, by codec:
                                                in this thread, or by the engine's lanes

Nobody waits for a codec or a file. What is read from the file need not be a version that was current: the
checksum tells, and then the entry is looked at again (core/gather.pyx).

An exclusive load takes the page out afterwards, if its entry is still the one that was restored; otherwise
it begins again. So a page that cannot be restored stays (25cd241408a2 lost it), and of several that take
one at once one has it.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import numpy as np

from batchzip.batch.decompress import DecompressBatch
from batchzip.batch.descriptor import Batch
from batchzip.core.gather import Gathered, gather
from batchzip.core.table import IN_FILE, Kind
from batchzip.errors import ClosedError, CorruptPage, PageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from batchzip.arguments.buffers import Bytes, Flat
    from batchzip.core.entries import Entries
    from batchzip.engine import Engine
    from batchzip.store.backing.backing_file import BackingFile
    from batchzip.store.resources import Resources


class Loader:
    """Loads the pages of one group. Thread-safe."""

    def __init__(self, resources: Resources, entries: Entries) -> None:
        self._resources = resources
        self._entries = entries

    def finish_one(
        self, gathered: Gathered, out: memoryview | None, *, exclusive: bool
    ) -> bytes | memoryview:
        """Restore one page that was gathered, to `out` or to new bytes. Raise as `Group.load`."""
        room = bytearray(self._resources.page_size) if out is None else out
        pages = np.frombuffer(room, np.uint8).reshape(1, -1)
        where = np.array([gathered.index(0)], np.int64)
        self._finish(gathered, where, pages, exclusive=exclusive)
        return bytes(room) if out is None else out

    def load_many(self, where: npt.NDArray[np.int64], pages: Bytes, *, exclusive: bool) -> None:
        """Restore the pages of these indices to the rows of `pages`. Raise as `Group.load_many`."""
        where = np.ascontiguousarray(where)
        gathered = gather(self._entries, where, use=True)
        self._finish(gathered, where, pages, exclusive=exclusive)

    def _finish(
        self, gathered: Gathered, where: npt.NDArray[np.int64], pages: Bytes, *, exclusive: bool
    ) -> None:
        while not self._restore(gathered, pages, exclusive=exclusive):
            gathered = gather(self._entries, where, use=True)

    def _restore(self, gathered: Gathered, pages: Bytes, *, exclusive: bool) -> bool:
        """Restore once. Return whether nothing came between that has to be looked at again."""
        causes = restore(self._resources, gathered, pages)
        failed = gathered.first_failed()
        if not gathered.is_current:
            return False
        if failed is not None:
            row, code = failed
            if gathered.kind(row) == Kind.BACKED and gathered.has_changed(row):
                return False
            self._entries.count_event("decompress_fail")
            index = gathered.index(row)
            # In no variable: this frame would keep the error, and the error this frame.
            raise (
                CorruptPage(index) if code == -errno.EBADMSG else PageError(index, code)
            ) from causes.get(row)
        return not exclusive or gathered.take()


def restore(resources: Resources, gathered: Gathered, pages: Bytes) -> dict[int, OSError]:
    """Restore gathered entries to pages, with the codecs that made them.

    `gathered` has the errors of rows that could not be restored. Return what `read` does.
    """
    causes = read(resources, gathered)
    waiting = gathered.pending() if gathered.check(pages) else {}
    for number, count in waiting.items():
        engine = resources.engine_of(number)
        alone = engine is None or engine.closed or engine.works_alone(count)
        if alone or not _use_lanes(engine, gathered, number, pages):
            gathered.restore(resources.coders_of(number), number, pages)
    return causes


def read(resources: Resources, gathered: Gathered) -> dict[int, OSError]:
    """Read what lies in the backing file. Return the errors of rows that could not be read."""
    causes: dict[int, OSError] = {}
    backed = gathered.rows_of(*IN_FILE)
    if backed:
        assert resources.backing is not None  # noqa: S101 - there are such entries
        _read_rows(resources.backing, gathered, backed, causes)
    return causes


def _read_rows(
    backing: BackingFile, gathered: Gathered, rows: list[int], causes: dict[int, OSError]
) -> None:
    """Read rows; one that cannot be read must not hide the others."""
    positions = np.array([gathered.value(row) for row in rows], np.uint64)
    try:
        found = backing.read(positions)
    except OSError as error:
        if len(rows) == 1:
            gathered.fail(rows[0], -(error.errno or errno.EIO))
            causes[rows[0]] = error.with_traceback(None)  # it would lead back here
            return
        for row in rows:
            _read_rows(backing, gathered, [row], causes)
        return
    for row, data in zip(rows, found, strict=True):
        gathered.supply(row, data)


def _use_lanes(engine: Engine | None, gathered: Gathered, number: int, pages: Bytes) -> bool:
    """Have an engine's lanes restore rows of one codec. Return False if the engine is closed by now."""
    assert engine is not None  # noqa: S101 - the caller's check
    batch = StoredBatch(gathered, number, pages)
    try:
        engine.run(batch)
    except ClosedError:
        return False
    gathered.note(batch.rows, batch.pointers)
    return True


class StoredBatch(Batch):
    """Gathered rows of one codec as a batch that an engine restores, straight to `pages`."""

    __slots__ = ("_gathered", "_slens", "pages", "rows")

    operation = DecompressBatch.operation

    def __init__(self, gathered: Gathered, number: int, pages: Bytes) -> None:
        count = gathered.pending()[number]
        super().__init__(count, pages.shape[1])
        self.capacity = self.page_size
        self.pages = pages
        self._gathered = gathered
        self._slens = np.empty(count, np.uint32)
        self.rows = gathered.lend(number, pages, self.pointers, self._slens)

    def inputs(self, share: Sequence[int]) -> Sequence[Flat]:
        """Return copies of what is stored of `share`."""
        return [self._gathered.stored(self.rows[index]) for index in share]
