"""store.check() looks at every stored byte and names what is damaged; nothing else suffers."""

import errno
import threading
from collections.abc import Iterator

import pytest
from support.entries import flip, in_file, kind
from support.faulty_file import FaultyFile
from support.store_pages import ZEROS, noise, text, word

from batchzip import ClosedError, CorruptPage, Engine, PageError, StoreReport, SwapStore
from batchzip.core.table import Kind
from batchzip.store.group import Group


@pytest.fixture
def file() -> FaultyFile:
    return FaultyFile()


@pytest.fixture
def store(file: FaultyFile) -> Iterator[SwapStore]:
    with (
        Engine("lz4", backend="sequential") as engine,
        SwapStore(engine, backing=file, shrinker_enabled=False) as store,
    ):
        yield store


def damage_in_file(file: FaultyFile, group: Group, index: int) -> None:
    file.content[in_file(group, index)[0]] ^= 4


def test_a_sound_store_is_sound(store: SwapStore) -> None:
    assert store.check() == StoreReport(0, 0, (), ())
    store.store(0, [text(0), noise(1), ZEROS, word(3)])
    store.group("other").store(1 << 40, [text(5), text(6)])
    store.writeback([1])
    report = store.check()
    assert report.ok
    assert report.pages == 6
    lengths = store.compressed_bytes + store.counters.backing_file_size
    assert report.bytes == lengths


def test_damage_is_named_by_group_and_index_wherever_it_is(
    store: SwapStore, file: FaultyFile
) -> None:
    other = store.group("other")
    for group in (store, other):
        group.store(0, [text(number) for number in range(10)])
        group.writeback(range(5))
    flip(store, 7)
    flip(other, 9)
    damage_in_file(file, other, 2)
    report = store.check()
    assert not report.ok
    assert report.damaged == (("", 7), ("other", 2), ("other", 9))
    assert report.unreadable == ()
    assert report.pages == 20
    for group, index in ((store, 7), (other, 2), (other, 9)):
        with pytest.raises(CorruptPage):
            group.load(index)
    assert [store.load(index) for index in range(7)] == [text(number) for number in range(7)]
    store.check_invariants()


def test_check_counts_nothing_and_is_no_use_of_a_page(store: SwapStore) -> None:
    for index in (3, 2, 1, 0):
        store.store(index, text(index))
    flip(store, 1)
    before = store.counters
    store.check()
    assert store.counters == before
    store.writeback(1)
    assert kind(store, 3) == Kind.BACKED


@pytest.mark.parametrize("times", [1, 3, float("inf")])
def test_check_reports_pages_the_file_cannot_read_and_hides_no_others(
    store: SwapStore, file: FaultyFile, times: float
) -> None:
    store.store(0, [text(number) for number in range(8)])
    store.writeback(range(4))
    flip(store, 6)
    file.faults = {"pread": (errno.EIO, times)}
    report = store.check()
    assert report.damaged == (("", 6),)
    # The first failure is of all four together, those after it of one each.
    lost = 4 if times == float("inf") else int(times) - 1
    assert report.unreadable == tuple(("", index) for index in range(lost))
    assert report.ok is False
    assert report.pages == 8
    file.faults = {}
    assert store.check().unreadable == ()
    assert store.load(0) == text(0)


def test_a_page_that_cannot_be_read_is_an_error_of_its_own(
    store: SwapStore, file: FaultyFile
) -> None:
    store.store(0, text(0))
    store.writeback([0])
    file.faults = {"pread": (errno.EIO, 1)}
    with pytest.raises(PageError):
        store.load(0)
    assert store.load(0) == text(0)


@pytest.mark.slow
def test_check_finds_no_damage_in_pages_that_change_meanwhile(store: SwapStore) -> None:
    store.store(0, [text(number) for number in range(300)])
    stop = threading.Event()
    reports: list[StoreReport] = []

    def look() -> None:
        while not stop.is_set():
            reports.append(store.check())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for turn in range(1500):
            index = turn * 7 % 300
            store.store(index, [noise(turn), text(turn)])
            if turn % 5 == 0:
                store.writeback(10)
            if turn % 50 == 0:
                store.compact()
    finally:
        stop.set()
        thread.join()
    assert reports
    assert all(report.ok for report in reports)


def test_a_closed_store_has_nothing_to_look_at() -> None:
    with Engine("lz4", backend="sequential") as engine, SwapStore(engine) as store:
        pass
    with pytest.raises(ClosedError):
        store.check()
