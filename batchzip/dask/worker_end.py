"""Worker's end: what is to be closed with a Dask worker.

Dask's workers close neither their data nor their actors, and closed ones may stay in memory for good. Their
extensions they do close: one of them, `WorkerEnd`, closes what was handed to `end_with`. It holds it weakly.

Lock: around finding or adding the extension, as a worker's loop may be going through its extensions; nothing
is called under it.
"""

from __future__ import annotations

import logging
import threading
import weakref
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from distributed.core import Status

if TYPE_CHECKING:
    from distributed import Worker

_LOG = logging.getLogger("batchzip.dask")

_NAME = "batchzip"

_lock = threading.RLock()


class WorkerEnd:
    """An extension of a worker, which closes it."""

    def __init__(self) -> None:
        self._things: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

    def add(self, thing: Any) -> None:
        """Have the `close` of a thing called at the worker's end."""
        self._things[id(thing)] = thing

    async def close(self) -> None:
        """Close all that is still there. It never raises: the worker would not end."""
        for thing in list(self._things.values()):
            try:
                closing = thing.close()
                if isawaitable(closing):
                    await closing
            except Exception:  # noqa: BLE001 - of the system, mostly: nothing else can be done
                _LOG.exception("Failed to close %r with its worker", thing)


def end_with(worker: Worker, thing: Any) -> bool:
    """Have a thing closed with a worker. Return False if that ends already, and nobody will."""
    made = WorkerEnd()
    with _lock:
        extensions = {**worker.extensions, _NAME: made}
        if _NAME not in worker.extensions:
            worker.extensions = extensions  # in one step
        end = worker.extensions[_NAME]
    end.add(thing)
    return worker.status not in (Status.closing, Status.closed, Status.failed)
