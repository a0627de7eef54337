"""Sharded stores in `batchzip top --dask`, on the page of Dask's dashboard and in Prometheus."""

from __future__ import annotations

import json
import os
import re
import signal
import urllib.request
from contextlib import contextmanager
from dataclasses import asdict, replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from distributed import Client
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from support.cluster.commands import scheduler_command, worker_command
from support.cluster.process import offload_thread
from support.command import Screen, assert_refused, cli

from batchzip import ClusterLost, Engine, SwapStore
from batchzip.cli.cluster import Cluster, cluster_look
from batchzip.cli.look import print_look
from batchzip.dask import ShardedStore
from batchzip.dask.page import page
from batchzip.dask.survey import ShardFigures, StoreFigures, Survey
from batchzip.metrics import collector
from batchzip.terminal.console import make_console
from batchzip.testing import LeakCheck
from batchzip.testing.plain import make_pages

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client.core import Metric

pytestmark = pytest.mark.slow

STRIPE = 512
PAGES = 16 * STRIPE

WELL = ShardFigures(
    worker="tcp://10.0.0.2:41000",
    name="<one>",
    trouble="",
    pid=4711,
    pages=51_200,
    page_stores=100_000,
    page_loads=1_000_000,
    pool_bytes=80 << 20,
    pool_limit_bytes=100 << 20,
    file_bytes=120 << 30,
)
GONE = ShardFigures("tcp://10.0.0.3:41000", "", "lost (killed & buried): pages of 7 stripes")
STORE = StoreFigures("4f3a", 4096, 2, 3, 1, 7, (WELL, GONE))
FIRST = Survey("tcp://10.0.0.1:8786", 10.0, (STORE,))


def shown(now: Survey, before: Survey | None) -> str:
    console = make_console()
    with console.capture() as capture:
        print_look(cluster_look(now, before), console, most=None)
    return capture.get()


class Texts(HTMLParser):
    """What somebody reads on a page, cell by cell; and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        del attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_screen_fits_a_terminal_and_says_how_fast_it_goes(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    busy = replace(WELL, page_stores=100_300, page_loads=1_006_000, refusals=2, moving=5)
    second = replace(FIRST, taken_s=12.0, stores=(replace(STORE, shards=(busy, GONE)),))
    text = shown(second, FIRST)
    assert max(map(len, text.splitlines())) <= width
    assert "1 sharded store" in text
    figures = ["51,200", "80.0 MiB", "80%", "120.0 GiB", "150", "3,000", "2", "5"]
    if width == 60:
        del figures[3], figures[4]
        assert "left out for lack of room: on disk, loaded/s" in text
    assert re.search(" +".join(["<one>", *map(re.escape, figures)]) + "$", text, re.MULTILINE)
    assert "pages of 7 stripes are lost" in text
    assert "tcp://10.0.0.3:41000: lost (killed & buried)" in text


def test_rates_need_the_same_process_before() -> None:
    first = shown(FIRST, None)
    assert re.search(r"<one> .*120\.0 GiB$", first, re.MULTILINE)
    assert "stored/s" not in first
    other = replace(FIRST, taken_s=9.0, stores=(replace(STORE, shards=(replace(WELL, pid=1),)),))
    assert "stored/s" not in shown(FIRST, other)
    assert "no sharded store" in shown(replace(FIRST, stores=()), FIRST)


def test_shards_of_several_stores_are_told_apart() -> None:
    two = replace(FIRST, stores=(STORE, replace(STORE, store="77aa", shards=(WELL,))))
    text = shown(two, None)
    assert re.search(r"^<one> +4f3a +51,200 ", text, re.MULTILINE)
    assert re.search(r"^<one> +77aa +51,200 ", text, re.MULTILINE)
    assert "2 sharded stores" in text


def test_a_survey_travels_as_plain_values() -> None:
    assert Survey.of(json.loads(json.dumps(asdict(FIRST)))) == FIRST


def test_the_page_shows_names_as_they_are() -> None:
    texts = Texts(page(FIRST)).texts
    assert "<one>, tcp://10.0.0.2:41000" in texts
    assert "80.0 MiB of 100.0 MiB" in texts
    assert "lost (killed & buried): pages of 7 stripes" in texts
    assert "Pages of 7 stripes are lost." in texts
    assert (
        "This cluster has no sharded store at the moment."
        in Texts(page(replace(FIRST, stores=()))).texts
    )


def test_top_names_a_scheduler_that_is_none(capfd: pytest.CaptureFixture[str]) -> None:
    for address, words in (
        ("nonsense", "missing port"),
        ("tls://127.0.0.1:9", "ssl_context"),
    ):
        assert_refused(capfd, ["top", "--dask", address], "no Dask scheduler at", address, words)
    assert_refused(capfd, ["top", "--dask", "a:1", "4711"], "not allowed with argument")


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """Check for leaks, sockets aside: a client opens and closes them as it needs them."""
    with LeakCheck(ignore="socket:"):
        yield


@pytest.fixture(scope="module")
def offloading() -> Iterator[None]:
    with offload_thread():
        yield


@contextmanager
def a_cluster() -> Iterator[tuple[str, Client]]:
    with (
        scheduler_command() as address,
        worker_command(address, "--name", "one", "--no-nanny"),
        worker_command(address, "--name", "two", "--no-nanny"),
        Client(address, set_as_default=False) as client,
    ):
        yield address, client


def fetched(client: Client, path: str) -> str:
    port = client.scheduler_info()["services"]["dashboard"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
        assert answer.status == 200
        text: str = answer.read().decode()
        return text


def figures(families: Iterable[Metric]) -> dict[tuple[str, ...], float]:
    """Return the samples by name and labels that begin with `shard`."""
    return {
        (sample.name.removeprefix("batchzip_"), *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
        if sample.name.startswith("batchzip_shard")
    }


@pytest.fixture(scope="module")
def cluster(offloading: None) -> Iterator[tuple[str, Client]]:
    del offloading
    with a_cluster() as parts:
        yield parts


@pytest.mark.slow
def test_shards_are_seen_with_what_they_have_and_do(cluster: tuple[str, Client]) -> None:
    address, client = cluster
    with ShardedStore(client) as store, Cluster(address) as scheduler:
        store.store(0, make_pages(PAGES))
        before = scheduler.survey()
        store.load_many(np.arange(PAGES))
        now = scheduler.survey()
        one, two = sorted(now.stores[0].shards, key=lambda shard: shard.name)
        assert (one.name, two.name) == ("one", "two")
        assert one.pages + two.pages == PAGES
        assert one.page_stores == one.page_loads == one.pages
        assert {one.pid, two.pid} == {shard.pid for shard in store.shards}
        rate = now.rate("page_loads", now.stores[0], one, before)
        assert rate == pytest.approx(one.pages / (now.taken_s - before.taken_s))

        for where in (address, store.address):
            result = cli("top", "--once", "--dask", where, env={**os.environ, "COLUMNS": "80"})
            assert result.returncode == 0, result.stderr
            assert f"{PAGES:,} pages of 4,096 bytes, kept once; clients: 1" in result.stdout
            assert re.search(rf"one +{one.pages:,} ", result.stdout)

        texts = Texts(fetched(client, "/batchzip")).texts
        assert f"one, {one.worker}" in texts
        assert f"{one.pages:,}" in texts
        assert Survey.of(json.loads(fetched(client, "/batchzip.json"))).stores == now.stores

        registry = CollectorRegistry()
        registry.register(collector(store))
        seen = figures(registry.collect())
        name = now.stores[0].store
        assert figures(text_string_to_metric_families(fetched(client, "/batchzip/metrics"))) == {
            (family, name, *labels): value for (family, *labels), value in seen.items()
        }
        assert seen["sharded_clients",] == 1
        assert seen["sharded_lost_stripes",] == 0
        for shard in one, two:
            assert seen["shard_up", shard.worker] == 1
            assert seen["shard_pages", shard.worker] == shard.pages
            assert seen["shard_page_stores_total", shard.worker] == shard.pages
            assert seen["shard_page_loads_total", shard.worker] == shard.pages
            assert seen["shard_pool_bytes", shard.worker] == shard.pool_bytes > 0
            assert seen["shard_pool_limit_bytes", shard.worker] == shard.pool_limit_bytes
    assert figures(registry.collect()) == {}
    assert "no sharded store" in cli("top", "--dask", address).stdout


@pytest.mark.slow
def test_pages_of_a_dashboard_with_bokeh_link_to_it(cluster: tuple[str, Client]) -> None:
    pytest.importorskip("bokeh")
    _, client = cluster
    with ShardedStore(client):
        assert '<a href="batchzip">' in fetched(client, "/status")
        assert "<h1>Sharded stores</h1>" in fetched(client, "/batchzip")


@pytest.mark.slow
def test_top_shows_what_happens_until_it_is_ended(cluster: tuple[str, Client]) -> None:
    address, client = cluster
    with ShardedStore(client) as store:
        for number, code in ((None, 0), (signal.SIGINT, 130), (signal.SIGTERM, 143)):
            screen = Screen("--dask", store.address)
            try:
                screen.read_until(b"1 sharded store")
                store.store(0, make_pages(300))
                screen.read_until(b"300 pages of 4,096 bytes")
                store.invalidate(0, 300)
                screen.read_until(b"0 pages of 4,096 bytes")
                if number is None:
                    os.write(screen.master, b"q")
                else:
                    screen.process.send_signal(number)
                screen.end(code)
            finally:
                screen.close()
    assert "no sharded store" in cli("top", "--dask", address).stdout


@pytest.mark.slow
def test_a_worker_that_hangs_or_is_gone_is_seen(cluster: tuple[str, Client]) -> None:
    address, client = cluster
    with ShardedStore(client) as store, Cluster(address) as scheduler:
        store.store(0, make_pages(PAGES))
        gone = scheduler.survey().stores[0].shards[0]
        os.kill(gone.pid, signal.SIGSTOP)
        try:
            troubles = {one.worker: one.trouble for one in scheduler.survey().stores[0].shards}
            assert troubles.pop(gone.worker) == "no answer in 5 s"
            assert set(troubles.values()) == {""}
        finally:
            os.kill(gone.pid, signal.SIGKILL)
        with pytest.raises(ClusterLost):
            store.load_many(np.arange(PAGES))
        stripes = gone.pages // STRIPE
        registry = CollectorRegistry()
        registry.register(collector(store))
        seen = figures(registry.collect())
        assert seen["shard_up", gone.worker] == 0
        assert ("shard_pages", gone.worker) not in seen
        assert seen["sharded_lost_stripes",] == stripes
        assert f"Pages of {stripes} stripes are lost." in Texts(fetched(client, "/batchzip")).texts
        result = cli("top", "--once", "--dask", store.address)
        assert f"pages of {stripes} stripes are lost" in result.stdout
        store.recover()
        assert figures(registry.collect())["sharded_lost_stripes",] == 0


@pytest.mark.slow
@pytest.mark.usefixtures("offloading")
def test_prometheus_has_no_figures_of_a_cluster_that_is_gone() -> None:
    registry = CollectorRegistry()
    with Engine("lz4") as engine, SwapStore(engine) as near:
        with a_cluster() as (_, client):
            far = ShardedStore(client)
            registry.register(collector({"near": near, "far": far}))
            assert {labels[1] for labels in figures(registry.collect())} == {"far"}
        assert figures(registry.collect()) == {}
        far.close()
        sample = registry.get_sample_value(
            "batchzip_page_stores_total", {"store": "near", "group": ""}
        )
        assert sample == 0
