"""The dask backend: batches go to the workers of a Dask cluster that is there already.

backend.py     the backend itself
cluster.py     the connection to the scheduler: the caller's client, or one for an address
lane.py        the thread that has requests done: hands out shares, takes what comes back
flight.py      one request whose shares the cluster has
share.py       a share as it travels, and what a worker does with one

Needs the extra `dask`; batchzip must be installed on the scheduler and on every worker.
"""

from __future__ import annotations

from batchzip_dask.backend import DaskBackend

__all__ = ["DaskBackend"]
