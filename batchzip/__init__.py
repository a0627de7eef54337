"""batchzip: keeps many page-sized buffers compressed in RAM and returns any in microseconds.

    with batchzip.Engine("zstd", level=1) as engine:
        store = batchzip.SwapStore(engine, max_pool_bytes=1 << 30)
        store.store(0, pages)
        store.load(0)

The public names are listed only in `__init__.pyi`. Each is imported when it is first used, so that
a worker process, which needs few of them, starts faster.
"""

import os
from importlib import import_module

__version__ = "0.2.0"


def _read_names() -> dict[str, str]:
    """Return the module of each public name; that of a public submodule is "batchzip"."""
    # Without pathlib, which would cost each worker 1 MiB.
    path = os.path.join(os.path.dirname(__file__), "__init__.pyi")  # noqa: PTH118, PTH120
    with open(path, encoding="utf-8") as stub:  # noqa: PTH123
        lines = [line.split() for line in stub if line.startswith("from ")]
    return {name: module for _, module, _, name, _, _ in lines}


_MODULES = _read_names()

_NAMES = sorted(name for name, module in _MODULES.items() if module != __name__)
__all__ = ["__version__", *_NAMES]  # noqa: PLE0604 - all are strings


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'batchzip' has no attribute {name!r}")
    if _MODULES[name] == __name__:
        return import_module(f"{__name__}.{name}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
