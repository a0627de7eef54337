"""Statistics: what an engine did, counted where it is done and added up when somebody asks.

Each coder of an engine has a tally for each operation, which only its user of the moment writes, and so
has each lane. Counting takes no lock, a few additions a batch; reading adds up what all of them show
at that moment.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class OperationStatistics:
    """What was done of one operation, compress or decompress, since the engine was made.

    Pages and bytes are those that were looked at, to whatever end. Pages that were given up
    (-ETIMEDOUT, -ECANCELED, -EOWNERDEAD) were not, unless it was just then; a page of a wrong size
    counts as a page of no bytes. The pages of a share whose worker died are counted where they were
    done again; twice, if it died between counting them and saying so. Single pages count as pages of
    no batch. A lane is a thread or a worker process.
    """

    batches: int
    """Batches done or given up, not those that were cancelled; a batch of one page is one, too."""
    divided: int
    """Those of them that lanes had shares of; the others were done inline, by the caller alone."""
    pages: int
    """Pages done, failed ones included."""
    inline_pages: int
    """Those of them that callers did, and not lanes."""
    bytes_in: int
    bytes_out: int
    waits: int
    """Times a caller had nothing left to do and waited for a lane."""
    wait_s: float
    """Seconds of these waits."""
    fallbacks: int
    """Pages that a caller did because the worker that had them died or lied."""


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
class Placement:
    """Where batches of one operation and size are done, this machine or a cluster, and why.

    Speeds are bytes of pages per second while such batches were under way at that place, as measured last;
    None: not measured.
    """

    operation: str
    """compress or decompress."""
    below_bytes: int | None
    """Batches of fewer bytes of pages than this, and of as many as the kind before has; None: of any more."""
    place: str
    """local or sent: where they are done now, but for trials."""
    local_speed: float | None
    sent_speed: float | None
    local_bytes: int
    """Bytes of pages that were done there, trials included."""
    sent_bytes: int
    trials: int
    """Times that the other place was tried."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """What an engine did. Figures of work under way may be a batch apart from each other.

    Examples:
        >>> import batchzip
        >>> with batchzip.Engine("lz4", backend="sequential") as engine:
        ...     engine.compress(batchzip.CompressBatch([bytes(4096), b"too short"]))
        >>> engine.statistics.compress.pages, engine.statistics.errors
        (2, {-22: 1})
    """

    compress: OperationStatistics
    decompress: OperationStatistics
    errors: dict[int, int] = field(default_factory=dict)
    """Pages that failed, by negative errno."""
    restarts: int = 0
    """Workers that died and were replaced."""
    workers: tuple[WorkerStatistics, ...] = ()
    """The workers that run now."""
    placements: tuple[Placement, ...] = ()
    """Where batches are done, for a backend that chooses: the dask backend."""
