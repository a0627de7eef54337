"""A full pool sends pages to the file; where that fails, every page stays where it was."""

import errno
import random
import threading
from pathlib import Path

import pytest
from support.entries import in_file
from support.gate import Gate
from support.store_pages import PAGES, SIZE, ZEROS, grown, noise, text
from support.waiting import await_true

from batchzip import (
    BadArgument,
    CorruptPage,
    Engine,
    PageError,
    StoreRejected,
    SwapStore,
)

# A full pool


def test_while_a_folio_goes_to_the_file_its_indices_hold_what_they_held(engine: Engine) -> None:
    gate = Gate()
    with SwapStore(engine, backing=gate, shrinker_enabled=False) as store:
        store.store(0, [text(0), text(1)])
        store.max_pool_bytes = store.counters.pool_total_size + 1  # not full, but nearly
        seen: list[bytes] = []
        gate.fail = lambda _call: seen.append(store.load(0) + store.load(1))
        store.store(0, [noise(number) for number in range(80)])
        assert seen == [text(0) + text(1)] * 2  # at the write and at the sync
        gate.fail = lambda _call: None
        assert store.counters.backed_pages == 80
        assert store.load_many([0, 1, 79]).tobytes() == noise(0) + noise(1) + noise(79)
        store.check_invariants()


def test_a_folio_that_the_pool_rejects_goes_to_the_file(engine: Engine, tmp_path: Path) -> None:
    with SwapStore(
        engine, max_pool_bytes=16 * SIZE, backing=tmp_path, shrinker_enabled=False
    ) as store:
        pages = [noise(number) for number in range(40)]
        for start in range(0, 40, 4):
            store.store(start, pages[start : start + 4])
        store.store(40, [text(40), ZEROS])
        counters = store.counters
        assert counters.pool_limit_hit > 0
        assert counters.written_back_pages == 0
        assert counters.backed_pages >= 24
        assert counters.pool_total_size <= 16 * SIZE
        assert store.load_many(range(42)).tobytes() == b"".join([*pages, text(40), ZEROS])
        store.check_invariants()


def test_pages_no_codec_takes_go_to_the_file_as_they_are(engine: Engine, tmp_path: Path) -> None:
    with SwapStore(engine, backing=tmp_path, keep_incompressible=False) as store:
        before = store.counters
        store.store(0, [text(0), noise(1), ZEROS])
        assert store.load_many(range(3)).tobytes() == text(0) + noise(1) + ZEROS
        assert store.counters.backed_pages == 2
        assert grown(store, before) == {"reject_compress_poor": 1}


def test_the_shrinker_makes_room_down_to_the_threshold(engine: Engine, tmp_path: Path) -> None:
    with SwapStore(engine, max_pool_bytes=64 * SIZE, backing=tmp_path) as store:
        for index in range(400):
            store.store(index, noise(index))
        # A store that finds the pool at its limit wakes the shrinker, as in zswap.
        store.max_pool_bytes = 32 * SIZE
        store.store(400, noise(400))
        await_true(lambda: store.counters.pool_total_size <= 0.9 * 32 * SIZE)
        counters = store.counters
        assert counters.written_back_pages > 0
        assert [bytes(store.load(index)) for index in range(401)] == [noise(n) for n in range(401)]
        store.check_invariants()
    assert not [thread for thread in threading.enumerate() if "shrinker" in thread.name]


def test_a_store_that_is_dropped_ends_its_shrinker(engine: Engine, tmp_path: Path) -> None:
    store = SwapStore(engine, max_pool_bytes=16 * SIZE, backing=tmp_path)
    for index in range(40):
        store.store(index, noise(index))
    del store
    await_true(
        lambda: not [thread for thread in threading.enumerate() if "shrinker" in thread.name]
    )


def test_shrink_writes_back_until_the_pool_is_below_its_threshold(
    engine: Engine, tmp_path: Path
) -> None:
    with SwapStore(engine, backing=tmp_path, shrinker_enabled=False) as store:
        store.store(0, [noise(number) for number in range(100)])
        assert store.shrink() == 0
        store.max_pool_bytes = 50 * SIZE
        assert store.shrink() >= 55
        assert store.counters.pool_total_size <= 45 * SIZE
        store.store(100, noise(100))
        assert store.counters.backed_pages == store.counters.written_back_pages
        assert store.load_many(range(101)).tobytes() == b"".join(map(noise, range(101)))


@pytest.mark.slow
def test_cve_2023_53178_no_writeback_brings_an_older_page_back(
    engine: Engine, tmp_path: Path
) -> None:
    rng = random.Random(4)
    newest: dict[int, bytes] = {}
    with SwapStore(engine, backing=tmp_path) as store:
        for turn in range(600):
            store.max_pool_bytes = rng.choice([20, 1]) * SIZE
            index = rng.randrange(30)
            newest[index] = rng.choice([noise, text])(turn)
            store.store(index, newest[index])
            if turn % 10 == 0:
                assert {at: bytes(store.load(at)) for at in newest} == newest
        assert store.load_many(list(newest)).tobytes() == b"".join(newest.values())
        store.check_invariants()


@pytest.mark.parametrize("meanwhile", ["store", "invalidate", "exclusive", "load"])
def test_a_writeback_undoes_no_change_made_meanwhile(engine: Engine, meanwhile: str) -> None:
    gate = Gate()
    with SwapStore(engine, backing=gate) as store:
        store.store(0, [text(0), text(1)])
        gate.open.clear()
        writer = threading.Thread(target=store.writeback, args=([0, 1],))
        writer.start()
        assert gate.writing.wait(30)
        if meanwhile == "store":
            store.store(0, text(9))
        elif meanwhile == "invalidate":
            store.invalidate(0)
        elif meanwhile == "exclusive":
            assert store.load(0, exclusive=True) == text(0)
        else:
            assert store.load(0) == text(0)
        gate.open.set()
        writer.join()
        store.check_invariants()
        if meanwhile == "store":
            assert store.load(0) == text(9)
        elif meanwhile == "load":
            assert store.load(0) == text(0)
        else:
            assert 0 not in store
        assert store.load(1) == text(1)
        assert store.counters.written_back_pages == (2 if meanwhile == "load" else 1)


@pytest.mark.parametrize("call", ["write", "sync"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_writeback_that_fails_leaves_every_page_in_memory(
    engine: Engine, call: str, code: int
) -> None:
    gate = Gate()
    with SwapStore(engine, backing=gate) as store:
        store.store(0, PAGES)

        def fail(now: str) -> None:
            if now == call:
                raise OSError(code, "injected")

        gate.fail = fail
        before = store.counters
        with pytest.raises(OSError, match="injected"):
            store.writeback(len(PAGES))
        assert grown(store, before) == {"reject_reclaim_fail": 6}
        assert store.load_many(range(len(PAGES))).tobytes() == b"".join(PAGES)
        store.check_invariants()
        gate.fail = lambda _call: None
        assert store.writeback(range(len(PAGES))) == 6
        assert store.load_many(range(len(PAGES))).tobytes() == b"".join(PAGES)
        store.check_invariants()


def test_a_folio_that_neither_takes_is_rejected_and_its_indices_hold_nothing(
    engine: Engine,
) -> None:
    gate = Gate()
    with SwapStore(engine, backing=gate, max_pool_bytes=0, shrinker_enabled=False) as store:
        store.store(0, [text(0), text(1)])
        assert store.load(1) == text(1)

        def fail(now: str) -> None:
            raise OSError(errno.ENOSPC, now)

        gate.fail = fail
        before = store.counters
        with pytest.raises(StoreRejected, match="backing file"):
            store.store(1, [text(2), text(3)])
        assert grown(store, before) == {"pool_limit_hit": 1, "reject_reclaim_fail": 1}
        gate.fail = lambda _call: None
        assert store.load(0) == text(0)
        assert 1 not in store
        assert 2 not in store
        store.check_invariants()


def test_a_page_that_cannot_be_read_is_an_error_and_stays(engine: Engine) -> None:
    gate = Gate()
    with SwapStore(engine, backing=gate) as store:
        store.store(0, [text(0), text(1)])
        store.writeback(2)

        def fail(now: str) -> None:
            if now == "read":
                raise OSError(errno.EIO, "injected")

        gate.fail = fail
        for call in (lambda: store.load(1), lambda: store.load_many([1])):
            with pytest.raises(PageError) as error:
                call()
            assert (error.value.index, error.value.errno) == (1, -errno.EIO)
        assert store.counters.decompress_fail == 2
        report = store.check()
        assert report.unreadable == (("", 0), ("", 1))
        assert not report.ok
        gate.fail = lambda _call: None
        assert store.load_many([1, 0]).tobytes() == text(1) + text(0)
        assert store.check().ok


def test_damage_in_the_file_is_told_by_page(engine: Engine) -> None:
    gate = Gate()
    with SwapStore(engine, backing=gate) as store:
        store.store(0, [text(number) for number in range(8)])
        store.writeback(8)
        gate.memory[in_file(store, 3)[0]] ^= 1
        with pytest.raises(CorruptPage, match="3"):
            store.load(3)
        with pytest.raises(CorruptPage, match="3"):
            store.load_many(range(8))
        assert store.check().damaged == (("", 3),)
        assert [store.load(index) for index in (0, 1, 2, 4, 5, 6, 7)] == [
            text(number) for number in (0, 1, 2, 4, 5, 6, 7)
        ]


def test_the_limit_of_the_file_can_be_changed(engine: Engine, tmp_path: Path) -> None:
    with SwapStore(engine, backing=tmp_path, max_backing_bytes=10 * SIZE) as store:
        store.store(0, [noise(number) for number in range(40)])
        assert store.max_backing_bytes == 10 * SIZE
        assert store.writeback(range(8)) == 8  # an eighth is kept for cleaning
        with pytest.raises(OSError, match=f"limit of {10 * SIZE} bytes"):
            store.writeback([8])
        store.max_backing_bytes = 30 * SIZE
        assert store.writeback(range(26)) == 18
        store.max_backing_bytes = 0
        with pytest.raises(OSError, match="limit of 0 bytes"):
            store.writeback([30])
        assert store.load_many(range(40)).tobytes() == b"".join(map(noise, range(40)))
        for wrong in (-1, True, "1", 0.5):
            with pytest.raises(BadArgument, match="max_backing_bytes must be a number of bytes"):
                store.max_backing_bytes = wrong  # type: ignore[assignment]
        store.max_backing_bytes = None
        assert store.writeback(range(40)) == 14
    with SwapStore(engine) as store:
        assert store.max_backing_bytes is None
        with pytest.raises(BadArgument, match="backing="):
            store.max_backing_bytes = 5
