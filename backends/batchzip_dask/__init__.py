"""The dask backend: the workers of an existing Dask cluster compress and decompress batches.

backend.py     DaskBackend
choice.py      Choices: decides by measurement whether a batch runs here or on the cluster
connection.py  ClusterConnection: the caller's client, or a client made for an address
lane.py        Lane: the thread that hands out parcels and takes their results back
flight.py      Flight: a request in progress; Parcel: pages of one or more flights in one task
task_pages.py  TaskPages: what a task carries, and what a worker does with it

Needs the extra `dask`. batchzip must be installed on every worker.
"""

from __future__ import annotations

from batchzip_dask.backend import DaskBackend

__all__ = ["DaskBackend"]
