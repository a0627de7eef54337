"""The dask backend: batches go to the workers of a Dask cluster that is there already.

backend.py     the backend itself
choice.py      where a batch is done, here or on the cluster, by measurement
cluster.py     the connection to the scheduler: the caller's client, or one for an address
lane.py        the thread that has requests done: hands out parcels, takes what comes back
flight.py      one request on its way, and a parcel: pages of several that travel together
share.py       pages as they travel, and what a worker does with them

Needs the extra `dask`; batchzip must be installed on every worker.
"""

from __future__ import annotations

from batchzip_dask.backend import DaskBackend

__all__ = ["DaskBackend"]
