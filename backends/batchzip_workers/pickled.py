"""Pickled: a codec as bytes for a worker, and the modules that the worker needs to unpickle it.

Objects of an importable module are pickled by name. Objects that `__main__` or a function defines
are pickled by value, so that `__main__` never runs again.

cloudpickle includes the modules that a function pickled by value names. It does not include
submodules of packages that an inner function names (`lz4.block`, if only `lz4` is named). So these
are listed here, and imported by the worker.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import sys
from importlib import import_module
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator


class Pickled(NamedTuple):
    """A value's bytes for `unpickled`, and the modules that these bytes refer to."""

    data: bytes
    modules: frozenset[str]


def pickled(value: object) -> Pickled:
    """Pickle a value. Raise any error of its own pickling methods, SystemExit included."""
    import cloudpickle  # noqa: PLC0415 - takes 20 ms, which the caller need not wait for

    modules: set[str] = set()
    submodules: set[str] = set()

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc] # untyped
        def reducer_override(self, obj: object) -> Any:
            if isinstance(obj, (type, FunctionType)):
                modules.add(obj.__module__)
            if isinstance(obj, FunctionType):
                submodules.update(_submodules(obj))
            return super().reducer_override(obj)

    file = io.BytesIO()
    Pickler(file).dump(value)
    return Pickled(
        pickle.dumps(sorted(submodules)) + file.getvalue(), frozenset(modules | submodules)
    )


def unpickled(data: bytes) -> Any:
    """Return the value that was given to `pickled`."""
    file = io.BytesIO(data)
    for name in pickle.load(file):
        with contextlib.suppress(ImportError):  # its package creates it at run time
            import_module(name)
    return pickle.load(file)


def _submodules(function: FunctionType) -> Iterator[str]:
    """Yield the loaded submodules that a function names, of packages that it names."""
    names = set(_names(function.__code__))
    for package in _known(function, names):
        if isinstance(package, ModuleType) and hasattr(package, "__path__"):
            begin = f"{package.__name__}."
            for module in list(sys.modules):
                if module.startswith(begin) and set(module[len(begin) :].split(".")) <= names:
                    yield module


def _known(function: FunctionType, names: set[str]) -> Iterator[object]:
    """Yield the values of a function's names, global or from enclosing functions."""
    for name in names & function.__globals__.keys():
        yield function.__globals__[name]
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # not bound yet
            yield cell.cell_contents


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
