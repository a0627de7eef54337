"""WorkerEnd: closes shards and data with their Dask worker.

Dask's workers close neither their data nor their actors, and a closed worker may stay in memory
forever. But they close their extensions. One of them, `WorkerEnd`, closes the objects that were
passed to `end_with`. It refers to them weakly.

The lock guards finding or adding the extension, because a worker's event loop may be iterating over
its extensions. Nothing is called under it.
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
    """An extension that closes objects with its worker."""

    def __init__(self) -> None:
        self._things: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

    def add(self, thing: Any) -> None:
        """Register an object, so that its `close` is called when the worker closes."""
        self._things[id(thing)] = thing

    async def close(self) -> None:
        """Close the objects that still exist. Never raise, because the worker would not end."""
        for thing in list(self._things.values()):
            try:
                closing = thing.close()
                if isawaitable(closing):
                    await closing
            except Exception:  # noqa: BLE001 - mostly of the system; only logging is left
                _LOG.exception("Failed to close %r with its worker", thing)


def end_with(worker: Worker, thing: Any) -> bool:
    """Close an object with a worker. Return False if the worker is closing already and will not."""
    made = WorkerEnd()
    with _lock:
        extensions = {**worker.extensions, _NAME: made}
        if _NAME not in worker.extensions:
            worker.extensions = extensions  # in one step
        end = worker.extensions[_NAME]
    end.add(thing)
    return worker.status not in (Status.closing, Status.closed, Status.failed)
