"""Loader: restores pages from their entries, and removes them from the store on request.

    one page, in memory, of the current codec    core's `load`: one call (group.py)
    several, as long as lanes are not needed     core's `load_many`: one call
    everything else                              Gathered: copies taken at one moment
        bytes in the file ─▶ checksums ─▶ pages that need no codec ─▶ the others, by codec:
                                                in this thread, or by the engine's lanes

No thread waits for another one's codec or file. Bytes read from the file may be of a version that
is no longer current. The checksum shows that, and the loader then reads the entry again
(core/gather.pyx).

An exclusive load removes the page after restoring it, if its entry is still the same. Otherwise it
begins again. So a page that cannot be restored stays stored (zswap lost such pages before kernel
commit 25cd241408a2), and only one of several concurrent exclusive loads gets the page.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import numpy as np

from batchzip.batch.decompress import DecompressBatch
from batchzip.batch.descriptor import Batch
from batchzip.core.gather import Gathered, load_many
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
        """Restore one gathered page to `out` or to new bytes. Raise the errors of `Group.load`."""
        room = bytearray(self._resources.page_size) if out is None else out
        pages = np.frombuffer(room, np.uint8)[np.newaxis]
        where = np.array([gathered.index(0)], np.int64)
        self._finish(gathered, where, pages, exclusive=exclusive)
        return bytes(room) if out is None else out

    def load_many(self, where: npt.NDArray[np.int64], pages: Bytes, *, exclusive: bool) -> None:
        """Restore pages to the rows of `pages`. Raise the errors of `Group.load_many`."""
        where = np.ascontiguousarray(where)
        self._finish(self._gather(where, pages), where, pages, exclusive=exclusive)

    def _gather(self, where: npt.NDArray[np.int64], pages: Bytes) -> Gathered:
        """Gather pages, and restore those that this thread can restore at once."""
        resources = self._resources
        writer = resources.writer  # keeps its number from being given to another codec
        coders = None
        if _works_alone(writer.engine, len(where)):
            coders = resources.objects.coders_of(writer.number)
        return load_many(self._entries, where, pages, coders, writer.number)

    def _finish(
        self, gathered: Gathered, where: npt.NDArray[np.int64], pages: Bytes, *, exclusive: bool
    ) -> None:
        while not self._restore(gathered, pages, exclusive=exclusive):
            gathered = self._gather(where, pages)

    def _restore(self, gathered: Gathered, pages: Bytes, *, exclusive: bool) -> bool:
        """Restore once. Return False if an entry has changed and has to be gathered again."""
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
            # Not in a variable: the error and this frame would refer to each other.
            raise (
                CorruptPage(index) if code == -errno.EBADMSG else PageError(index, code)
            ) from causes.get(row)
        return not exclusive or gathered.take()


def restore(resources: Resources, gathered: Gathered, pages: Bytes) -> dict[int, OSError]:
    """Restore gathered entries to pages, with the codecs that compressed them.

    Errors of rows that could not be restored are kept in `gathered`. Return the errors of the file
    by row, as `read` does.
    """
    causes: dict[int, OSError] = {}
    if not gathered.is_checked:
        causes = read(resources, gathered)
        gathered.check(pages)
    for number, count in gathered.pending().items():
        engine = resources.engine_of(number)
        if _works_alone(engine, count) or not _use_lanes(engine, gathered, number, pages):
            gathered.restore(resources.coders_of(number), number, pages)
    return causes


def _works_alone(engine: Engine | None, count: int) -> bool:
    """Return whether this thread restores `count` pages of an engine's codec alone."""
    try:
        return engine is None or engine.works_alone(count)
    except ClosedError:
        return True


def read(resources: Resources, gathered: Gathered) -> dict[int, OSError]:
    """Read the rows that are in the backing file. Return the errors of failed rows by row."""
    causes: dict[int, OSError] = {}
    backed = gathered.rows_of(*IN_FILE)
    if backed:
        assert resources.backing is not None  # noqa: S101 - there are such entries
        _read_rows(resources.backing, gathered, backed, causes)
    return causes


def _read_rows(
    backing: BackingFile, gathered: Gathered, rows: list[int], causes: dict[int, OSError]
) -> None:
    """Read rows, one by one if reading them together fails: a bad row must not hide the others."""
    positions = np.array([gathered.value(row) for row in rows], np.uint64)
    try:
        found = backing.read(positions)
    except OSError as error:
        if len(rows) == 1:
            gathered.fail(rows[0], -(error.errno or errno.EIO))
            causes[rows[0]] = error.with_traceback(None)  # which would refer to this frame
            return
        for row in rows:
            _read_rows(backing, gathered, [row], causes)
        return
    for row, data in zip(rows, found, strict=True):
        gathered.supply(row, data)


def _use_lanes(engine: Engine | None, gathered: Gathered, number: int, pages: Bytes) -> bool:
    """Restore rows of one codec with an engine's lanes. Return False if the engine is closed."""
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
        self.pages = pages
        self._gathered = gathered
        self._slens = np.empty(count, np.uint32)
        self.rows = gathered.lend(number, pages, self.pointers, self._slens)

    def inputs(self, share: Sequence[int]) -> Sequence[Flat]:
        """Return copies of the stored bytes of the rows in `share`."""
        return [self._gathered.stored(self.rows[index]) for index in share]
