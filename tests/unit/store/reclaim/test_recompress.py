"""recompress uses a stronger algorithm for idle or large pages, and only if that pays."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.codecs.faulty import RAISE, FaultyCodec
from support.entries import codec, flip, kind, length
from support.store_pages import SIZE, ZEROS, noise, text

from batchzip import BadArgument, ClosedError, Engine, Recompression, SwapStore, UnknownAlgorithm
from batchzip.core.lru import shift_clock
from batchzip.core.table import Kind


def mixed(seed: int) -> bytes:
    """Make a page that zstd makes much smaller than lz4 does."""
    return bytes(65 + byte % 16 for byte in noise(seed))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SwapStore]:
    with (
        Engine("lz4", backend="sequential") as engine,
        SwapStore(engine, backing=tmp_path, shrinker_enabled=False) as store,
    ):
        yield store


def codecs(store: SwapStore, count: int) -> list[int]:
    return [codec(store, index) for index in range(count)]


def test_pages_get_smaller_and_stay_the_same(store: SwapStore) -> None:
    pages = [mixed(number) for number in range(300)]
    store.store(0, pages)
    before = store.compressed_bytes
    done = store.recompress("zstd", level=9)
    assert done == Recompression(300, 300, before - store.compressed_bytes)
    assert done.saved_bytes > 0
    assert store.load_many(range(300)).tobytes() == b"".join(pages)
    assert store.counters.stored_pages == 300
    store.check_invariants()
    assert store.check().ok


def test_a_page_that_takes_no_smaller_class_keeps_its_form(store: SwapStore) -> None:
    store.store(0, [noise(0)[:16] * (SIZE // 16), mixed(1), noise(2), ZEROS])
    before = codecs(store, 4)
    done = store.recompress("zstd", level=19)
    now = codecs(store, 4)
    # The repetitive page takes the smallest class with either codec. Noise is raw, zeros a word.
    assert length(store, 0) < 100
    assert [old == new for old, new in zip(before, now, strict=True)] == [True, False, True, True]
    assert (done.pages, done.recompressed) == (3, 1)


def test_pages_of_the_requested_codec_are_not_tried_again(store: SwapStore) -> None:
    store.store(0, [mixed(number) for number in range(10)])
    assert store.recompress("zstd", level=5).recompressed == 10
    assert store.recompress("zstd", level=5) == Recompression(0, 0, 0)
    assert store.recompress("zstd", level=6).pages == 10


def test_recompress_takes_only_pages_that_are_idle(store: SwapStore) -> None:
    store.store(0, [mixed(number) for number in range(20)])
    for _ in range(40):
        shift_clock(1)
        store.load(3)
        store.load_many([4, 5])
    assert store.recompress("zstd", idle_for_s=100) == Recompression(0, 0, 0)
    assert store.recompress("zstd", idle_for_s=20).pages == 17
    now = codecs(store, 20)
    assert [number for number in range(20) if now[number] == now[3]] == [3, 4, 5]


def test_recompress_takes_only_pages_of_the_minimum_length(store: SwapStore) -> None:
    store.store(0, [mixed(0), text(1), noise(2)])
    assert store.recompress("zstd", min_length=1000).pages == 2
    assert store.recompress("zstd", min_length=SIZE + 1).pages == 0


def test_recompression_is_no_use_of_a_page(store: SwapStore) -> None:
    for index in reversed(range(10)):
        store.store(index, mixed(index))
    store.recompress("zstd")
    for index in reversed(range(10)):
        store.writeback(1)
        assert kind(store, index) == Kind.BACKED


def test_pages_in_the_file_are_left(store: SwapStore) -> None:
    store.store(0, [mixed(number) for number in range(10)])
    store.writeback(range(5))
    assert store.recompress("zstd").pages == 5
    assert {kind(store, index) for index in range(5)} == {Kind.BACKED}
    assert {kind(store, index) for index in range(5, 10)} == {Kind.COMPRESSED}
    assert store.load_many(range(10)).tobytes() == b"".join(map(mixed, range(10)))


def test_a_page_on_which_the_new_codec_fails_keeps_its_form(store: SwapStore) -> None:
    pages = [text(0), RAISE + text(1)[4:], text(2)]
    store.store(0, pages)
    before = [length(store, index) for index in range(3)]
    with Engine(FaultyCodec(0), backend="sequential") as engine:
        assert store.recompress(engine).pages == 3
    assert [length(store, index) for index in range(3)] == before
    assert store.load_many(range(3)).tobytes() == b"".join(pages)


def test_a_damaged_page_is_counted_and_left(store: SwapStore) -> None:
    store.store(0, [mixed(number) for number in range(4)])
    flip(store, 1)
    done = store.recompress("zstd")
    assert (done.pages, done.recompressed) == (4, 3)
    assert store.counters.decompress_fail == 1
    flip(store, 1)
    assert store.load(1) == mixed(1)


def test_where_the_pool_has_no_room_every_page_keeps_its_form(store: SwapStore) -> None:
    pages = [mixed(number) for number in range(64)]
    store.store(0, pages)
    store.max_pool_bytes = 0
    done = store.recompress("zstd")
    assert done.pages == 64
    assert store.load_many(range(64)).tobytes() == b"".join(pages)
    store.check_invariants()


def test_an_engine_of_one_s_own_is_only_used(store: SwapStore) -> None:
    store.store(0, [mixed(number) for number in range(10)])
    with Engine("zstd", level=3, backend="sequential") as engine:
        assert store.recompress(engine).recompressed == 10
        assert not engine.closed
        with pytest.raises(BadArgument, match="parameters"):
            store.recompress(engine, level=5)
    assert store.load(3) == mixed(3)
    with pytest.raises(ClosedError):
        store.recompress(engine)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"idle_for_s": -1}, BadArgument),
        ({"idle_for_s": float("nan")}, BadArgument),
        ({"min_length": -1}, BadArgument),
        ({"min_length": 1.5}, BadArgument),
        ({"level": 99}, BadArgument),
        ({"algorithm": "zip"}, UnknownAlgorithm),
        ({"no_such": 1}, BadArgument),
    ],
)
def test_invalid_arguments_are_refused_and_change_nothing(
    store: SwapStore, arguments: dict[str, Any], error: type[Exception]
) -> None:
    store.store(0, mixed(0))
    before = codecs(store, 1)
    with pytest.raises(error):
        store.recompress(**arguments)
    assert codecs(store, 1) == before
    assert store.load(0) == mixed(0)


def test_an_engine_of_other_pages_is_refused(store: SwapStore) -> None:
    with (
        Engine("zstd", backend="sequential", page_size=8192) as engine,
        pytest.raises(BadArgument, match="8192"),
    ):
        store.recompress(engine)


@pytest.mark.slow
def test_pages_that_change_meanwhile_keep_their_new_content(store: SwapStore) -> None:
    newest = {index: mixed(index) for index in range(200)}
    store.store(0, list(newest.values()))
    stop = threading.Event()

    def recompress() -> None:
        level = 1
        while not stop.is_set():
            level = level % 9 + 1
            store.recompress("zstd", level=level)

    thread = threading.Thread(target=recompress)
    thread.start()
    try:
        for turn in range(1500):
            index = turn * 7 % 200
            if turn % 3 == 2:
                store.invalidate(index)
                newest.pop(index, None)
            else:
                newest[index] = mixed(1000 + turn)
                store.store(index, newest[index])
    finally:
        stop.set()
        thread.join()
    assert len(store) == len(newest)
    assert store.load_many(list(newest)).tobytes() == b"".join(newest.values())
    store.check_invariants()
