"""The common part of backends with lanes, which are threads or worker processes.

backend.py     LanesBackend: the core divides batches between the caller and the lanes
watch.py       Watch: supervises one batch while lanes have pages of it
queue.py       RequestQueue: a bounded queue of requests, fair between threads
dispatcher.py  Dispatcher: the thread that does the requests of `submit`
"""

from __future__ import annotations

from batchzip.lanes.backend import LanesBackend
from batchzip.lanes.dispatcher import RequestThread
from batchzip.lanes.queue import RequestQueue

__all__ = ["LanesBackend", "RequestQueue", "RequestThread"]
