"""Statistics: what an engine did, counted where it is done and added up when somebody asks.

Each thread that uses an engine has a tally for each operation, and so has each worker, in memory that
it alone writes. So counting takes no lock and no atomic, a few additions a batch; reading adds up what
all of them show at that moment.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batchzip.codecs.context import Context


class Tally:
    """What one thread or one worker did of one operation. One writer; any reader."""

    __slots__ = (
        "batches",
        "bytes_in",
        "bytes_out",
        "divided",
        "fallbacks",
        "pages",
        "wait_s",
        "waits",
    )

    def __init__(self) -> None:
        self.batches = self.divided = 0
        self.pages = self.bytes_in = self.bytes_out = 0
        self.waits = self.fallbacks = 0
        self.wait_s = 0.0

    def add(self, other: Tally) -> None:
        """Add another one's figures to this one's."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(frozen=True, slots=True)
class OperationStatistics:
    """What was done of one operation, compress or decompress, since the engine was made.

    Pages and bytes are those that went through a codec, to whatever end. Pages that were given up
    (-ETIMEDOUT, -ECANCELED, -EOWNERDEAD) did not, unless it was just then; a page of a wrong size
    did as the zeros, or nothing, that stood in for it. The pages of a share whose worker died are
    counted where they were run again; twice, if it died between counting them and saying so.
    """

    batches: int
    """Batches done or given up, not those that were cancelled; a batch of one page is one, too."""
    divided: int
    """Those of them that workers had shares of; the others were done inline, by the caller alone."""
    pages: int
    """Pages done, failed ones included."""
    inline_pages: int
    """Those of them that were done in this process."""
    bytes_in: int
    bytes_out: int
    waits: int
    """Times a caller had nothing left to do and waited for a worker."""
    wait_s: float
    """Seconds of these waits."""
    fallbacks: int
    """Pages done in this process because the worker that had them died."""


@dataclass(frozen=True, slots=True)
class WorkerStatistics:
    """What one worker process did since it was started."""

    pid: int
    shares: int
    pages: int
    bytes_in: int
    bytes_out: int
    busy_s: float
    """Seconds it worked on shares."""
    sleeps: int
    """Times it went to sleep for want of work."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """What an engine did. Figures of work under way may be a batch apart from each other."""

    compress: OperationStatistics
    decompress: OperationStatistics
    errors: dict[int, int] = field(default_factory=dict)
    """Pages that failed, by negative errno."""
    restarts: int = 0
    """Workers that died and were replaced."""
    workers: tuple[WorkerStatistics, ...] = ()
    """The workers that run now."""


class Tallies:
    """The tallies of every thread that uses one backend, and what those did that are gone.

    A context dies at whatever point the collector says, also under the lock here and while `total`
    adds up, so that path takes no lock and changes nothing: it appends to a deque.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._living: dict[int, tuple[Tally, Tally]] = {}
        self._ended: deque[int] = deque()
        """Ids of contexts that died since the bookkeeping was last done."""
        self._gone = (Tally(), Tally())
        self._errors: Counter[int] = Counter()

    def enrol(self, context: Context) -> None:
        """Count what is done with this context, as long as it lives and after."""
        with self._lock:
            self._bury()  # among them, maybe, one that had the same id
            self._living[id(context)] = context.tallies
        weakref.finalize(context, self._ended.append, id(context)).atexit = False

    def _bury(self) -> None:
        """Do the bookkeeping of contexts that died; called under the lock."""
        while self._ended:
            for total, tally in zip(
                self._gone, self._living.pop(self._ended.popleft()), strict=True
            ):
                total.add(tally)

    def count_errors(self, codes: Iterable[int]) -> None:
        """Count pages that failed."""
        with self._lock:
            self._errors.update(codes)

    @property
    def errors(self) -> dict[int, int]:
        """Pages that failed, by negative errno."""
        with self._lock:
            return dict(sorted(self._errors.items()))

    def total(self, operation: int, elsewhere: Tally) -> OperationStatistics:
        """Add up one operation: what threads did here, and what workers did `elsewhere`."""
        total = Tally()
        with self._lock:
            self._bury()
            for tallies in (self._gone, *self._living.values()):
                total.add(tallies[operation])
        return OperationStatistics(
            batches=total.batches,
            divided=total.divided,
            pages=total.pages + elsewhere.pages,
            inline_pages=total.pages,
            bytes_in=total.bytes_in + elsewhere.bytes_in,
            bytes_out=total.bytes_out + elsewhere.bytes_out,
            waits=total.waits,
            wait_s=total.wait_s,
            fallbacks=total.fallbacks,
        )
