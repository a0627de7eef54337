"""What backends with lanes have in common, whether lanes are threads or worker processes.

backend.py     LanesBackend: batches are divided by the core between the caller and the lanes
watch.py       Watch: looks after one batch while lanes have pages of it
queue.py       RequestQueue: requests that wait, in a fair order and bounded
dispatcher.py  Dispatcher: the thread that does requests, for `submit`
"""

from __future__ import annotations

from batchzip.lanes.backend import LanesBackend
from batchzip.lanes.dispatcher import RequestThread
from batchzip.lanes.queue import RequestQueue

__all__ = ["LanesBackend", "RequestQueue", "RequestThread"]
