"""Statistics: what an engine did, counted where the work is done and summed on request.

Each coder of an engine, and each lane, has a tally per operation. Only its current user writes it.
So counting needs no lock and costs a few additions per batch. Reading sums all tallies as they are
at that moment.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class OperationStatistics:
    """Figures of one operation, compress or decompress, since the engine was created.

    Pages and bytes count once the codec has processed them, whether they failed or not. Pages that
    were given up (-ETIMEDOUT, -ECANCELED, -EOWNERDEAD) do not count, unless that happened at the
    last moment. A page of a wrong size counts as a page of no bytes. If a worker dies, the pages of
    its share count where they are done again, or twice if it died between counting and reporting
    them. Single pages belong to no batch. A lane is a thread or a worker process.
    """

    batches: int
    """Batches done or given up, batches of one page included, cancelled ones not."""
    divided: int
    """Batches of which lanes had shares. The caller alone did the others, inline."""
    pages: int
    """Pages done, failed ones included."""
    inline_pages: int
    """Pages done by callers, not by lanes."""
    bytes_in: int
    bytes_out: int
    waits: int
    """Times that a caller had no more work and waited for a lane."""
    wait_s: float
    """Total seconds of these waits."""
    fallbacks: int
    """Pages that a caller did because their worker died or reported impossible results."""


@dataclass(frozen=True, slots=True)
class WorkerStatistics:
    """Figures of one worker process since its start."""

    pid: int
    shares: int
    pages: int
    bytes_in: int
    bytes_out: int
    busy_s: float
    """Seconds spent working on shares."""
    sleeps: int
    """Times that it slept because there was no work."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where batches of one operation and size are done, this machine or a cluster, and why.

    Speeds are bytes of pages per second, as last measured while such batches were in progress at
    that place. None: not measured.
    """

    operation: str
    """compress or decompress."""
    below_bytes: int | None
    """Upper bound of the batches' size in bytes of pages, which is the lower bound of the next
    Placement. None: no upper bound."""
    place: str
    """local or sent: where these batches are done now, apart from trials."""
    local_speed: float | None
    sent_speed: float | None
    local_bytes: int
    """Bytes of pages done there, trials included."""
    sent_bytes: int
    trials: int
    """Times that the other place was tried."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Figures of an engine. While work is in progress, they may differ from each other by a batch.

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
    """Number of workers that died and were replaced."""
    workers: tuple[WorkerStatistics, ...] = ()
    """The running workers."""
    placements: tuple[Placement, ...] = ()
    """Where batches are done. Only the dask backend chooses between places."""
