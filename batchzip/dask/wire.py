"""Wire: how clients, the directory and the shards of a sharded store talk.

Each answer is a dictionary with a `status`:

    OK      and what was asked for
    STALE   the epochs differ: fetch the members again, and repeat
    GONE    there is no such shard or store here (any more)
    ERROR   `error` has an exception of batchzip's, pickled

All else is numbers, texts and bytes, which go through the scheduler as they are, and arrays, which go from
client to worker beside the message. No answer at all (None) says that the other side has no such handler:
the scheduler was started anew, or the worker was.

Who changes messages so that another version would misunderstand them raises `probe.PROTOCOL`.
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

NO_STORE = "the store does not exist any more: call recover() to make it again"
"""What a client says of a store that its scheduler does not know."""

Answer = dict[str, Any]


class Stale(Exception):
    """An answer is to be STALE."""


def failed(error: Exception) -> Answer:
    """Return the answer that has an error."""
    return {"status": ERROR, "error": dump(error)}


def dump(value: object) -> bytes:
    """Pickle what no other form exists for: options, and exceptions."""
    data: bytes = pickle.dumps(value)
    return data


def error_of(answer: Mapping[str, Any]) -> Exception:
    """Return the exception of an ERROR."""
    try:
        error = pickle.loads(answer["error"])
    except Exception as broken:  # noqa: BLE001 - a class of the other side's alone
        return BatchzipError(f"an error that cannot be unpickled here: {broken!r}")
    return error if isinstance(error, Exception) else BatchzipError(repr(error))
