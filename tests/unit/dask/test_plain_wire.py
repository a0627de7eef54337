"""What processes of a cluster tell each other: errors, versions, figures; without a cluster."""

from __future__ import annotations

import asyncio
import re
from types import SimpleNamespace
from typing import Any

import pytest
from distributed.core import Status
from distributed.protocol import dumps, loads, pickle, to_serialize

from batchzip import (
    BackendUnavailable,
    BadArgument,
    BatchzipError,
    PageNotStored,
    __version__,
)
from batchzip.dask import probe as module
from batchzip.dask.page import add_page, page
from batchzip.dask.probe import PROTOCOL, SILENT, probe, question, unavailable, why_unfit
from batchzip.dask.survey import ShardFigures, StoreFigures, Survey
from batchzip.dask.wire import error_of, failed
from batchzip.dask.worker_end import end_with

FIT: Any = {
    "python": "3.12.1",
    "executable": "/usr/bin/python3",
    "version": __version__,
    "protocol": PROTOCOL,
    "error": None,
}


def test_an_error_travels_and_one_that_cannot_is_named() -> None:
    error = error_of(failed(PageNotStored(7)))
    assert isinstance(error, PageNotStored)
    assert "7" in str(error)
    odd = error_of({"error": pickle.dumps("no exception")})
    assert type(odd) is BatchzipError
    assert "no exception" in str(odd)
    broken = error_of({"error": b"\x80no pickle"})
    assert type(broken) is BatchzipError
    assert "cannot be unpickled here" in str(broken)


@pytest.mark.parametrize(
    ("differs", "reason"),
    [
        ({}, None),
        ({"version": None, "error": "ImportError: no"}, "batchzip cannot be imported (ImportError"),
        (
            {"version": "99.0.0"},
            f"it has batchzip 99.0.0, but {'.'.join(__version__.split('.')[:2])}",
        ),
        ({"protocol": None, "error": "no"}, f"its batchzip {__version__} cannot be used (no)"),
        (
            {"protocol": PROTOCOL + 1},
            f"speaks protocol {PROTOCOL + 1}, but {PROTOCOL} is needed",
        ),
        (
            {"protocol": PROTOCOL - 1},
            f"speaks protocol {PROTOCOL - 1}, but {PROTOCOL} is needed",
        ),
    ],
)
def test_a_process_says_why_it_cannot_be_used(differs: Any, reason: str | None) -> None:
    answer: Any = {**FIT, **differs}
    found = why_unfit(answer)
    if reason is None:
        assert found is None
    else:
        assert found is not None
        assert reason in found
        assert found.endswith("; Python 3.12.1, /usr/bin/python3")


def test_processes_that_cannot_be_used_are_named_with_what_would_help() -> None:
    error = unavailable(
        {"tcp://1": "reason", "tcp://2": "other"}, {"tcp://1": "one", "tcp://2": "tcp://2"}
    )
    assert isinstance(error, BackendUnavailable)
    first, *rest = str(error).splitlines()
    assert "cannot work with 2 of the cluster's processes" in first
    assert first.endswith(f"pip install 'batchzip[dask]=={__version__}'")
    assert rest == ["  tcp://1 (named one): reason", "  tcp://2: other"]


def test_workers_are_asked_in_whatever_form_they_answer() -> None:
    class Worker:
        def __init__(self, address: str) -> None:
            self.address = address

        async def run(self, function: bytes, args: bytes) -> Any:
            answer = await pickle.loads(function)(*pickle.loads(args))
            match self.address:
                case "plain":
                    return {"status": "OK", "result": answer}
                case "serialize":
                    return {"status": "OK", "result": to_serialize(answer)}
                case "serialized":
                    message = dumps({"status": "OK", "result": to_serialize(answer)})
                    return loads([bytes(frame) for frame in message], deserialize=False)
                case "older":
                    return {"status": "OK", "result": {**answer, "version": "0.0.1"}}
                case "refuses":
                    return {"status": "error", "exception_text": "not allowed"}
                case "odd":
                    return {"status": "odd"}
                case "broken":
                    raise OSError("the connection broke")
            raise TimeoutError

    names = [
        "plain",
        "serialize",
        "serialized",
        "older",
        "refuses",
        "odd",
        "broken",
        "silent",
        "plain",
    ]
    reasons = asyncio.run(probe(Worker, names, 60.0))
    assert list(reasons) == ["older", "refuses", "odd", "broken", "silent"]
    assert "it has batchzip 0.0.1" in reasons["older"]
    assert reasons["refuses"] == "it cannot be asked (not allowed)"
    assert reasons["odd"] == "it cannot be asked (odd)"
    assert reasons["broken"] == f"{SILENT} (OSError: the connection broke)"
    assert reasons["silent"] == f"{SILENT} in 60 s"


def test_the_number_of_workers_asked_at_once_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", 3)
    at_once = most = 0

    class Worker:
        def __init__(self, _: str) -> None: ...

        async def run(self, **_: object) -> Any:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            await asyncio.sleep(0)
            at_once -= 1
            return {"status": "OK", "result": FIT}

    assert asyncio.run(probe(Worker, map(str, range(10)))) == {}
    assert most == 3


def test_the_question_needs_nothing_of_batchzip_where_it_arrives() -> None:
    asked = question()
    answer = asyncio.run(pickle.loads(asked["function"])(*pickle.loads(asked["args"])))
    assert (answer["version"], answer["protocol"], answer["error"]) == (__version__, PROTOCOL, None)
    assert b"batchzip." not in asked["function"]
    assert why_unfit(answer) is None


SHARD = ShardFigures("tcp://1", "one", "", 11, 100, 200, 300, 4096, 1 << 20, 8192, 3, 2)
STORE = StoreFigures("pages", 4096, 2, 5, 1, 0, (SHARD,))


def shard_with(**figures: Any) -> ShardFigures:
    names = ShardFigures.__slots__
    return ShardFigures(**{**{name: getattr(SHARD, name) for name in names}, **figures})


def test_a_shard_without_figures_has_none() -> None:
    silent = ShardFigures("tcp://1", "one", "no answer")
    figures = {name: getattr(silent, name) for name in ShardFigures.__slots__[3:]}
    assert figures.pop("pool_limit_bytes") is None
    assert set(figures.values()) == {0}


def test_a_rate_is_of_the_same_process_and_counts_per_second() -> None:
    def at(taken_s: float, shard: ShardFigures, store: str = "pages") -> Survey:
        stores = (StoreFigures(store, 4096, 2, 5, 1, 0, (shard,)),)
        return Survey("tcp://0", taken_s, stores)

    later = shard_with(page_stores=260, page_loads=300)
    now = at(12.0, later)
    (store,) = now.stores
    before = at(10.0, SHARD)
    assert now.rate("page_stores", store, later, before) == 30
    assert now.rate("page_loads", store, later, before) == 0
    assert now.rate("page_stores", store, later, None) is None
    for other in (
        at(10.0, shard_with(pid=12)),
        at(10.0, shard_with(worker="tcp://2")),
        at(10.0, shard_with(trouble="silent")),
        at(10.0, SHARD, "another"),
    ):
        assert now.rate("page_stores", store, later, other) is None
    silent = shard_with(trouble="silent")
    assert now.rate("page_stores", store, silent, before) is None


def test_the_page_shows_each_figure_of_a_shard_below_its_heading() -> None:
    text = page(Survey("tcp://0", 1.0, (STORE,)))
    assert "<h2>pages</h2>" in text
    assert "100 pages of 4,096 bytes, kept 2 times" in text
    assert "clients: 1, epoch of its members: 5" in text
    assert "are lost" not in text
    row = text[text.index("<tr><td>") :].partition("</tr>")[0]
    cells = [cell.partition("</td>")[0] for cell in row.split("<td>")[1:]]
    assert cells == [
        "one, tcp://1",
        "11",
        "100",
        "4.0 KiB of 1.0 MiB",
        "8.0 KiB",
        "200",
        "300",
        "3",
        "2",
    ]
    assert text.count("<th>") == len(cells)


def test_the_page_says_what_is_lost_and_who_is_silent() -> None:
    silent = ShardFigures("tcp://1", "tcp://1", "no <answer>")
    free = shard_with(pool_limit_bytes=None, name="")
    store = StoreFigures("<pages>", 4096, 1, 5, 1, 1234, (silent, free))
    text = page(Survey("tcp://0", 1.0, (store,)))
    assert "<h2>&lt;pages&gt;</h2>" in text
    assert "kept once" in text
    assert "<p class='trouble'>Pages of 1,234 stripes are lost.</p>" in text
    assert (
        "<tr><td>tcp://1</td><td></td><td class='trouble' colspan='7'>no &lt;answer&gt;</td>"
        in text
    )
    assert "<td>tcp://1</td><td>11</td><td>100</td><td>4.0 KiB</td>" in text
    assert "no sharded store" not in text
    assert "<a href='batchzip.json'>JSON</a>" in text
    assert text.endswith("</body></html>")
    empty = page(Survey("tcp://0", 1.0, ()))
    assert "This cluster has no sharded store at the moment" in empty
    assert "<table>" not in empty


def test_the_page_has_its_place_below_any_prefix() -> None:
    added: list[Any] = []
    scheduler: Any = SimpleNamespace(
        http_application=SimpleNamespace(add_handlers=lambda *what: added.append(what))
    )
    add_page(scheduler, None)  # type: ignore[arg-type] # it is not asked here
    ((hosts, ((paths, _, _),)),) = added
    assert hosts == ".*$"
    for path in ("/batchzip", "/proxy/batchzip.json", "/batchzip/metrics"):
        assert re.fullmatch(paths, path)
    assert not re.fullmatch(paths, "/batchzip/other")


class Thing:
    """What a worker's end closes."""

    def __init__(self, error: Exception | None = None) -> None:
        self.closes = 0
        self.error = error

    def close(self) -> None:
        self.closes += 1
        if self.error is not None:
            raise self.error


class AsyncThing(Thing):
    """The same, as a coroutine."""

    async def close(self) -> None:  # type: ignore[override] # either is closed
        await asyncio.sleep(0)
        super().close()


def test_an_ending_worker_closes_each_object_once_despite_errors(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker: Any = SimpleNamespace(extensions={"other": object()}, status=Status.running)
    before = worker.extensions
    things = [Thing(OSError("the disk is gone")), AsyncThing(), Thing()]
    gone = Thing()
    assert all(end_with(worker, thing) for thing in (*things, gone))
    assert "batchzip" not in before, "the worker may be iterating over it"
    assert set(worker.extensions) == {"other", "batchzip"}
    end = worker.extensions["batchzip"]
    del gone
    asyncio.run(end.close())
    assert [thing.closes for thing in things] == [1, 1, 1]
    assert "Failed to close" in caplog.text
    assert "the disk is gone" in caplog.text


@pytest.mark.parametrize(
    ("status", "ends"),
    [
        (Status.running, True),
        (Status.paused, True),
        (Status.closing_gracefully, True),
        (Status.closing, False),
        (Status.closed, False),
        (Status.failed, False),
    ],
)
def test_a_worker_that_is_closing_ends_nothing_any_more(status: Status, ends: bool) -> None:
    worker: Any = SimpleNamespace(extensions={}, status=status)
    thing = Thing()
    assert end_with(worker, thing) is ends


def test_addresses_are_a_list() -> None:
    with pytest.raises(BadArgument, match="must be a list of addresses, not one text: 'tcp://1'"):
        module._listed("tcp://1")
    assert module._listed(("tcp://1",)) == ["tcp://1"]
    assert module._listed(None) is None
