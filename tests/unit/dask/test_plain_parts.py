"""Raw files, the preload and surveys: each by itself, without a cluster."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from dataclasses import asdict
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import dask.config
import distributed
import numpy as np
import pytest
from tornado.httputil import HTTPServerRequest, RequestStartLine
from tornado.web import Application

from batchzip import (
    BadArgument,
    ClosedError,
    ClusterLost,
    MissingExtra,
    StoreRejected,
)
from batchzip.dask import WorkerData, raw_files, survey
from batchzip.dask.connect import OwnClient, aconnect, connect
from batchzip.dask.page import _Page
from batchzip.dask.preload import dask_setup
from batchzip.dask.raw_files import RawFiles
from batchzip.dask.stripe_map import LostStripe, ShardLease, StripeMap
from batchzip.dask.wire import SHARD, dump
from batchzip.store import Counters

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = 4096


# Raw files.


def buffers(*sizes: int) -> list[memoryview]:
    return [memoryview(os.urandom(size)) for size in sizes]


def test_buffers_come_back_as_they_were_written(tmp_path: Path) -> None:
    with RawFiles(str(tmp_path)) as files:
        groups = [buffers(10, 0, 5000), buffers(), buffers(BLOCK), buffers(*[3] * 1500)]
        places = [files.write(group) for group in groups]
        assert [place.size for place in places] == [2 * BLOCK, BLOCK, BLOCK, 2 * BLOCK]
        assert len({place.offset for place in places}) == 4
        assert files.held_bytes == 6 * BLOCK
        for place, group in zip(places, groups, strict=True):
            assert files.read(place) == group
        assert not list(tmp_path.iterdir()), "the files have no names"
        for place in places[:2]:
            for _ in range(2):
                files.free(place)
        assert files.held_bytes == 3 * BLOCK
        assert files.read(places[2]) == groups[2]
    assert files.held_bytes == 0
    for use in (lambda: files.read(places[2]), lambda: files.write(groups[0])):
        with pytest.raises(ClosedError):
            use()
    files.free(places[2])
    files.close()
    assert files.held_bytes == 0


def test_files_take_as_many_bytes_as_they_may(tmp_path: Path) -> None:
    with RawFiles(str(tmp_path)) as files:
        kept = files.write(buffers(2 * BLOCK), 3 * BLOCK)
        files.write(buffers(BLOCK), 3 * BLOCK)
        with pytest.raises(StoreRejected, match=f"{BLOCK} bytes: {3 * BLOCK} of {3 * BLOCK} bytes"):
            files.write(buffers(1), 3 * BLOCK)
        assert files.held_bytes == 3 * BLOCK
        files.free(kept)
        files.write(buffers(2 * BLOCK), 3 * BLOCK)


def test_a_segment_that_is_full_and_empty_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw_files, "_SEGMENT", 2 * BLOCK)
    with RawFiles(str(tmp_path)) as files:
        groups = [buffers(BLOCK) for _ in range(5)]
        places = [files.write(group) for group in groups]
        segments = list({id(place.segment): place.segment for place in places}.values())
        assert [place.offset for place in places] == [0, BLOCK, 0, BLOCK, 0]
        assert len(segments) == 3
        files.free(places[0])
        assert files.read(places[1]) == groups[1], "the other one is still there"
        files.free(places[1])
        files.free(places[4])
        with pytest.raises(ClosedError):
            segments[0].calls.enter()
        for segment in segments[1:]:  # the last one takes further buffers
            segment.calls.enter()
        assert files.write(groups[0]).segment is segments[2]
        assert files.read(places[3]) == groups[3]


def test_damaged_or_truncated_buffers_read_as_none(tmp_path: Path) -> None:
    with RawFiles(str(tmp_path)) as files:
        first, second = files.write(buffers(BLOCK)), files.write(buffers(BLOCK))
        with first.segment.calls.enter() as storage:
            os.pwrite(storage.descriptor or 0, b"?", first.offset + 7)
            os.ftruncate(storage.descriptor or 0, second.offset + 100)
        assert files.read(first) is None
        assert files.read(second) is None


def test_a_failed_write_takes_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError("the disk is full")

    with RawFiles(str(tmp_path)) as files, monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", full)
        with pytest.raises(OSError, match="the disk is full"):
            files.write(buffers(BLOCK))
        assert files.held_bytes == 0


# The preload and the client.


def a_worker(folder: Path) -> Any:
    return SimpleNamespace(
        data={},
        local_directory=str(folder),
        memory_manager=SimpleNamespace(data=None),
        state=SimpleNamespace(data=None),
    )


def test_a_preload_takes_its_settings_under_dasks_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {
        "live": 0.25,
        "max-disk-bytes": 12345,
        "engine": {"algorithm": "zstd", "page-size": 4096},
    }
    worker = a_worker(tmp_path)
    with dask.config.set({"batchzip.worker-data": settings}), caplog.at_level(logging.INFO):
        dask_setup(worker)
    data = worker.state.data
    assert isinstance(data, WorkerData)
    assert worker.memory_manager.data is data
    assert (data._limits.live, data._limits.disk) == (0.25, 12345)
    assert data._values._engine["algorithm"] == "zstd"
    assert data._values._engine["page_size"] == 4096
    assert "WorkerData compresses values" in caplog.text
    worker.data = data
    dask_setup(worker)
    assert worker.state.data is data
    data.close()


@pytest.mark.parametrize(
    ("settings", "values", "why"),
    [
        ([1], {}, r"batchzip.worker-data must map names to values, not be [1]"),
        ({"live": 7}, {}, "live must be"),
        (None, {"key": 1}, "the worker already has values"),
    ],
)
def test_a_preload_that_cannot_work_says_why_and_the_worker_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, settings: Any, values: Any, why: str
) -> None:
    worker = a_worker(tmp_path)
    worker.data = values
    with dask.config.set({"batchzip.worker-data": settings}):
        dask_setup(worker)
    assert worker.state.data is None
    assert "this worker spills with Dask's own buffer" in caplog.text
    assert why in caplog.text


@pytest.mark.slow
def test_a_client_that_cannot_connect_says_so_and_leaves_no_thread() -> None:
    before = threading.active_count()
    match = "^no scheduler at tcp://127.0.0.1:9: "
    with pytest.raises(ClusterLost, match=match):
        connect("tcp://127.0.0.1:9", 0.05)
    with pytest.raises(ClusterLost, match=match):
        asyncio.run(aconnect("tcp://127.0.0.1:9", 0.05))
    assert threading.active_count() == before


def test_a_client_of_ones_own_is_nobodys_default(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(
        distributed.Client, "__init__", lambda _, *what, **options: given.append((what, options))
    )
    monkeypatch.setattr(distributed.Client, "__del__", lambda _: None)
    assert isinstance(connect("tcp://1", 7.0), OwnClient)
    assert given == [(("tcp://1",), {"timeout": 7.0, "set_as_default": False})]
    monkeypatch.setattr(distributed.Client, "__await__", lambda _: iter(()))
    assert isinstance(asyncio.run(aconnect("tcp://1", 7.0)), OwnClient)
    options = {"timeout": 7.0, "asynchronous": True, "set_as_default": False}
    assert given[1] == (("tcp://1",), options)


# Surveys.


def counters(**some: int) -> Counters:
    return Counters(**{**dict.fromkeys(Counters.__dataclass_fields__, 0), **some})


def a_scheduler(answers: dict[str, Any]) -> Any:
    def rpc(address: str) -> Any:
        async def ask(**what: Any) -> Any:
            assert what == {"method": "status", "shard": f"shard of {address}", "epoch": None}
            if isinstance(answers[address], Exception):
                raise answers[address]
            return answers[address]

        return SimpleNamespace(**{SHARD: ask})

    return SimpleNamespace(
        address="tcp://0",
        workers={
            address: SimpleNamespace(name=address[-1])
            for address in answers
            if address != "tcp://5"
        },
        rpc=rpc,
    )


def test_a_survey_has_each_shards_figures_or_says_why_not() -> None:
    figures = counters(
        pool_total_size=1000,
        backing_file_size=2000,
        pool_limit_hit=1,
        reject_alloc_fail=2,
        reject_compress_poor=4,
        reject_compress_fail=8,
        reject_reclaim_fail=16,
        stored_pages=99,
    )
    whole = {
        "status": "ok".upper(),  # as from the network: not the same object
        "pid": 7,
        "pages": 1,
        "page_stores": 2,
        "page_loads": 3,
        "max_pool_bytes": 4,
        "moving": 5,
        "counters": dump(figures),
    }
    answers = {
        "tcp://1": whole,
        "tcp://2": TimeoutError(),
        "tcp://3": OSError("the connection broke"),
        "tcp://4": None,
        "tcp://5": {"status": "gone"},
    }
    store = StripeMap("pages", {"replicas": 2}, None, 4096, 3, clients={"one": "1", "two": "2"})
    for address in answers:
        where = store.leaving if address == "tcp://4" else store.shards
        where[f"shard of {address}"] = ShardLease(address, 0.0)
    store.lost = {n: LostStripe("tcp://9", "it died", set()) for n in range(3)}
    before = time.monotonic()
    found = asyncio.run(survey.survey(a_scheduler(answers), {"pages": store}))
    assert before <= found.taken_s <= time.monotonic()
    assert found.scheduler == "tcp://0"
    (one,) = found.stores
    assert (one.store, one.page_size, one.replicas, one.epoch) == ("pages", 4096, 2, 3)
    assert (one.clients, one.lost_stripes) == (2, 3)
    shards = {shard.worker: shard for shard in one.shards}
    assert shards["tcp://1"] == survey.ShardFigures(
        "tcp://1", "1", "", 7, 1, 2, 3, 1000, 4, 2000, 31, 5
    )
    assert {address: (shard.name, shard.trouble) for address, shard in shards.items()} == {
        "tcp://1": ("1", ""),
        "tcp://2": ("2", "no answer in 5 s"),
        "tcp://3": ("3", "no answer (OSError: the connection broke)"),
        "tcp://4": ("4", "the worker no longer has the shard"),
        "tcp://5": ("", "the worker no longer has the shard"),
        "tcp://9": ("", "lost (it died): pages of 3 stripes"),
    }
    assert survey.Survey.of(asdict(found)) == found


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (None, "no longer exists"),
        (TimeoutError(), "has not answered in 10 s"),
        (OSError("it broke"), "the scheduler is gone: it broke"),
    ],
)
def test_a_store_that_a_scheduler_does_not_know_is_lost(answer: Any, match: str) -> None:
    async def directory(**_: Any) -> Any:
        if answer is not None:
            raise answer

    scheduler = SimpleNamespace(batchzip_directory=directory)
    with pytest.raises(ClusterLost, match=match):
        asyncio.run(survey.ask_store(scheduler, "pages"))


def test_the_pages_of_the_dashboard_are_html_json_and_metrics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def surveyed() -> survey.Survey:
        return survey.Survey("tcp://0", 1.0, ())

    async def get(what: str) -> tuple[str, str, int]:
        connection: Any = SimpleNamespace(set_close_callback=lambda _: None, context=None)
        request = HTTPServerRequest(
            start_line=RequestStartLine("GET", "/batchzip", "HTTP/1.0"), connection=connection
        )
        handler = _Page(Application(), request, survey=surveyed)
        await handler.get(what)
        text = b"".join(handler._write_buffer).decode()
        return text, handler._headers["Content-Type"], handler.get_status()

    html, kind, status = asyncio.run(get(""))
    assert html.startswith("<!DOCTYPE html>")
    assert (kind.partition(";")[0], status) == ("text/html", 200)
    text, kind, status = asyncio.run(get(".json"))
    assert text == '{"scheduler": "tcp://0", "taken_s": 1.0, "stores": []}'
    assert (kind.partition(";")[0], status) == ("application/json", 200)
    text, kind, status = asyncio.run(get("/metrics"))
    assert (kind, status) == ("text/plain; version=0.0.4; charset=utf-8", 200)
    assert "<" not in text

    def missing(_: object) -> str:
        raise MissingExtra("metrics", "prometheus_client", "metrics")

    monkeypatch.setattr("batchzip.dask.page.exposition", missing)
    text, _, status = asyncio.run(get("/metrics"))
    assert status == 501
    assert text.startswith("# metrics")
    assert "prometheus_client" in text


def test_arguments_of_worker_data_are_checked(tmp_path: Path) -> None:
    with pytest.raises(BadArgument, match="must be a directory, not"):
        WorkerData(str(tmp_path / "none"))
    with pytest.raises(BadArgument, match="must be a directory, not"):
        WorkerData(7)  # type: ignore[arg-type] # that is the question
    data = WorkerData(str(tmp_path))
    data["key"] = np.zeros(10)
    live = data.fast
    data.close()
    assert live.closed
    assert (len(data), len(live), data.evict()) == (0, 0, -1)
    with pytest.raises(ClosedError):
        data["key"] = 1
