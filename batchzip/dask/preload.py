"""A preload for Dask's workers: each has a WorkerData for its data.

    dask worker tcp://… --preload batchzip.dask.preload

examples/dask_worker_data.yaml does the same by Dask's configuration, and lets workers without batchzip start, too.
What WorkerData takes stands in the configuration at `batchzip.worker-data`, or in the environment, as in
DASK_BATCHZIP__WORKER_DATA__ENGINE__ALGORITHM=zstd.

What fails is logged, and the worker keeps Dask's own data.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import dask.config

if TYPE_CHECKING:
    from distributed import Worker

_LOG = logging.getLogger("distributed.worker.memory")
"""A logger that Dask shows; it does not show batchzip's own."""

_SETTINGS = "batchzip.worker-data"


def dask_setup(worker: Worker) -> None:
    """Give a worker a WorkerData, before it has any task. Dask calls this as the worker starts."""
    try:
        _replace(worker)
    except Exception:  # noqa: BLE001 - whatever it is, the worker starts
        _LOG.exception("WorkerData cannot be used; this worker spills as Dask does by itself")


def _replace(worker: Worker) -> None:
    from batchzip.dask.worker_data import WorkerData  # noqa: PLC0415 - what fails is logged

    options = dask.config.get(_SETTINGS, None) or {}
    if isinstance(worker.data, WorkerData):
        return
    if worker.data:
        raise RuntimeError("the worker has values already")
    data = WorkerData(worker.local_directory, **_as_arguments(options))
    worker.memory_manager.data = worker.state.data = data
    _LOG.info("Values are compressed in memory before any go to disk: WorkerData")


def _as_arguments(options: Any) -> dict[str, Any]:
    """Return settings as WorkerData names them: Dask's settings have dashes."""
    if not isinstance(options, dict):
        raise TypeError(f"{_SETTINGS} has names and values, not {options!r}")
    return {
        name.replace("-", "_"): _as_arguments(value) if isinstance(value, dict) else value
        for name, value in options.items()
    }
