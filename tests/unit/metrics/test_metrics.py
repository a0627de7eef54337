"""Metrics: what Prometheus reads over HTTP is what the store says."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from threading import Thread
from typing import TYPE_CHECKING
from wsgiref.simple_server import make_server

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.parser import text_string_to_metric_families
from support.forked import in_forked_child

import batchzip
from batchzip import ClosedError, CompressedMapping, Engine, MissingExtra, PageNotStored, SwapStore
from batchzip.core.latency import BOUNDS_S
from batchzip.core.records import shift_clock
from batchzip.metrics import collector
from batchzip.testing.plain import make_pages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from prometheus_client.core import Metric

Figures = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@contextmanager
def served(registry: CollectorRegistry) -> Iterator[str]:
    """Serve on a port of its own, and return the address."""
    with make_server("127.0.0.1", 0, make_wsgi_app(registry)) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/metrics"
        finally:
            server.shutdown()
            thread.join()


def scrape(address: str) -> tuple[Figures, list[Metric]]:
    with urllib.request.urlopen(address, timeout=30) as answer:
        assert answer.status == 200
        text = answer.read().decode()
    families = list(text_string_to_metric_families(text))
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }, families


def group(name: str) -> tuple[tuple[str, str], ...]:
    return (("group", name),)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SwapStore]:
    with (
        Engine("lz4", backend="sequential") as engine,
        SwapStore(engine, max_pool_bytes=1 << 20, backing=tmp_path / "cold") as store,
    ):
        yield store


def test_metrics_scraped_over_http_match_the_store(store: SwapStore) -> None:
    store.store(0, make_pages(100))
    store.store(200, np.zeros((5, 4096), np.uint8))
    tiles = store.group("tiles", max_bytes=50_000)
    tiles.store(0, make_pages(10, seed=1))
    tiles.writeback([0, 2, 3])
    registry = CollectorRegistry()
    registry.register(collector(store))
    with served(registry) as address:
        found, _ = scrape(address)
        mine, others = store.counters_by_group().values()
        for name in ("stored_pages", "same_filled_pages", "backed_pages"):
            assert found[f"batchzip_{name}", group("")] == getattr(mine, name)
            assert found[f"batchzip_{name}", group("tiles")] == getattr(others, name)
        assert found["batchzip_stored_pages", group("")] == 105
        assert found["batchzip_backed_pages", group("tiles")] == 3
        assert found["batchzip_written_back_pages_total", group("tiles")] == 3
        assert found["batchzip_written_back_pages_total", group("")] == 0
        assert found["batchzip_page_stores_total", group("")] == 105
        assert found["batchzip_page_stores_total", group("tiles")] == 10
        assert found["batchzip_page_loads_total", group("")] == 0
        store.load(3)
        store.load_many([1, 2, 202])
        with pytest.raises(PageNotStored):
            store.load(999)
        assert scrape(address)[0]["batchzip_page_loads_total", group("")] == 4
        assert found["batchzip_group_limit_bytes", group("tiles")] == 50_000
        assert ("batchzip_group_limit_bytes", group("")) not in found
        assert found["batchzip_pool_bytes", ()] == store.counters.pool_total_size
        assert found["batchzip_pool_limit_bytes", ()] == 1 << 20
        assert found["batchzip_backing_file_bytes", ()] == store.counters.backing_file_size > 0
        assert found["batchzip_table_bytes", ()] == store.table_bytes
        assert found["batchzip_page_size_bytes", ()] == 4096
        compressed = [found["batchzip_compressed_bytes", group(name)] for name in ("", "tiles")]
        assert sum(compressed) == store.compressed_bytes
        done = store.engine.statistics.compress
        labels = (("operation", "compress"),)
        assert found["batchzip_engine_pages_total", labels] == done.pages
        assert found["batchzip_engine_output_bytes_total", labels] == done.bytes_out
        assert found["batchzip_engine_worker_restarts_total", ()] == 0
        # The next scrape has what happened since.
        store.store(300, make_pages(7, seed=3))
        assert scrape(address)[0]["batchzip_stored_pages", group("")] == 112


def test_names_and_units_are_those_of_prometheus(store: SwapStore) -> None:
    store.store(0, make_pages(20))
    registry = CollectorRegistry()
    registry.register(collector(store, classes=True))
    with served(registry) as address:
        _, families = scrape(address)
    assert len(families) > 25
    for family in families:
        assert family.name.startswith("batchzip_")
        assert family.documentation
        assert family.type in ("counter", "gauge", "histogram")
        assert family.name.endswith("_seconds") >= (family.type == "histogram")
        for sample in family.samples:
            assert sample.name.endswith("_total") is (family.type == "counter")
        for unit in ("kib", "mib", "us", "ms", "s", "percent", "total"):
            assert not family.name.endswith(f"_{unit}")


def test_the_class_table_is_exported_only_on_request(store: SwapStore) -> None:
    store.store(0, make_pages(50))
    registry = CollectorRegistry()
    registry.register(collector(store, classes=True))
    with served(registry) as address:
        found, _ = scrape(address)
    for line in store.classes():
        labels = (("object_bytes", str(line.size)),)
        assert found["batchzip_pool_class_zspages", labels] == line.zspages
        assert found["batchzip_pool_class_room_objects", labels] == line.room
        assert found["batchzip_pool_class_objects", labels] == line.objects
        assert found["batchzip_pool_class_bytes", labels] == line.bytes
        assert found["batchzip_pool_class_freeable_bytes", labels] == line.freeable
    names = {family.name for family in collector(store).collect()}
    assert not any("class" in name for name in names)


def test_a_mapping_shows_what_became_of_its_calls(
    store: SwapStore, request: pytest.FixtureRequest
) -> None:
    registry = CollectorRegistry()
    registry.register(collector(store))
    with (
        CompressedMapping(store, name="rows", max_bytes=20_000, on_full="evict") as rows,
        served(registry) as address,
    ):
        rows.update((number, os.urandom(100)) for number in range(300))
        rows.set("short", b"value", ttl=5)
        shift_clock(6)
        request.addfinalizer(lambda: shift_clock(-6))
        assert rows.get("short") is None
        assert rows[299]
        stats, memory = rows.stats(), rows.memory_usage()
        assert stats.evictions > 0
        found, _ = scrape(address)
        assert found["batchzip_mapping_values", group("rows")] == len(rows)
        assert found["batchzip_mapping_hits_total", group("rows")] == stats.hits == 1
        assert found["batchzip_mapping_misses_total", group("rows")] == stats.misses == 1
        assert found["batchzip_mapping_evictions_total", group("rows")] == stats.evictions
        assert found["batchzip_mapping_expirations_total", group("rows")] == 1
        assert found["batchzip_mapping_value_bytes", group("rows")] == stats.nbytes
        assert found["batchzip_mapping_memory_bytes", group("rows")] == memory.total
        assert found["batchzip_mapping_dict_bytes", group("rows")] == memory.in_dict
        assert ("batchzip_mapping_values", group("")) not in found
        rows.close()
        assert not any("mapping" in name for name, _ in scrape(address)[0])


def test_a_mapping_stands_for_its_store() -> None:
    with CompressedMapping() as own:
        own["key"] = b"value"
        both = {"a": own, "b": own}
        samples = {
            (sample.name, sample.labels.get("store")): sample.value
            for given in (own, both)
            for family in collector(given).collect()
            for sample in family.samples
        }
        assert {samples["batchzip_mapping_values", name] for name in (None, "a", "b")} == {1}
    assert not any(family.samples for family in collector(own).collect())


def test_latencies_are_histograms_of_what_is_called(store: SwapStore) -> None:
    registry = CollectorRegistry()
    registry.register(collector(store))
    with CompressedMapping(store, name="rows") as rows, served(registry) as address:
        store.store(0, make_pages(1))
        for number in range(500):
            store.load(0)
            rows[number] = b"value"
            assert rows[number]
        found, families = scrape(address)
        told = {
            "load": (store.latencies["load"], ""),
            "mapping_get": (rows.latencies["get"], "rows"),
            "mapping_put": (rows.latencies["put"], "rows"),
        }
        for name, (latency, of) in told.items():
            family = f"batchzip_{name}_seconds"
            assert found[f"{family}_count", group(of)] == latency.count > 0
            assert found[f"{family}_sum", group(of)] == latency.total_s
            calls = [
                found[f"{family}_bucket", (*group(of), ("le", bound))]
                for bound in (*map(str, BOUNDS_S), "+Inf")
            ]
            assert np.diff(calls, prepend=0).tolist() == list(latency.calls)
        samples = [sample for family in families for sample in family.samples]
        groups = {(sample.name, sample.labels.get("group")) for sample in samples}
        assert ("batchzip_store_seconds_count", "") in groups
        assert ("batchzip_load_seconds_count", "rows") not in groups
        assert ("batchzip_mapping_get_seconds_count", "") not in groups


def test_info_says_what_is_in_use(store: SwapStore) -> None:
    registry = CollectorRegistry()
    registry.register(collector(store))
    labels = {
        "version": batchzip.__version__,
        "algorithm": repr(store.engine.codec),
        "backend": "sequential",
    }
    assert registry.get_sample_value("batchzip_info", labels) == 1


def test_several_stores_go_together_under_their_names(store: SwapStore) -> None:
    with SwapStore(store.engine) as other:
        store.store(0, make_pages(3))
        other.store(0, make_pages(8))
        registry = CollectorRegistry()
        registry.register(collector({"a": store, "b": other}))
        with served(registry) as address:
            found, _ = scrape(address)
            assert found["batchzip_stored_pages", (("group", ""), ("store", "a"))] == 3
            assert found["batchzip_stored_pages", (("group", ""), ("store", "b"))] == 8
            other.close()
            found, _ = scrape(address)
            assert ("batchzip_stored_pages", (("group", ""), ("store", "b"))) not in found
            assert found["batchzip_stored_pages", (("group", ""), ("store", "a"))] == 3


def test_a_closed_store_has_no_figures_and_breaks_no_scrape(store: SwapStore) -> None:
    registry = CollectorRegistry()
    registry.register(collector(store))
    with served(registry) as address:
        assert scrape(address)[0]
        store.close()
        assert scrape(address)[0] == {}
    with pytest.raises(ClosedError):
        store.counters_by_group()


def test_a_forked_child_has_no_figures(store: SwapStore) -> None:
    store.store(0, make_pages(3))
    one = collector(store)

    def look() -> None:
        assert not any(family.samples for family in one.collect())

    in_forked_child(look)
    assert any(family.samples for family in one.collect())


@pytest.mark.parametrize("name", [os.fsdecode(b"tile-\xff.png"), 'a"b\\c\n', "\ud800\udfff"])
def test_names_that_are_no_utf_8_can_be_scraped(store: SwapStore, name: str) -> None:
    store.group(name).store(0, make_pages(3))
    store.group("plain").store(0, make_pages(2))
    registry = CollectorRegistry()
    registry.register(collector({name: store}))
    with served(registry) as address:
        figures, _ = scrape(address)
    pages = {
        dict(labels)["group"]: figure
        for (family, labels), figure in figures.items()
        if family == "batchzip_stored_pages"
    }
    shown = name.encode("utf-8", "backslashreplace").decode()
    assert (pages[shown], pages["plain"]) == (3, 2)
    assert all(dict(labels)["store"] == shown for _, labels in figures)


def test_no_two_names_have_the_same_label(store: SwapStore) -> None:
    names = ["\udcff", "\\udcff", "\\\\udcff", "\\\udcff", "a\\b", "a\\\\b", "\\u0041", "A"]
    for name in names:
        store.group(name)
    labels = [
        sample.labels["group"]
        for family in collector(store).collect()
        for sample in family.samples
        if sample.name == "batchzip_stored_pages"
    ]
    assert len(set(labels)) == len(labels) == 1 + len(names)
    assert {"a\\b", "a\\\\b", "\\u0041", "A", "\\udcff"} < set(labels)


def test_registering_reads_no_store_and_unregistering_works(store: SwapStore) -> None:
    store.close()
    registry = CollectorRegistry(auto_describe=True)
    one = collector(store)
    registry.register(one)
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(collector(store))
    registry.unregister(one)
    registry.register(collector(store))


def test_errors_are_counted_by_their_names() -> None:
    with Engine("lz4", backend="sequential") as engine, SwapStore(engine) as store:
        from batchzip import DecompressBatch  # noqa: PLC0415 - for this test only

        engine.decompress(DecompressBatch([b"x", b"y"]))
        samples = {
            (sample.name, *sample.labels.values()): sample.value
            for family in collector(store).collect()
            for sample in family.samples
        }
        assert samples["batchzip_engine_page_errors_total", "EBADMSG"] == 2


@pytest.mark.slow
def test_without_the_library_the_command_to_install_it_is_given() -> None:
    script = """
import sys
sys.modules["prometheus_client"] = None
import batchzip.metrics
try:
    batchzip.metrics.collector({})
except batchzip.MissingExtra as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == (
        "batchzip.metrics needs prometheus_client, which is not installed: "
        "pip install 'prometheus-client>=0.20'"
    )
    assert issubclass(MissingExtra, ImportError)
