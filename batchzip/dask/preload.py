"""A preload script that gives each Dask worker a WorkerData.

    dask worker tcp://… --preload batchzip.dask.preload

examples/dask_worker_data.yaml does the same through Dask's configuration; workers without batchzip
then start, too. The arguments of WorkerData are in the configuration under `batchzip.worker-data`,
or in the environment, such as DASK_BATCHZIP__WORKER_DATA__ENGINE__ALGORITHM=zstd.

Failures are logged, and the worker keeps Dask's own data.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import dask.config

if TYPE_CHECKING:
    from distributed import Worker

_LOG = logging.getLogger("distributed.worker.memory")
"""Dask shows messages of this logger, but not of batchzip's own."""

_SETTINGS = "batchzip.worker-data"


def dask_setup(worker: Worker) -> None:
    """Give a worker a WorkerData before it gets a task. Dask calls this when the worker starts."""
    try:
        _replace(worker)
    except Exception:  # noqa: BLE001 - the worker starts in any case
        _LOG.exception("WorkerData cannot be used; this worker spills with Dask's own buffer")


def _replace(worker: Worker) -> None:
    from batchzip.dask.worker_data import WorkerData  # noqa: PLC0415 - what fails is logged

    options = dask.config.get(_SETTINGS, None) or {}
    if isinstance(worker.data, WorkerData):
        return
    if worker.data:
        raise RuntimeError("the worker already has values")
    data = WorkerData(worker.local_directory, **_as_arguments(options))
    worker.memory_manager.data = worker.state.data = data
    _LOG.info("WorkerData compresses values in memory before any are written to disk")


def _as_arguments(options: Any) -> dict[str, Any]:
    """Return settings under the names of WorkerData's arguments. Dask's settings have dashes."""
    if not isinstance(options, dict):
        raise TypeError(f"{_SETTINGS} must map names to values, not be {options!r}")
    return {
        name.replace("-", "_"): _as_arguments(value) if isinstance(value, dict) else value
        for name, value in options.items()
    }
