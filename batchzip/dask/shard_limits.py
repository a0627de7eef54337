"""Limits of a shard: how much memory its pool may use in a worker, and where other pages go.

A pool is shared memory, which counts as memory of the worker's process. Dask checks that several
times per second, against fractions of the worker's limit in `distributed.worker.memory`. From
`spill` on it spills the worker's data; from `pause` on the worker starts no task; from `terminate`
on its nanny ends it. None of that shrinks a pool. So a pool must stay below the first of these
thresholds, together with the rest of the process:

    limit × threshold  ≥  process without data and pools  +  other shards' full pools  +  this full
    pool

A tenth of the limit is reserved for messages and batches under way. The worker's data does not
count, because Dask spills it to make room.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

import dask.config
from distributed.worker_memory import parse_memory_limit

from batchzip.arguments.checks import as_fraction

if TYPE_CHECKING:
    from collections.abc import Iterable

    from distributed import Worker

    from batchzip.store import SwapStore

_LOG = logging.getLogger("batchzip.dask")

_HEADROOM = 0.1
"""Fraction of a worker's limit that is reserved from pools."""

_LEAST = 0.02
"""Fraction of a worker's limit that a pool gets in any case, because a store needs some memory."""


def store_options(
    worker: Worker, memory_fraction: float, *, spill: bool, others: Iterable[SwapStore] = ()
) -> dict[str, Any]:
    """Return options for a shard's store: `max_pool_bytes` and, if it spills, `backing`.

    `memory_fraction` refers to the worker's memory limit. If the worker has none, it refers to the
    part of the machine's or the control group's memory that Dask would give it. `others` are the
    stores of other shards in this process. Raise BadArgument if `memory_fraction` is not a
    fraction.
    """
    fraction = as_fraction(memory_fraction, "memory_fraction")
    options: dict[str, Any] = {"max_pool_bytes": _pool_bytes(worker, fraction, others)}
    if spill:
        options["backing"] = worker.local_directory
    return options


def _pool_bytes(worker: Worker, fraction: float, others: Iterable[SwapStore]) -> int:
    limit = worker.memory_manager.memory_limit
    if limit is None:  # Dask never pauses this worker
        share = parse_memory_limit("auto", worker.state.nthreads, logger=_LOG)
        return int(fraction * (sys.maxsize if share is None else share))
    wanted = int(fraction * limit)
    threshold = _threshold()
    if threshold is None:
        return wanted
    base = worker.monitor.get_process_memory() - _data_bytes(worker)
    for store in others:
        held = store.counters.pool_total_size
        most = store.max_pool_bytes
        base += 0 if most is None else max(0, most - held)
    room = int((threshold - _HEADROOM) * limit) - base
    return min(wanted, max(room, int(_LEAST * limit)))


def _threshold() -> float | None:
    """Return the lowest fraction of the limit from which Dask acts on a worker, or None."""
    names = ("spill", "pause", "terminate")
    values = [dask.config.get(f"distributed.worker.memory.{name}") for name in names]
    return min((float(value) for value in values if value), default=None)


def _data_bytes(worker: Worker) -> int:
    """Return the bytes of the worker's data in memory, as it reports them."""
    live = getattr(worker.data, "fast", None)
    return int(worker.state.nbytes if live is None else live.total_weight)
