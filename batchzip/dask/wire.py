"""Wire: the messages between clients, the directory and the shards of a sharded store.

Each answer is a dictionary with a `status`:

    OK      with the result
    STALE   the epochs differ: fetch the members, then repeat the request
    GONE    the shard or store is not here, or no longer
    ERROR   `error` has a pickled exception of batchzip

Everything else is numbers, texts and bytes, which the scheduler passes on unchanged, and arrays,
which go from client to worker beside the message. An answer of None says that the other side has no
such handler: the scheduler or the worker was restarted.

Whoever changes messages incompatibly must raise `probe.PROTOCOL`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distributed.protocol import pickle

from batchzip.errors import BatchzipError

if TYPE_CHECKING:
    from collections.abc import Mapping

OK = "OK"
STALE = "stale"
GONE = "gone"
ERROR = "error"

DIRECTORY = "batchzip_directory"
"""Name of the scheduler's handler."""

SHARD = "batchzip_shard"
"""Name of a worker's handler."""

NO_STORE = "the store no longer exists: call recover() to create it again"
"""A client's message if its scheduler does not know the store."""

Answer = dict[str, Any]


class Stale(Exception):
    """The request cannot be served at its epoch. The answer is STALE."""


def failed(error: Exception) -> Answer:
    """Return an answer with an error."""
    return {"status": ERROR, "error": dump(error)}


def dump(value: object) -> bytes:
    """Pickle options or an exception, which have no other form in messages."""
    data: bytes = pickle.dumps(value)
    return data


def error_of(answer: Mapping[str, Any]) -> Exception:
    """Return the exception of an ERROR answer."""
    try:
        error = pickle.loads(answer["error"])
    except Exception as broken:  # noqa: BLE001 - for example a class that exists only there
        return BatchzipError(f"an error that cannot be unpickled here: {broken!r}")
    return error if isinstance(error, Exception) else BatchzipError(repr(error))
