"""A round trip with stores of known answers and times: what is offered, timed and compared."""

from __future__ import annotations

import os
import resource
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from batchzip.cli import round_trip, side
from batchzip.cli.round_trip import RoundTrip
from batchzip.cli.side import Side, WorkerCpu
from batchzip.errors import CorruptPage, PageNotStored, StoreRejected

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from batchzip import SwapStore

PAGE = 512
PAGES = np.random.default_rng(1).integers(0, 256, (100, PAGE), np.uint8)


class Clock:
    """Stands in for the module `time`: only calls of a store take time."""

    def __init__(self) -> None:
        self.wall_s = 0.0

    def perf_counter(self) -> float:
        return self.wall_s

    def perf_counter_ns(self) -> int:
        return round(self.wall_s * 1e9)

    def process_time(self) -> float:
        return self.wall_s / 4


class Source:
    """The pages, in chunks of 30. Reading them takes an hour."""

    kind, name, page_size, padded_bytes = "file", "source", PAGE, 0

    def __init__(self, clock: Clock) -> None:
        self.pages = len(PAGES)
        self.checked = 0
        self._clock = clock

    def chunks(self) -> Iterator[NDArray[np.uint8]]:
        for at in range(0, len(PAGES), 30):
            self._clock.wall_s += 3600
            yield PAGES[at : at + 30]

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        self._clock.wall_s += 3600
        return PAGES[indices]

    def where(self, index: int) -> str:
        return f"place {index}"

    def check_unchanged(self) -> None:
        self.checked += 1

    def details(self) -> dict[str, Any]:
        return {}


class Store:
    """Keeps pages. A store, a load and a batch take 1, 2 and 4 seconds."""

    def __init__(self, clock: Clock, calls: list[tuple[Any, ...]], name: str) -> None:
        self.kept: dict[int, NDArray[np.uint8]] = {}
        self.refused: dict[int, str] = {}
        """Reasons for which folios are rejected, by their first page."""
        self.broken: dict[int, Exception] = {}
        self.shortened = -1
        """A page that comes back one byte too short."""
        self._clock, self._calls, self._name = clock, calls, name

    def store(self, index: int, pages: NDArray[np.uint8]) -> None:
        self._clock.wall_s += 1
        self._calls.append((self._name, "store", index, len(pages)))
        if reason := self.refused.get(index):
            raise StoreRejected(reason, "the folio is rejected")
        self.kept.update({index + at: page.copy() for at, page in enumerate(pages)})

    def load(self, index: int) -> bytes:
        self._clock.wall_s += 2
        self._calls.append((self._name, "load", index))
        if index in self.broken:
            raise self.broken[index]
        return self.kept[index].tobytes()[: PAGE - (index == self.shortened)]

    def load_many(self, indices: NDArray[np.int64], *, out: NDArray[np.uint8]) -> None:
        self._clock.wall_s += 4
        self._calls.append((self._name, "load_many", *indices.tolist()))
        assert len(out) == len(indices)
        out[:] = 0xEE
        for row, index in enumerate(indices.tolist()):
            if index in self.broken:
                raise self.broken[index]
            out[row] = self.kept[index]


class Trip:
    """A round trip of two sides, with what was called."""

    def __init__(self, clock: Clock, *, folio: int = 8, batch: int = 7, seed: int = 5) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.source = Source(clock)
        engine: Any = SimpleNamespace(page_size=PAGE, worker_pids=())
        self.stores = {name: Store(clock, self.calls, name) for name in ("one", "two")}
        self.sides = [
            Side(name, engine, cast("SwapStore", store), 0) for name, store in self.stores.items()
        ]
        self.trip = RoundTrip(self.source, self.sides, folio=folio, batch=batch, seed=seed)
        self.advanced: list[int] = []

    def run(self) -> RoundTrip:
        self.trip.store_all(self.advanced.append)
        self.trip.load_all(self.advanced.append)
        return self.trip

    def called(self, name: str, what: str) -> list[tuple[Any, ...]]:
        return [call[2:] for call in self.calls if call[:2] == (name, what)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(side, "time", clock)
    return clock


@pytest.fixture
def few_singles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(round_trip, "SINGLE_LOADS", 20)
    monkeypatch.setattr(round_trip, "_SINGLES_PER_TURN", 8)
    monkeypatch.setattr(round_trip, "ROUND_BYTES", 30 * PAGE)


FOLIOS = [
    *[(at, 8 if at < 24 else 6) for at in (0, 8, 16, 24)],
    *[(at, 8 if at < 54 else 6) for at in (30, 38, 46, 54)],
    *[(at, 8 if at < 84 else 6) for at in (60, 68, 76, 84)],
    *[(at, 8 if at < 98 else 2) for at in (90, 98)],
]


@pytest.mark.usefixtures("few_singles")
def test_every_page_is_stored_in_folios_and_loaded_singly_and_in_batches(clock: Clock) -> None:
    trip = Trip(clock)
    assert trip.run().difference is None
    assert trip.source.checked == 0
    singles = trip.called("one", "load")
    batches = trip.called("one", "load_many")
    order = [index for batch in batches for index in batch]
    assert trip.called("one", "store") == FOLIOS
    assert sorted(order) == list(range(100))
    assert order != sorted(order)
    assert [index for (index,) in singles] == order[:20]
    assert [len(batch) for batch in batches] == [7] * 12 + [7, 7, 2]
    for what in ("store", "load", "load_many"):
        assert trip.called("two", what) == trip.called("one", what)
    assert trip.advanced == [30, 30, 30, 10, 28, 28, 28, 16]
    again = Trip(clock)
    again.run()
    other = Trip(clock, seed=6)
    other.run()
    assert again.calls == trip.calls
    assert other.called("one", "load") != singles


@pytest.mark.usefixtures("few_singles")
def test_only_calls_of_the_store_are_timed(clock: Clock) -> None:
    trip = Trip(clock)
    trip.run()
    for one in trip.sides:
        assert one.store_s == len(FOLIOS)
        assert one.single_load_ns == [2_000_000_000] * 20
        assert one.load_s == 4 * 15
        assert one.own_cpu_s == (len(FOLIOS) + 2 * 20 + 4 * 15) / 4
        assert one.offered_pages == one.loaded_pages == 100


@pytest.mark.usefixtures("few_singles")
def test_the_sides_take_turns_in_changing_order(clock: Clock) -> None:
    trip = Trip(clock)
    trip.run()
    turns = [call[0] for call in trip.calls]
    first = [name for name, before in zip(turns, ["", *turns], strict=False) if name != before]
    # The side that ended a turn begins the next one: no change between them.
    assert set(first) == {"one", "two"}
    assert len(first) == 1 + 4 + 3 + 4


def test_a_turn_has_at_least_one_batch(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(round_trip, "ROUND_BYTES", PAGE)
    trip = Trip(clock, batch=64)
    assert trip.run().difference is None
    assert [len(batch) for batch in trip.called("two", "load_many")] == [64, 36]


@pytest.mark.usefixtures("few_singles")
def test_rejected_folios_are_counted_by_reason_and_never_loaded(clock: Clock) -> None:
    trip = Trip(clock)
    trip.stores["one"].refused.update({8: "pool limit", 24: "pool limit", 98: "no memory"})
    assert trip.run().difference is None
    one, two = trip.sides
    assert one.rejected_folios == {"pool limit": 2, "no memory": 1}
    assert (one.rejected_pages, one.offered_pages, one.loaded_pages) == (8 + 6 + 2, 100, 84)
    gone = {*range(8, 16), *range(24, 30), 98, 99}
    loaded = {index for batch in trip.called("one", "load_many") for index in batch}
    assert loaded == {*range(100)} - gone
    assert not gone & {index for (index,) in trip.called("one", "load")}
    assert (two.rejected_pages, two.loaded_pages) == (0, 100)
    assert one.differing.sum() == two.differing.sum() == 0


@pytest.mark.usefixtures("few_singles")
def test_the_first_page_that_differs_is_named_with_its_first_byte(clock: Clock) -> None:
    trip = Trip(clock)
    trip.trip.store_all(lambda _: None)
    for index in (90, 17, 55):
        trip.stores["two"].kept[index][[300, 511]] ^= 0x10
    trip.stores["one"].kept[60][0] ^= 1
    trip.trip.load_all(lambda _: None)
    difference = trip.trip.difference
    assert difference is not None
    was = int(PAGES[17, 300])
    assert str(difference) == (
        f"page 17 (place 17), backend two: byte 300 is {was ^ 0x10:#04x} instead of {was:#04x}"
    )
    assert np.flatnonzero(trip.sides[1].differing).tolist() == [17, 55, 90]
    assert np.flatnonzero(trip.sides[0].differing).tolist() == [60]
    assert trip.source.checked == 1


@pytest.mark.usefixtures("few_singles")
@pytest.mark.parametrize("error", [CorruptPage(42), PageNotStored(42)])
def test_a_page_that_cannot_be_loaded_differs_and_hides_no_other(
    clock: Clock, error: Exception
) -> None:
    trip = Trip(clock)
    trip.trip.store_all(lambda _: None)
    trip.stores["one"].broken[42] = error
    trip.trip.load_all(lambda _: None)
    one, two = trip.sides
    assert np.flatnonzero(one.differing).tolist() == [42]
    assert not two.differing.any()
    assert str(trip.trip.difference) == f"page 42 (place 42), backend one: {error}"
    assert one.loaded_pages == 100


@pytest.mark.usefixtures("few_singles")
def test_a_page_of_another_length_differs(clock: Clock) -> None:
    trip = Trip(clock)
    trip.trip.store_all(lambda _: None)
    first = np.random.default_rng(5).permutation(100)[0]
    trip.stores["two"].shortened = first
    trip.trip.load_all(lambda _: None)
    assert np.flatnonzero(trip.sides[1].differing).tolist() == [first]
    assert str(trip.trip.difference).endswith("511 bytes came back instead of 512")


# The processor time of workers


def test_the_processor_time_of_workers_counts_from_the_beginning_and_beyond_their_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times: dict[int, float | None] = {1: 5.0, 2: 7.0, 9: None}
    monkeypatch.setattr(side, "_cpu_s", lambda pid: times[pid])
    workers = WorkerCpu([1, 2, 9])
    assert workers.spent_s([1, 2]) == 0
    times.update({1: 6.5, 2: 9.0})
    assert workers.spent_s([1, 2]) == 3.5
    times.update({1: None, 2: 10.0, 3: 0.25})
    assert workers.spent_s([1, 2, 3]) == 4.75, "1 has ended, and 3 has taken its place"
    assert workers.spent_s([]) == 4.75


def test_the_processor_time_is_that_of_user_and_system() -> None:
    until = time.process_time() + 0.05
    while time.process_time() < until:
        os.stat("/")  # noqa: PTH116 - time of the system, too
    workers = WorkerCpu([])
    before = resource.getrusage(resource.RUSAGE_SELF)
    spent = workers.spent_s([os.getpid()])
    assert spent == pytest.approx(before.ru_utime + before.ru_stime, abs=0.05)
    assert WorkerCpu([os.getpid()]).spent_s([]) == 0
