"""Pickled: a codec as bytes for a worker, and the modules that the worker needs to read them.

What an importable module defines is pickled by name. What `__main__` or a function defines is pickled by
value: `__main__` is never run again.
"""

from __future__ import annotations

import io
from types import FunctionType
from typing import Any, NamedTuple


class Pickled(NamedTuple):
    """A value's bytes, for `pickle.loads`, and the modules whose names they speak of."""

    data: bytes
    modules: frozenset[str]


def pickled(value: object) -> Pickled:
    """Pickle a value. Raises whatever its own pickling raises, SystemExit included."""
    import cloudpickle  # noqa: PLC0415 - 20 ms, off the caller's path

    modules: set[str] = set()

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc] # untyped
        def reducer_override(self, obj: object) -> Any:
            if isinstance(obj, (type, FunctionType)):
                modules.add(obj.__module__)
            return super().reducer_override(obj)

    file = io.BytesIO()
    Pickler(file).dump(value)
    return Pickled(file.getvalue(), frozenset(modules))
