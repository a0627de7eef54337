"""`batchzip swap` with engines and sources that stand in: what it asks for, how it ends."""

from __future__ import annotations

import json
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from batchzip.cli import swap
from batchzip.cli.main import main
from batchzip.cli.round_trip import Difference
from batchzip.errors import BackendUnavailable
from batchzip.system.cpus import default_lanes


class Parts:
    """Stands in for whatever a round trip is made of, and keeps what was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[Any] = []
        self.ready = True
        self.without: set[str] = set()
        """Backends that do not suit the codec."""
        self.difference: Difference | None = None
        self.bars: list[Any] = []
        self.steps: list[Any] = []
        self.sides: list[Any] = []
        workload = SimpleNamespace(pid=4711)
        monkeypatch.setattr(swap, "Workload", lambda mib: self.made(("workload", mib), workload))
        monkeypatch.setattr(swap, "FilePages", self.source)
        monkeypatch.setattr(swap, "ProcessMemory", self.source)
        monkeypatch.setattr(swap, "Engine", self.engine)
        monkeypatch.setattr(swap, "SwapStore", self.store)
        monkeypatch.setattr(swap, "RoundTrip", self.round_trip)
        monkeypatch.setattr(swap, "progress_bars", self.progress_bars)
        monkeypatch.setattr(swap, "as_document", self.document)
        monkeypatch.setattr(swap, "print_report", self.report)

    def made(self, what: Any, thing: Any) -> Any:
        self.asked.append(what)
        return nullcontext(thing)

    def source(self, what: Any, **options: Any) -> Any:
        return self.made((what, options), SimpleNamespace(pages=12))

    def engine(self, algorithm: str, **options: Any) -> Any:
        if options["backend"] in self.without:
            raise BackendUnavailable("it runs in Python")
        engine = SimpleNamespace(wait_ready=lambda timeout_s: self.ready and timeout_s > 1)
        return self.made((algorithm, options), engine)

    def store(self, engine: Any, **options: Any) -> Any:
        del engine
        return self.made(options, None)

    def round_trip(self, source: Any, sides: Any, **options: Any) -> Any:
        self.sides = [(side.name, side.lanes) for side in sides]
        self.asked.append(options)
        return SimpleNamespace(
            source=source,
            pages=11,
            difference=self.difference,
            store_all=self.steps.append,
            load_all=self.steps.append,
        )

    def progress_bars(self, unit: str, *, shown: bool) -> Any:
        self.bars.append((unit, shown))
        return nullcontext(lambda what, total: (what, total))

    def document(self, trip: Any, settings: Any, left_out: Any) -> Any:
        del trip
        return {"settings": settings, "left_out": left_out}

    def report(self, document: Any, console: Any, *, classes: bool) -> None:
        console.write_line(f"report of {document['left_out']}, classes {classes}")


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Parts:
    return Parts(monkeypatch)


def engine(backend: str, workers: int | None, **changes: Any) -> dict[str, Any]:
    options = {"backend": backend, "workers": workers, "page_size": 4096, "shuffle": None}
    return {**options, **changes}


def test_options_reach_the_engines_the_stores_and_the_trip(
    parts: Parts, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--file a.bin --algorithm lz4 --level 3 --shuffle f4 --workers 3 --page-size 8192"
    more = "--folio 100 --batch 50 --seed 9 --limit 1M --json"
    assert main(["swap", *options.split(), *more.split()]) == 0
    same = {"page_size": 8192, "shuffle": "f4", "level": 3}
    assert parts.asked == [
        ("lz4", engine("sequential", None, **same)),
        ("a.bin", {"page_size": 8192, "chunk_pages": 500}),
        ("lz4", engine("threads", 3, **same)),
        ("lz4", engine("workers", 3, **same)),
        *[{"max_pool_bytes": 1 << 20, "max_batch": 50}] * 3,
        {"folio": 100, "batch": 50, "seed": 9},
    ]
    assert parts.sides == [("sequential", 0), ("threads", 3), ("workers", 3)]
    assert parts.bars == [("pages", False)]
    assert parts.steps == [("storing", 12), ("loading and comparing", 11)]
    assert json.loads(capsys.readouterr().out)["settings"] == {
        "algorithm": "lz4",
        "level": 3,
        "shuffle": "f4",
        "batch_pages": 50,
        "folio_pages": 100,
        "workers": 3,
        "limit_bytes": 1 << 20,
        "seed": 9,
    }


def test_the_defaults_take_a_workload_and_as_many_lanes_as_suit_the_machine(
    parts: Parts, capsys: pytest.CaptureFixture[str]
) -> None:
    parts.without = {"threads"}
    assert main(["swap", "--workload-mib", "5", "--classes"]) == 0
    name = "workload process 4711 (Python objects, parsed source, JSON text, NumPy arrays)"
    assert parts.asked == [
        ("zstd", engine("sequential", None)),
        ("workload", 5),
        (4711, {"page_size": 4096, "chunk_pages": 1024, "name": name}),
        ("zstd", engine("workers", None)),
        *[{"max_pool_bytes": None, "max_batch": 256}] * 2,
        {"folio": 256, "batch": 256, "seed": 0},
    ]
    assert parts.sides == [("sequential", 0), ("workers", default_lanes())]
    assert parts.bars == [("pages", True)]
    out, err = capsys.readouterr()
    assert out == "report of {'threads': 'it runs in Python'}, classes True\n"
    assert err == ""


@pytest.mark.parametrize(("folio", "pages"), [(1, 1024), (1000, 1000), (1024, 1024), (5000, 5000)])
def test_a_turn_is_whole_folios_of_about_4_mib(parts: Parts, folio: int, pages: int) -> None:
    assert main(["swap", "--pid", "12", "--folio", str(folio)]) == 0
    assert parts.asked[1] == (12, {"page_size": 4096, "chunk_pages": pages, "name": ""})


@pytest.mark.parametrize("name", ["folio", "batch"])
def test_a_folio_and_a_batch_are_at_most_256_mib(
    parts: Parts, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert main(["swap", "--file", "a.bin", f"--{name}", "65536"]) == 0
    parts.asked.clear()
    assert main(["swap", "--file", "a.bin", f"--{name}", "65537"]) == 2
    assert parts.asked == []
    assert capsys.readouterr().err == (
        f"batchzip: a {name} of 65537 pages of 4096 bytes is too large: at most 65536 pages\n"
    )


def test_a_page_that_came_back_different_is_named_after_the_report(
    parts: Parts, capsys: pytest.CaptureFixture[str]
) -> None:
    parts.difference = Difference(3, "workers", "file offset 12288", "byte 1 is 0x00")
    assert main(["swap", "--file", "a.bin"]) == 1
    out, err = capsys.readouterr()
    assert out == "report of {}, classes False\n"
    assert err == (
        "batchzip: first difference: page 3 (file offset 12288), backend workers: byte 1 is 0x00\n"
    )


def test_lanes_that_are_not_ready_are_told(
    parts: Parts, capsys: pytest.CaptureFixture[str]
) -> None:
    parts.ready = False
    assert main(["swap", "--file", "a.bin"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == (
        "batchzip: warning: workers are not ready; the caller works alone meanwhile"
    )
