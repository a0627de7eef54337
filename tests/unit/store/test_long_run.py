"""Figures can be read at any time, and refused values take nothing in the long run."""

from __future__ import annotations

import gc
import io

from prometheus_client import CollectorRegistry, generate_latest
from support.store_pages import SIZE, noise, text

from batchzip import (
    CompressedMapping,
    Engine,
    StoreRejected,
    SwapStore,
)
from batchzip.metrics import collector


def test_values_that_are_rejected_take_nothing_in_the_long_run(engine: Engine) -> None:
    """LMCache 987, 2559: what was allocated for a chunk that was not kept was never given back."""
    with (
        SwapStore(engine, max_pool_bytes=1 << 18) as store,
        CompressedMapping(store) as mapping,
    ):
        for number in range(500):
            try:
                mapping[number % 50] = noise(number % 7, 9000)
            except StoreRejected:
                continue
        assert 0 < len(mapping) < 50
        mapping.check_invariants()
        mapping.clear()
        store.compact()
        assert store.counters.pool_total_size == store.counters.stored_pages == 0
        mapping["key"] = noise(1, 9000)


def test_where_nothing_can_be_evicted_stores_are_rejected_at_once(engine: Engine) -> None:
    """LMCache 2942, ray 62093: allocation spun for ever where nothing could be evicted."""
    with SwapStore(
        engine, max_pool_bytes=16 * SIZE, backing=io.BytesIO(), max_backing_bytes=16 * SIZE
    ) as store:
        rejected = 0
        for number in range(100):
            try:
                store.store(number, noise(number))
            except StoreRejected:
                rejected += 1
        assert 60 < rejected < 100
        assert all(store.load(number) == noise(number) for number in range(100) if number in store)
        store.invalidate(0, 100)
        store.store(0, noise(0))
        store.check_invariants()


def test_figures_are_read_while_garbage_is_collected(engine: Engine) -> None:
    """client_python 322, 363: the collector came while a lock was held, and wanted it, too."""
    with SwapStore(engine) as store, CompressedMapping(store, serializer="pickle") as mapping:
        registry = CollectorRegistry()
        registry.register(collector(store, classes=True))
        scrapes = 0

        def scrape(phase: str, _: object) -> None:
            nonlocal scrapes
            if phase == "start" and gc.isenabled():
                gc.disable()
                scrapes += bool(generate_latest(registry))
                gc.enable()

        before = gc.get_threshold()
        gc.callbacks.append(scrape)
        gc.set_threshold(50)
        try:
            for number in range(30):
                mapping[number % 5] = [{"a": [each]} for each in range(100)]
                store.store(number, [text(number)] * 3)
                assert store.load(number) == text(number)
        finally:
            gc.callbacks.remove(scrape)
            gc.set_threshold(*before)
        assert scrapes


def test_figures_and_pages_are_there_after_the_engine_is_closed() -> None:
    """client_python 84: a collector that raised left a scrape empty."""
    with Engine("lz4", backend="sequential") as engine, SwapStore(engine) as store:
        store.store(0, text(0))
        engine.close()
        found = {sample.name for family in collector(store).collect() for sample in family.samples}
        assert {"batchzip_stored_pages", "batchzip_engine_workers"} < found
        assert store.load(0) == text(0)
        assert store.status()["pages"] == 1
