"""batchzip: many page-sized buffers compressed in RAM, any of them back in microseconds.

    with batchzip.Engine("zstd", level=1) as engine:
        store = batchzip.SwapStore(engine, max_pool_bytes=1 << 30)
        store.store(0, pages)
        store.load(0)

Names are imported when first used: a worker process needs few of them, and starts sooner.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # from typing, it would cost each worker 1.6 MiB
if TYPE_CHECKING:
    from batchzip import advice as advice
    from batchzip import dask as dask
    from batchzip import metrics as metrics
    from batchzip import numcodecs as numcodecs
    from batchzip import paged as paged
    from batchzip import zarr as zarr
    from batchzip.advice.values import ValuesAdvice as ValuesAdvice
    from batchzip.advice.values import advise_values as advise_values
    from batchzip.arrays import StoredArray as StoredArray
    from batchzip.arrays import load_array as load_array
    from batchzip.arrays import store_array as store_array
    from batchzip.backend import Backend as Backend
    from batchzip.backend import backends as backends
    from batchzip.batch import CompressBatch as CompressBatch
    from batchzip.batch import DecompressBatch as DecompressBatch
    from batchzip.codecs import Codec as Codec
    from batchzip.codecs import algorithms as algorithms
    from batchzip.codecs.dictionary import train_dictionary as train_dictionary
    from batchzip.engine import Engine as Engine
    from batchzip.errors import (
        BackendUnavailable as BackendUnavailable,
    )
    from batchzip.errors import (
        BadArgument as BadArgument,
    )
    from batchzip.errors import (
        BadBatch as BadBatch,
    )
    from batchzip.errors import (
        BadHandle as BadHandle,
    )
    from batchzip.errors import (
        BatchzipError as BatchzipError,
    )
    from batchzip.errors import (
        ClosedError as ClosedError,
    )
    from batchzip.errors import (
        ClusterLost as ClusterLost,
    )
    from batchzip.errors import (
        CorruptPage as CorruptPage,
    )
    from batchzip.errors import (
        CorruptValue as CorruptValue,
    )
    from batchzip.errors import (
        EngineBusy as EngineBusy,
    )
    from batchzip.errors import (
        ForkedProcess as ForkedProcess,
    )
    from batchzip.errors import (
        LimitReached as LimitReached,
    )
    from batchzip.errors import (
        MissingExtra as MissingExtra,
    )
    from batchzip.errors import (
        NotStorable as NotStorable,
    )
    from batchzip.errors import (
        PageError as PageError,
    )
    from batchzip.errors import (
        PageNotStored as PageNotStored,
    )
    from batchzip.errors import (
        PagesLost as PagesLost,
    )
    from batchzip.errors import (
        PagingUnavailable as PagingUnavailable,
    )
    from batchzip.errors import (
        PoolFull as PoolFull,
    )
    from batchzip.errors import (
        RegionFull as RegionFull,
    )
    from batchzip.errors import (
        RequestCancelled as RequestCancelled,
    )
    from batchzip.errors import (
        RequestTimeout as RequestTimeout,
    )
    from batchzip.errors import (
        StoreRejected as StoreRejected,
    )
    from batchzip.errors import (
        UnknownAlgorithm as UnknownAlgorithm,
    )
    from batchzip.errors import (
        UnknownBackend as UnknownBackend,
    )
    from batchzip.errors import (
        UnreadableProcess as UnreadableProcess,
    )
    from batchzip.errors import (
        UnreadableValue as UnreadableValue,
    )
    from batchzip.errors import (
        WorkerWarning as WorkerWarning,
    )
    from batchzip.mapping import CompressedMapping as CompressedMapping
    from batchzip.mapping import MappingStatistics as MappingStatistics
    from batchzip.mapping import MemoryUsage as MemoryUsage
    from batchzip.mapping import cached as cached
    from batchzip.paged.memory import PagedMemory as PagedMemory
    from batchzip.paged.memory import paged_empty as paged_empty
    from batchzip.paged.statistics import PagedStatistics as PagedStatistics
    from batchzip.pool import Pool as Pool
    from batchzip.request import Request as Request
    from batchzip.statistics import Statistics as Statistics
    from batchzip.store import Counters as Counters
    from batchzip.store import Group as Group
    from batchzip.store import GroupView as GroupView
    from batchzip.store import Latency as Latency
    from batchzip.store import Recompression as Recompression
    from batchzip.store import Share as Share
    from batchzip.store import StoreReport as StoreReport
    from batchzip.store import StoreView as StoreView
    from batchzip.store import SwapStore as SwapStore
    from batchzip.store import attach as attach

__version__ = "0.1.0"

_HOME = {
    **dict.fromkeys(["ValuesAdvice", "advise_values"], "advice.values"),
    "StoredArray": "arrays",
    "load_array": "arrays",
    "store_array": "arrays",
    "Backend": "backend",
    "backends": "backend",
    "CompressBatch": "batch",
    "DecompressBatch": "batch",
    "Codec": "codecs",
    "algorithms": "codecs",
    "train_dictionary": "codecs.dictionary",
    "Engine": "engine",
    **dict.fromkeys(["CompressedMapping", "MappingStatistics", "MemoryUsage", "cached"], "mapping"),
    **dict.fromkeys(["PagedMemory", "PagedStatistics", "paged_empty"], "paged"),
    "Pool": "pool",
    "Request": "request",
    "Statistics": "statistics",
    "Counters": "store",
    **dict.fromkeys(
        [
            "Group",
            "GroupView",
            "Latency",
            "Recompression",
            "Share",
            "StoreReport",
            "StoreView",
            "SwapStore",
        ],
        "store",
    ),
    "attach": "store",
    **dict.fromkeys(
        [
            "BackendUnavailable",
            "BadArgument",
            "BadBatch",
            "BadHandle",
            "BatchzipError",
            "ClosedError",
            "ClusterLost",
            "CorruptPage",
            "CorruptValue",
            "EngineBusy",
            "ForkedProcess",
            "LimitReached",
            "MissingExtra",
            "NotStorable",
            "PageError",
            "PageNotStored",
            "PagesLost",
            "PagingUnavailable",
            "PoolFull",
            "RegionFull",
            "RequestCancelled",
            "RequestTimeout",
            "StoreRejected",
            "UnknownAlgorithm",
            "UnknownBackend",
            "UnreadableProcess",
            "UnreadableValue",
            "WorkerWarning",
        ],
        "errors",
    ),
}

_SUBMODULES = frozenset({"advice", "dask", "metrics", "numcodecs", "paged", "testing", "zarr"})
"""Imported, as `batchzip.dask`, when first used. Some need an extra: not for `from batchzip import *`."""

__all__ = ["__version__", *sorted(_HOME)]  # noqa: PLE0604 - every name of _HOME is a string


def __getattr__(name: str) -> object:
    if name in _SUBMODULES:
        return import_module(f"batchzip.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'batchzip' has no attribute {name!r}")
    value = getattr(import_module(f"batchzip.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
