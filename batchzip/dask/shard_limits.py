"""Limits of a shard: how much memory its pool may have in a worker, and where pages go that have no room there.

A pool is shared memory, and counts in the memory of its process. Dask looks at that several times a second: from
`distributed.worker.memory.spill` of the worker's limit on it spills the worker's data, from `pause` on the worker
takes no task, and from `terminate` on its nanny ends it. None of that makes a pool smaller. So a pool stays below
the first of these thresholds, together with what the process has anyway:

    limit × threshold  ≥  the process without its data and pools  +  other shards' pools, full  +  this pool, full

A tenth of the limit is left for messages and batches under way. What the worker's data takes makes way: Dask spills it.
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
"""Part of a worker's limit that no pool has."""

_LEAST = 0.02
"""Part of a worker's limit that a pool may have in any case, as a store needs some."""


def store_options(
    worker: Worker, memory_fraction: float, *, spill: bool, others: Iterable[SwapStore] = ()
) -> dict[str, Any]:
    """Return the options of a shard's store in a worker: `max_pool_bytes` and, where it spills, `backing`.

    `memory_fraction` is of the worker's memory limit; without one, of the share of the machine's or the control
    group's memory that Dask would give it. `others` are the stores of other shards in this process. Raises
    BadArgument.
    """
    fraction = as_fraction(memory_fraction, "memory_fraction")
    options: dict[str, Any] = {"max_pool_bytes": _pool_bytes(worker, fraction, others)}
    if spill:
        options["backing"] = worker.local_directory
    return options


def _pool_bytes(worker: Worker, fraction: float, others: Iterable[SwapStore]) -> int:
    limit = worker.memory_manager.memory_limit
    if limit is None:  # nobody pauses it
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
    """Return the part of its limit from which on Dask does something to a worker; None: it never does."""
    names = ("spill", "pause", "terminate")
    values = [dask.config.get(f"distributed.worker.memory.{name}") for name in names]
    return min((float(value) for value in values if value), default=None)


def _data_bytes(worker: Worker) -> int:
    """Return the bytes of the worker's data that are in memory, as far as it says."""
    live = getattr(worker.data, "fast", None)
    return int(worker.state.nbytes if live is None else live.total_weight)
