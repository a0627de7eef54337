"""Other processes read a shared store, follow its changes, and never see half an entry."""

import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from support.entries import flip
from support.faulty_file import FaultyFile
from support.share_churn import churn
from support.share_clients import PAGES
from support.share_readers import SIZE
from support.shared_memory import entry_of, flip_value, set_codec
from support.store_pages import noise, text

from batchzip import (
    BadArgument,
    ClosedError,
    CorruptPage,
    Engine,
    PageNotStored,
    StoreView,
    SwapStore,
    train_dictionary,
)

# What is read


def test_a_view_gives_what_the_store_has(store: SwapStore, view: StoreView) -> None:
    store.store(7, PAGES)
    assert [view.load(7 + number) for number in range(5)] == PAGES
    assert view.load_many([9, 7, 9]).tobytes() == PAGES[2] + PAGES[0] + PAGES[2]
    out = bytearray(SIZE)
    assert view.load(8, out=out) is out
    assert out == PAGES[1]
    room = np.empty((2, SIZE), np.uint8)
    assert view.load_many(np.array([10, 11]), out=room) is room
    assert room.tobytes() == PAGES[3] + PAGES[4]
    assert [index in view for index in (6, 7, 11, 12, -1, 1 << 63)] == [
        False,
        True,
        True,
        False,
        False,
        False,
    ]
    assert view.page_size == SIZE


@pytest.mark.parametrize("index", [0, 3, 512, 1 << 40, (1 << 63) - 1, 1 << 63, -1])
def test_the_error_for_an_absent_page_names_its_index(
    store: SwapStore, view: StoreView, index: int
) -> None:
    store.store(1, PAGES[:2])
    with pytest.raises(PageNotStored) as missing:
        view.load(index)
    assert missing.value.index == index


def test_arguments_are_those_of_a_store(store: SwapStore, view: StoreView) -> None:
    store.store(0, PAGES)
    with pytest.raises(BadArgument):
        view.load("0")  # type: ignore[call-overload]
    with pytest.raises(BadArgument):
        view.load_many([[0]])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="out"):
        view.load(0, out=bytearray(SIZE - 1))
    assert view.load_many([]).shape == (0, SIZE)


def test_a_view_follows_every_change(store: SwapStore, view: StoreView) -> None:
    store.store(0, PAGES)
    assert view.load(0) == PAGES[0]
    store.store(0, noise(50))
    assert view.load(0) == noise(50)
    store.invalidate(0)
    with pytest.raises(PageNotStored):
        view.load(0)
    store.store(0, [text(9)] * 3000)  # the table grows
    store.store(1 << 50, text(8))  # and so does its directory
    assert view.load(2999) == text(9)
    assert view.load(1 << 50) == text(8)
    store.invalidate(0, 3000)
    store.store(512 * 9, text(7))  # a block's place is another's now
    for index in (0, 600, 2999):
        with pytest.raises(PageNotStored):
            view.load(index)
    assert view.load(512 * 9) == text(7)
    store.compact()
    assert view.load(512 * 9) == text(7)


def test_a_table_that_held_nothing_can_be_shared(engine: Engine) -> None:
    with SwapStore(engine) as store, store.share().attach() as view:
        with pytest.raises(PageNotStored):
            view.load(0)
        store.store(0, PAGES)
        assert view.load(1) == PAGES[1]
        store.check_invariants()


def test_sharing_twice_gives_the_same(store: SwapStore) -> None:
    assert store.share() == store.share()
    assert str(store.share()).startswith(f"{store.share().address}#")


def test_pages_of_several_codecs_are_read(store: SwapStore, view: StoreView) -> None:
    samples = [text(number) for number in range(100)]
    with (
        Engine("zstd", backend="sequential") as second,
        Engine("zstd", backend="sequential", dictionary=train_dictionary(samples)) as third,
        Engine("lz4", backend="sequential", shuffle=4) as fourth,
    ):
        for number, engine in enumerate([store.engine, second, third, fourth]):
            store.engine = engine
            store.store(number, text(number))
            assert view.load(number) == text(number)
        store.recompress(second)
        assert view.load_many(range(4)).tobytes() == b"".join(map(text, range(4)))


def test_a_view_reads_the_groups_of_a_store(store: SwapStore, view: StoreView) -> None:
    store.group("one").store(0, text(1))
    store.store(0, text(2))
    group = view.group("one")
    assert group.load(0) == text(1)
    assert view.load(0) == text(2)
    assert view.group("one") is group
    assert group.counters == store.group("one").counters
    with pytest.raises(BadArgument, match="'two'"):
        view.group("two")


@pytest.mark.parametrize("closed_by", ["owner", "reader"])
def test_a_group_that_was_closed_can_be_opened_again(
    store: SwapStore, view: StoreView, closed_by: str
) -> None:
    store.group("one").store(0, text(1))
    before = view.group("one")
    assert view.group("one") is before
    if closed_by == "owner":
        store.drop_group("one")
        with pytest.raises(ClosedError, match="this group of it"):
            before.load(0)
        with pytest.raises(BadArgument, match="'one'"):
            view.group("one")
        store.group("one").store(0, text(1))
    else:
        before.close()
    assert view.group("one").load(0) == text(1)
    assert view.load_many([]).size == 0  # the store itself is as it was
    with pytest.raises(ClosedError):
        before.load(0)


@pytest.mark.parametrize("kind", ["directory", "path", "file", "object"])
def test_pages_in_the_backing_file_are_read(engine: Engine, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "swap"
    with path.open("w+b") as file:
        target = {"directory": tmp_path, "path": path, "file": file, "object": FaultyFile()}[kind]
        with SwapStore(engine, backing=target) as store, store.share().attach() as view:
            store.store(0, PAGES)
            assert store.writeback(range(5)) == 3
            assert [view.load(number) for number in range(5)] == PAGES
            store.store(0, noise(9))
            assert view.load(0) == noise(9)


def test_counters_status_and_classes_are_the_owners(store: SwapStore, view: StoreView) -> None:
    store.store(0, PAGES)
    assert view.counters == store.counters
    assert view.classes() == store.classes()
    status = view.status()
    assert status["pid"] == os.getpid()
    assert status["pages"] == 5
    assert status == store.status()


@pytest.mark.slow
def test_damage_is_told_and_the_others_stay_readable(store: SwapStore, view: StoreView) -> None:
    store.store(0, PAGES)
    flip(store, 0)
    with pytest.raises(CorruptPage) as damage:
        view.load(0)
    assert damage.value.index == 0
    assert view.load(1) == PAGES[1]


def test_a_reader_learns_the_codec_of_a_reused_number(store: SwapStore, view: StoreView) -> None:
    store.store(0, text(0))
    assert view.load(0) == text(0)
    first = store.engine
    for level in range(-300, 0):
        with Engine("zstd", backend="sequential", level=level) as other:
            store.engine = other
            if level % 50 == 0 or level == -1:
                store.store(0, text(level + 400))
                assert view.load(0) == text(level + 400)
    assert store._resources.objects.reused > 0
    store.engine = first
    store.store(1, text(1))
    assert view.load_many([0, 1]).tobytes() == text(399) + text(1)


# While everything changes


@pytest.mark.slow
def test_readers_beside_an_owner_that_changes_everything(engine: Engine, tmp_path: Path) -> None:
    reads, changes = churn(tmp_path, engine, 1.5, 3)
    assert reads > 0
    assert changes > 0


# Torn entries, made by hand


@pytest.mark.slow
@pytest.mark.parametrize(
    "tear", ["value", "rest"], ids=["the value is new", "what it is said to be is new"]
)
@pytest.mark.parametrize("old", PAGES[:4], ids=["text", "raw", "zeros", "word"])
@pytest.mark.parametrize("new", PAGES[:4], ids=["text", "raw", "zeros", "word"])
def test_half_an_entry_is_never_taken_for_one(
    store: SwapStore, view: StoreView, old: bytes, new: bytes, tear: str
) -> None:
    store.store(0, [old, new if new != old else text(99)])
    entry = entry_of(store, 0)
    before = entry.copy()
    column = 0 if tear == "value" else 1
    entry[column] = entry_of(store, 1)[column]
    healed = threading.Timer(0.05, lambda: entry.__setitem__(slice(None), before))
    healed.start()
    assert view.load(0) in {old, new}
    healed.join()


@pytest.mark.slow
def test_bytes_of_one_codec_are_never_taken_for_anothers(store: SwapStore, view: StoreView) -> None:
    store.store(0, [text(0), text(1)])
    with Engine("zstd", backend="sequential") as other:
        store.engine = other
        store.store(2, text(2))
        for number in (0, 2, 255):  # none, zstd's, and one that nobody has
            set_codec(store, 0, number)
            with pytest.raises(CorruptPage):
                view.load(0)
            with pytest.raises(CorruptPage):
                store.load(0)
            with pytest.raises(CorruptPage):
                store.load_many([1, 0])
            assert store.check().damaged == (("", 0),)
    set_codec(store, 0, 1)
    assert view.load(0) == store.load(0) == text(0)


class _RangError(Exception):
    """What a signal handler raises."""


@pytest.mark.slow
def test_a_signal_ends_the_wait_for_an_entry_that_does_not_fit(
    store: SwapStore, view: StoreView
) -> None:
    store.store(0, text(0))
    flip_value(store, 0)
    with pytest.raises(CorruptPage):
        view.load(0)

    def ring(*_: object) -> None:
        raise _RangError

    before = signal.signal(signal.SIGALRM, ring)
    try:
        with pytest.raises(_RangError):  # noqa: PT012 - wherever it comes
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            view.load_many([0])
    finally:
        signal.signal(signal.SIGALRM, before)
    flip_value(store, 0)
    assert view.load(0) == text(0)
