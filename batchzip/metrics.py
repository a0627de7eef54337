"""Metrics: a store's figures for Prometheus. Needs prometheus_client, extra `metrics`.

    import batchzip.metrics
    from prometheus_client import REGISTRY, start_http_server

    REGISTRY.register(batchzip.metrics.collector(store))
    start_http_server(9000)

Figures are read only when Prometheus scrapes. Counters end in _total, sizes are in bytes, times in
seconds. Counters that zswap has, too, have zswap's names. Pages and counters are labelled by
`group`; the store's own group has an empty label. When a group is closed, its series end. A
mapping's figures are labelled with its group, which has the mapping's name. The same holds for a
paged memory. `batchzip_info` is 1 and has version, codec and backend as labels.

A `batchzip.dask.ShardedStore` has figures of each of its shards, labelled by the address of the
`worker`. A scrape asks the scheduler, which asks the shards. The scheduler's dashboard has the
figures of all stores at /batchzip/metrics.

The latency histograms contain a random sample of one call in 64, because reading the clock at each
call would cost too much. So quantiles and means describe all calls, but counts do not: see the
counters for the number of calls. `batchzip.Latency` says what is timed. The faults of paged
memories are all timed.
"""

from __future__ import annotations

import errno
import itertools
import re
from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import batchzip
from batchzip.core.latency import BOUNDS_S
from batchzip.errors import BadArgument, ClosedError, ClusterLost, ForkedProcess
from batchzip.extras import load_extra
from batchzip.mapping import CompressedMapping
from batchzip.store import Latency, SwapStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from prometheus_client.core import Metric
    from prometheus_client.registry import Collector

    from batchzip.engine import Engine

    _Store: TypeAlias = "SwapStore | CompressedMapping | Surveyed"
    _Row = tuple[str, list[str], float | Latency]
    """Family, label values and figure. A histogram's figure is a Latency."""

__all__ = ["collector"]

_ESCAPED = re.compile(r"\\ud[89a-f]")
"""The beginning of an escaped surrogate."""

_EVENTS = {
    "pool_limit_hit": "Stores that found the pool, or their group, at its limit",
    "reject_alloc_fail": "Stores that failed because the system gave the pool no memory",
    "reject_compress_poor": "Pages rejected because their output did not fit",
    "reject_compress_fail": "Pages rejected because of any other compression error",
    "reject_reclaim_fail": "Writebacks that failed",
    "decompress_fail": "Loads and writebacks that met damaged bytes",
    "written_back_pages": "Pages moved from the pool to the backing file",
}
_TRAFFIC = {
    "page_stores": "Pages stored, in memory or in the backing file",
    "page_loads": "Pages loaded by the store's own process",
}
_PAGES = {
    "stored_pages": "Pages in memory, of every kind",
    "stored_incompressible_pages": "Pages kept raw in memory",
    "same_filled_pages": "Pages kept as one word",
    "backed_pages": "Pages in the backing file",
    "stored_values": "Objects of values of mappings, of up to a page each, in memory",
    "backed_values": "Objects of values of mappings, of up to a page each, in the backing file",
}
_MAPPING_EVENTS = {
    "hits": ("mapping_hits", "Lookups that found a value"),
    "misses": ("mapping_misses", "Lookups that found none"),
    "evictions": ("mapping_evictions", "Values evicted to make room"),
    "expirations": ("mapping_expirations", "Values forgotten because their TTL had expired"),
}
_MAPPINGS = {
    "values": ("mapping_values", "Values in the mapping"),
    "nbytes": ("mapping_value_bytes", "Bytes of its serialised values"),
}
_MEMORY = {
    "total": ("mapping_memory_bytes", "Bytes of memory that the mapping uses in total"),
    "in_dict": ("mapping_dict_bytes", "Bytes of memory that a dict of its values would use"),
}
_LATENCIES = {
    "load": ("load_seconds", "Time of a load of a page, a random sample of one in 64"),
    "store": ("store_seconds", "Time of a store of a folio, a random sample of one in 64"),
}
_MAPPING_LATENCIES = {
    "get": ("mapping_get_seconds", "Time of a get that found its value, a sample of one in 64"),
    "put": ("mapping_put_seconds", "Time of a put of one value, a random sample of one in 64"),
}
_OPERATIONS = {
    "batches": ("engine_batches", "Batches that the engine processed"),
    "pages": ("engine_pages", "Pages that the engine processed, single and failed ones included"),
    "bytes_in": ("engine_input_bytes", "Bytes that went into the codec"),
    "bytes_out": ("engine_output_bytes", "Bytes that came out of the codec"),
    "wait_s": ("engine_wait_seconds", "Time that callers waited for lanes"),
}
_CLASSES = {
    "zspages": ("pool_class_zspages", "Zspages in use"),
    "room": ("pool_class_room_objects", "Objects that the zspages have room for"),
    "objects": ("pool_class_objects", "Objects allocated"),
    "bytes": ("pool_class_bytes", "Bytes of the zspages"),
    "freeable": ("pool_class_freeable_bytes", "Bytes that compaction would free"),
}

_REGION_EVENTS = {
    "restored_pages": "Pages of paged memories that were decompressed after a touch",
    "readahead_pages": "Pages that were restored because the pages before them were touched",
    "readahead_hits": "Pages restored by readahead that were then touched",
    "prefetched_pages": "Pages that were restored by prefetch",
    "evicted_pages": "Pages that were compressed and evicted",
    "dropped_clean_pages": "Pages that were evicted without compression, because they were clean",
    "second_chances": "Candidates for eviction that stayed because they were touched",
    "direct_reclaims": "Faults that had to make room for their page themselves",
    "over_budget": "Times that a budget was exceeded because the store had no room",
    "lost_pages": "Pages that could not be restored",
}
_SHARD = {
    "pages": ("shard_pages", "Pages in the shard, without copies of another shard's pages"),
    "pool_bytes": ("shard_pool_bytes", "Bytes of memory that the shard's pool holds"),
    "pool_limit_bytes": ("shard_pool_limit_bytes", "Limit of the shard's pool in bytes"),
    "file_bytes": ("shard_file_bytes", "Bytes that the shard has spilled to its worker's disk"),
    "moving": ("shard_moving_stripes", "Stripes still to be moved from or to the shard"),
}
_SHARD_EVENTS = {
    "page_stores": ("shard_page_stores", "Pages stored in the shard, copies included"),
    "page_loads": ("shard_page_loads", "Pages loaded from the shard"),
    "refusals": ("shard_refusals", "Times that the pool was full, or a page was not compressed"),
}
_SHARDED = {
    "clients": ("sharded_clients", "Clients that have the sharded store open"),
    "epoch": ("sharded_epoch", "Epoch of the members, which rises with each change"),
    "lost_stripes": ("sharded_lost_stripes", "Stripes of 512 pages with lost pages"),
}
_FAULTS = "missing", "minor"
_STATES = "resident", "candidate", "stored", "empty", "pinned"


class ShardMetrics(Protocol):
    """The figures of a shard, named as in `_SHARD` and `_SHARD_EVENTS`."""

    @property
    def worker(self) -> str:
        """Return the worker's address."""

    @property
    def trouble(self) -> str:
        """Return why there are no figures, or an empty text."""


class StoreMetrics(Protocol):
    """The figures of a sharded store, named as in `_SHARDED`."""

    @property
    def store(self) -> str:
        """Return the store's name."""

    @property
    def shards(self) -> Sequence[ShardMetrics]:
        """Return the figures of its shards."""


class ClusterMetrics(Protocol):
    """The figures of a scheduler's sharded stores."""

    @property
    def stores(self) -> Sequence[StoreMetrics]:
        """Return the figures of each store."""


@runtime_checkable
class Surveyed(Protocol):
    """A sharded store that reports its figures: `batchzip.dask.ShardedStore`."""

    def _survey(self) -> StoreMetrics:
        """Return its figures. Raise ClosedError, ClusterLost or ForkedProcess."""


def collector(
    store: _Store | Mapping[str, _Store],
    *,
    classes: bool = False,
) -> Collector:
    """Return a collector of the store's figures, to be registered with prometheus_client.

    For a CompressedMapping, the collector reads the mapping's store. For a ShardedStore, it has
    only the figures of the shards. A registry takes only one of these collectors, because metric
    names must be unique. For several stores pass a mapping; its keys become the label `store`.
    `classes` adds the pool's class table by `object_bytes`, which has about a hundred lines.

    The collector keeps the store alive. It has no figures once the store is closed, and in a forked
    child. Thread-safe. Raise MissingExtra without prometheus_client, and BadArgument for other
    objects.

    Examples:
        >>> from prometheus_client import CollectorRegistry, generate_latest
        >>> import batchzip.metrics
        >>> with batchzip.Engine("lz4") as engine, batchzip.SwapStore(engine) as store:
        ...     store.store(0, [bytes(4096)])
        ...     registry = CollectorRegistry()
        ...     registry.register(batchzip.metrics.collector(store))
        ...     b"batchzip_stored_pages" in generate_latest(registry)
        True
    """
    core = load_extra("prometheus_client.core", extra="metrics", needed_by="batchzip.metrics")
    return _make_collector(core, store, classes=classes)


def _make_collector(
    core: Any,
    store: _Store | Mapping[str, _Store],
    *,
    classes: bool,
) -> Collector:
    from prometheus_client.registry import Collector  # noqa: PLC0415 - an extra

    kinds: tuple[type, ...] = SwapStore, CompressedMapping, Surveyed
    named = not isinstance(store, kinds)
    if named and not isinstance(store, Mapping):
        raise _no_store(store, ", or a mapping of them")
    given: Any = store if named else {"": store}
    stores: dict[str, tuple[Callable[[], Iterable[_Row]], object]] = {}
    for name, one in given.items():
        if not isinstance(one, kinds):
            raise _no_store(one)
        if isinstance(one, Surveyed):
            stores[name] = partial(_of_sharded, one), None
        else:
            # A mapping closes a store that it made itself, so the mapping is kept, too.
            whole: Any = one._store if isinstance(one, CompressedMapping) else one  # noqa: SLF001
            stores[name] = partial(_rows, whole, classes=classes), one

    class StoreCollector(Collector):
        """The metric families of these stores."""

        def describe(self) -> Iterable[Metric]:
            """Name the families without figures. Registering thus reads no store."""
            return _Families(core, named=named, classes=classes)

        def collect(self) -> Iterable[Metric]:
            """Read every open store."""
            families = _Families(core, named=named, classes=classes)
            for name, (read, _) in stores.items():
                try:
                    rows = list(read())
                except (ClosedError, ClusterLost, ForkedProcess):
                    continue
                for family, labels, value in rows:
                    shown = map(_printable, ([name] if named else []) + labels)
                    families.add(family, list(shown), value)
            return families

    return StoreCollector()


def exposition(survey: ClusterMetrics) -> bytes:
    """Return a cluster's sharded stores in Prometheus' format, by `store`. Raise MissingExtra."""
    core = load_extra("prometheus_client.core", extra="metrics", needed_by="batchzip.metrics")
    from prometheus_client import generate_latest  # noqa: PLC0415 - an extra, now known to exist

    families = _Families(core, named=True, classes=False)
    for store in survey.stores:
        for family, labels, value in _of_shards(store):
            families.add(family, [store.store, *labels], value)
    filled: Any = SimpleNamespace(collect=lambda: [one for one in families if one.samples])
    return generate_latest(filled)


def _no_store(value: object, more: str = "") -> BadArgument:
    kinds = "a SwapStore, a CompressedMapping or a ShardedStore"
    return BadArgument(f"store must be {kinds}{more}, not {type(value).__name__}")


def _printable(label: str) -> str:
    """Escape characters that UTF-8 cannot encode: surrogates, as in file names that are not UTF-8.

    Backslashes are doubled in such names, and in names that look escaped. So two names never become
    the same label. A duplicate label would invalidate the whole scrape.
    """
    text = str(label)
    if _ESCAPED.search(text.encode("utf-8", "backslashreplace").decode()):
        text = text.replace("\\", "\\\\")
    return text.encode("utf-8", "backslashreplace").decode()


class _Families:
    """All metric families by name, empty at first."""

    def __init__(self, core: Any, *, named: bool, classes: bool) -> None:
        self._families: dict[str, Any] = {}
        counter, gauge = core.CounterMetricFamily, core.GaugeMetricFamily
        histogram = core.HistogramMetricFamily
        labels = ["store"] if named else []

        def make(kind: Any, names: Iterable[tuple[str, str]], *more: str) -> None:
            for name, text in names:
                self._families[name] = kind(f"batchzip_{name}", text, labels=[*labels, *more])

        make(gauge, [("info", "1: what is in use")], "version", "algorithm", "backend")
        make(counter, _EVENTS.items(), "group")
        make(counter, _MAPPING_EVENTS.values(), "group")
        make(gauge, (*_MAPPINGS.values(), *_MEMORY.values()), "group")
        make(counter, _TRAFFIC.items(), "group")
        make(histogram, (*_LATENCIES.values(), *_MAPPING_LATENCIES.values()), "group")
        make(gauge, _PAGES.items(), "group")
        make(
            gauge, [("compressed_bytes", "Bytes of compressed and raw pages in the pool")], "group"
        )
        make(gauge, [("group_limit_bytes", "Limit of a group's bytes in the pool")], "group")
        make(
            gauge,
            [
                ("pool_bytes", "Bytes of memory that the pool holds"),
                ("pool_limit_bytes", "Bytes of memory that the pool may hold"),
                ("backing_file_bytes", "Bytes that the backing file holds"),
                ("table_bytes", "Bytes of the tables of all groups"),
                ("page_size_bytes", "Bytes of a page"),
                ("engine_workers", "Worker processes besides the owner"),
            ],
        )
        make(counter, [("region_faults", "Faults on pages that were not mapped")], "group", "kind")
        events = ((f"region_{name}", text) for name, text in _REGION_EVENTS.items())
        make(counter, events, "group")
        make(
            gauge,
            [("region_pages", "Pages of paged memories; candidates and pinned ones are resident")],
            "group",
            "state",
        )
        make(gauge, [("region_size_pages", "Pages that a paged memory may have")], "group")
        make(gauge, [("region_budget_pages", "Pages that may be resident")], "group")
        make(
            histogram,
            [("region_fault_seconds", "Time from a fault being read to its page being mapped")],
            "group",
        )
        make(
            gauge,
            [("shard_up", "1: the shard serves; 0: it is lost, or does not answer")],
            "worker",
        )
        make(gauge, _SHARD.values(), "worker")
        make(counter, _SHARD_EVENTS.values(), "worker")
        make(gauge, _SHARDED.values())
        make(counter, _OPERATIONS.values(), "operation")
        make(counter, [("engine_page_errors", "Pages that failed in the engine")], "errno")
        make(counter, [("engine_worker_restarts", "Workers that died and were replaced")])
        if classes:
            make(gauge, _CLASSES.values(), "object_bytes")

    def __iter__(self) -> Iterator[Any]:
        return iter(self._families.values())

    def add(
        self,
        name: str,
        labels: Sequence[str],
        value: float | Latency,
    ) -> None:
        """Add one figure, or one histogram."""
        family = self._families[name]
        if isinstance(value, Latency):
            bounds = [*map(repr, BOUNDS_S), "+Inf"]
            buckets = list(zip(bounds, itertools.accumulate(value.calls), strict=True))
            family.add_metric(labels, buckets, value.total_s)
        else:
            family.add_metric(labels, value)


def _rows(store: SwapStore, *, classes: bool) -> Iterator[_Row]:
    """Yield every figure of a store. Raises ClosedError, ForkedProcess."""
    yield from _of_groups(store)
    yield from _of_mappings(store)
    yield from _of_regions(store)
    engine = store.engine
    yield "info", [batchzip.__version__, repr(engine.codec), engine.backend.name], 1
    whole = store.counters
    yield "pool_bytes", [], whole.pool_total_size
    if store.max_pool_bytes is not None:
        yield "pool_limit_bytes", [], store.max_pool_bytes
    yield "backing_file_bytes", [], whole.backing_file_size
    yield "table_bytes", [], store.table_bytes
    yield "page_size_bytes", [], store.page_size
    yield from _of_engine(engine)
    for line in store.classes() if classes else ():
        for key, (family, _) in _CLASSES.items():
            yield family, [str(line.size)], getattr(line, key)


def _of_groups(store: SwapStore) -> Iterator[_Row]:
    for name, counters in store.counters_by_group().items():
        for key in (*_EVENTS, *_PAGES):
            yield key, [name], getattr(counters, key)
        yield "compressed_bytes", [name], counters.pool_total_size
    users = {name: group._user for name, group in store.groups.items()}  # noqa: SLF001
    for name, group in store.status()["groups"].items():
        for key in _TRAFFIC:
            yield key, [name], group[key]
        if users.get(name) is None:
            for key, (family, _) in _LATENCIES.items():
                yield family, [name], group["latencies"][key]
        if group["max_bytes"] is not None:
            yield "group_limit_bytes", [name], group["max_bytes"]


def _of_mappings(store: SwapStore) -> Iterator[_Row]:
    for name, group in store.groups.items():
        user = group._user  # noqa: SLF001 - a weak reference to the group's mapping
        mapping = None if user is None else user()
        if mapping is None:
            continue
        try:
            stats, memory, latencies = mapping.stats(), mapping.memory_usage(), mapping.latencies
        except ClosedError:
            continue
        for source, families in (
            (stats, _MAPPING_EVENTS),
            (stats, _MAPPINGS),
            (memory, _MEMORY),
        ):
            for key, (family, _) in families.items():
                yield family, [name], getattr(source, key)
        for key, (family, _) in _MAPPING_LATENCIES.items():
            yield family, [name], latencies[key]


def _of_regions(store: SwapStore) -> Iterator[_Row]:
    for name, region in store.status()["regions"].items():
        for kind in _FAULTS:
            yield "region_faults", [name, kind], region[f"faults_{kind}"]
        for key in _REGION_EVENTS:
            yield f"region_{key}", [name], region[key]
        for state in _STATES:
            yield "region_pages", [name, state], region[f"{state}_pages"]
        yield "region_size_pages", [name], region["pages"]
        yield "region_budget_pages", [name], region["budget_pages"]
        yield "region_fault_seconds", [name], region["latency"]


def _of_engine(engine: Engine) -> Iterator[_Row]:
    yield "engine_workers", [], len(engine.worker_pids)
    done = engine.statistics
    for operation, figures in (("compress", done.compress), ("decompress", done.decompress)):
        for key, (family, _) in _OPERATIONS.items():
            yield family, [operation], getattr(figures, key)
    for code, pages in done.errors.items():
        yield "engine_page_errors", [errno.errorcode.get(-code, str(code))], pages
    yield "engine_worker_restarts", [], done.restarts


def _of_sharded(store: Surveyed) -> Iterator[_Row]:
    """Yield every figure of a sharded store. Raises ClosedError, ClusterLost, ForkedProcess."""
    return _of_shards(store._survey())  # noqa: SLF001 - for metrics only


def _of_shards(found: StoreMetrics) -> Iterator[_Row]:
    for key, (family, _) in _SHARDED.items():
        yield family, [], getattr(found, key)
    # One shard per worker: a lost shard may have had the address of a serving one.
    shards = {
        shard.worker: shard for shard in sorted(found.shards, key=lambda one: not one.trouble)
    }
    for worker, shard in shards.items():
        yield "shard_up", [worker], int(not shard.trouble)
        for key, (family, _) in () if shard.trouble else (*_SHARD.items(), *_SHARD_EVENTS.items()):
            value = getattr(shard, key)
            if value is not None:
                yield family, [worker], value
