"""Arrays of the arena are ordinary arrays, are used in place by workers, and are never mixed up."""

from __future__ import annotations

import errno
import gc
import itertools
import mmap
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.forked import in_forked_child
from support.interrupt_lines import interrupted_at

from batchzip import BadArgument, ClosedError, CompressBatch, DecompressBatch, Engine
from batchzip.arguments import buffers
from batchzip.system import arena as arena_module
from batchzip.system.arena import Arena
from batchzip.system.segment import PAGE as MACHINE_PAGE
from batchzip.testing.plain import (
    PAGE,
    SLACK_S,
    check_compressed,
    check_restored,
    in_threads,
    make_pages,
)
from batchzip_workers.backend import WorkersBackend

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batchzip.arguments.buffers import Bytes

pytestmark = pytest.mark.usefixtures("always_hand_over")


def make_engine(page_size: int = PAGE, workers: int = 1) -> Engine:
    engine = Engine("lz4", backend="workers", workers=workers, page_size=page_size)
    assert engine.wait_ready(SLACK_S)
    return engine


@pytest.fixture(scope="module")
def shared() -> Iterator[Engine]:
    """One engine for the tests that leave it as it was."""
    with make_engine() as engine:
        yield engine


@pytest.fixture
def engine() -> Iterator[Engine]:
    with make_engine() as engine:
        yield engine


def arena_of(engine: Engine) -> Arena:
    assert isinstance(engine.backend, WorkersBackend)
    return engine.backend._arena


def filled(engine: Engine, pages: Bytes) -> Bytes:
    array = engine.arena(*pages.shape)
    array[:] = pages
    return array


def worker_pages(engine: Engine) -> int:
    return sum(worker.pages for worker in engine.statistics.workers)


# Round trips


@pytest.mark.slow
@pytest.mark.parametrize("page_size", [512, 4096, 65536, 2 << 20])
def test_batches_wholly_or_partly_in_the_arena_come_back(page_size: int) -> None:
    count = {512: 1000, 4096: 300, 65536: 40, 2 << 20: 5}[page_size]
    pages = make_pages(count, page_size=page_size)
    with make_engine(page_size, workers=2) as engine:
        for sources, outputs, restored in itertools.product((False, True), repeat=3):
            capacity = 2 * page_size - 13
            batch = CompressBatch(
                filled(engine, pages) if sources else pages,
                dsts=engine.arena(count, capacity) if outputs else None,
                capacity=None if outputs else capacity,
            )
            engine.compress(batch)
            check_compressed(engine, batch, pages)
            back = DecompressBatch(
                (batch.dsts, batch.dlens),
                pages=engine.arena(count, page_size) if restored else None,
                page_size=None if restored else page_size,
            )
            engine.submit(back).wait(SLACK_S)
            check_restored(back, pages)
        assert worker_pages(engine)


def test_an_array_is_of_zeros_and_of_the_size_that_was_asked_for(shared: Engine) -> None:
    for rows, width in ((1, 1), (3, 4096), (7, 4095), (1000, 13), (5, 2 << 20)):
        array = shared.arena(rows, width)
        assert array.shape == (rows, width)
        assert array.dtype == np.uint8
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert not array.any()
        array.fill(0xA5)  # the next of its size has the same memory, and zeros all the same
    assert shared.arena(3).shape == (3, PAGE)
    assert shared.arena(np.int64(3), np.uint8(200)).shape == (3, 200)  # type: ignore[arg-type]


def in_rings(engine: Engine, data: bytes) -> bool:
    """Whether these bytes lie in the memory of a ring."""
    assert isinstance(engine.backend, WorkersBackend)
    rings = [place.ring for place in engine.backend._supervisor._workers]
    return any(ring is not None and data in bytes(ring._segment.memory) for ring in rings)


def test_workers_use_pages_and_destinations_where_they_are(engine: Engine) -> None:
    """Of what lies in the arena nothing is copied to a worker's ring or from there."""
    pages = make_pages(500)
    pages[2::5] %= 6  # nothing that is stored as it is
    batch = CompressBatch(filled(engine, pages), dsts=engine.arena(500, 2 * PAGE))
    engine.compress(batch)
    check_compressed(engine, batch, pages)
    done = worker_pages(engine)
    assert done
    outputs = [bytes(output) for output in batch.outputs()]
    assert not any(in_rings(engine, data) for data in (pages[0].tobytes(), outputs[0]))
    back = DecompressBatch(outputs, pages=engine.arena(500))
    engine.decompress(back)
    check_restored(back, pages)
    assert worker_pages(engine) > done
    assert not any(in_rings(engine, page.tobytes()) for page in pages[:10])
    private = CompressBatch(pages)
    engine.compress(private)
    copied = any(in_rings(engine, page.tobytes()) for page in pages)
    assert copied, "this is how a copy is found"


def test_an_arena_that_grows_between_batches_is_mapped_anew_by_workers(engine: Engine) -> None:
    """Also where a worker's mapping has the pages of a batch and not yet their destinations."""
    (pid,) = engine.worker_pids
    kept = []
    for rows in (1, 10, 100, 300):
        pages = make_pages(rows, seed=rows)
        inside = filled(engine, pages)
        engine.compress(CompressBatch(inside))
        batch = CompressBatch(inside, dsts=engine.arena(rows, 5000))
        engine.compress(batch)
        check_compressed(engine, batch, pages)
        kept.append(batch)
    assert engine.worker_pids == (pid,)
    assert engine.statistics.restarts == 0


def test_any_rows_that_follow_one_another_will_do_and_others_are_not_touched(
    shared: Engine,
) -> None:
    pages = make_pages(200)
    memory = shared.arena(1000)
    memory.fill(0xA5)
    memory[100:300] = pages
    rows = memory[50:][50:250]
    dsts = memory[300:900].reshape(200, 3 * PAGE)
    batch = CompressBatch(rows, dsts=dsts)
    shared.compress(batch)
    check_compressed(shared, batch, pages)
    restored = shared.arena(202)
    restored.fill(0xA5)
    back = DecompressBatch((dsts, batch.dlens), pages=restored[1:-1])
    shared.decompress(back)
    check_restored(back, pages)
    np.testing.assert_array_equal(memory[100:300], pages)
    for untouched in (memory[:100], memory[900:], restored[[0, -1]]):
        assert (untouched == 0xA5).all()


def test_single_rows_and_other_shapes_and_read_only_views_are_right_too(shared: Engine) -> None:
    pages = make_pages(40)
    memory = filled(shared, pages)
    read_only = memory.view()
    read_only.flags.writeable = False
    forms: list[Any] = [
        list(memory),
        memory.reshape(-1),
        buffers.flat(memory),
        read_only,
        memory.reshape(20, 2 * PAGE).reshape(40, PAGE),
        memory.view(np.uint32).view(np.uint8),
    ]
    for form in forms:
        batch = CompressBatch(form, dsts=shared.arena(40, 5000), page_size=PAGE)
        shared.compress(batch)
        check_compressed(shared, batch, pages)
    back = DecompressBatch(batch.outputs(), pages=list(shared.arena(40)))
    shared.decompress(back)
    check_restored(back, pages)


@pytest.mark.parametrize("capacity", [1, 100, 1700, 4097])
def test_destinations_too_narrow_are_enospc_for_those_pages_only(
    shared: Engine, capacity: int
) -> None:
    pages = make_pages(300)
    memory = shared.arena(302, capacity)
    memory.fill(0xA5)
    batch = CompressBatch(filled(shared, pages), dsts=memory[1:-1])
    shared.compress(batch)
    check_compressed(shared, batch, pages)
    assert (memory[[0, -1]] == 0xA5).all()


def test_bad_sources_leave_their_pages_in_the_arena_as_they_were(shared: Engine) -> None:
    pages = make_pages(300)
    batch = CompressBatch(pages)
    shared.compress(batch)
    srcs: list[Any] = list(batch.outputs())
    bad = [0, 1, 149, 150, 299]
    for index in bad:
        srcs[index] = b"\xff" * (index + 1)
    restored = shared.arena(300)
    restored.fill(0xA5)
    back = DecompressBatch(srcs, pages=restored)
    shared.decompress(back)
    assert np.flatnonzero(back.errors == -errno.EBADMSG).tolist() == bad
    expected = pages.copy()
    expected[bad] = 0xA5
    np.testing.assert_array_equal(restored, expected)


def test_rows_gigabytes_apart_are_right(shared: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: None)  # only what is written gets memory
    monkeypatch.setattr(arena_module, "_available_bytes", lambda: 1 << 40)
    pages = make_pages(4)
    batch = CompressBatch(pages, dsts=shared.arena(4, 1 << 31))
    shared.compress(batch)
    check_compressed(shared, batch, pages)


def test_arrays_of_another_engines_arena_are_taken_as_private_memory(shared: Engine) -> None:
    pages = make_pages(200)
    with make_engine() as other:
        mine, theirs = shared.arena(200), filled(other, pages)  # at the same offset
        dsts = other.arena(200, 2 * PAGE)
        assert arena_of(shared).locate(theirs) == -1
        batch = CompressBatch(theirs, dsts=dsts)
        shared.compress(batch)
        check_compressed(shared, batch, pages)
        back = DecompressBatch(batch.outputs(), pages=other.arena(200))
        shared.decompress(back)
        check_restored(back, pages)
        assert not mine.any(), "written to the same place of the wrong arena"


@pytest.mark.slow
def test_a_request_keeps_its_arrays(engine: Engine) -> None:
    pages = make_pages(300)
    requests = [
        engine.submit(CompressBatch(filled(engine, pages), dsts=engine.arena(300, 2 * PAGE)))
        for _ in range(6)
    ]
    for request in requests:
        check_compressed(engine, request.wait(SLACK_S), pages)


# Memory


def test_memory_is_returned_with_the_last_view_and_its_range_is_used_again(engine: Engine) -> None:
    arena = arena_of(engine)
    before = arena.held_bytes()
    array = engine.arena(100)
    view = array[3:5, 10:20]
    offset = arena.locate(array)
    assert arena.held_bytes() - before == 100 * PAGE
    array[3:5] = 7
    del array
    assert arena.held_bytes() - before == 100 * PAGE
    assert (view == 7).all()
    del view
    assert arena.held_bytes() == before
    again = engine.arena(50, 2 * PAGE)
    assert arena.locate(again) == offset
    assert not again.any()


def test_memory_is_returned_also_after_close() -> None:
    engine = make_engine()
    array = filled(engine, make_pages(100))
    view, expected = array[50], array[50].copy()
    watch = os.dup(arena_of(engine).fd)
    try:
        engine.close()
        del array
        np.testing.assert_array_equal(view, expected)
        assert os.fstat(watch).st_blocks
        del view
        assert os.fstat(watch).st_blocks == 0
        with pytest.raises(ClosedError):
            engine.arena(1)
        with pytest.raises(ClosedError):
            arena_of(engine).array(1, 1)
        with pytest.raises(ClosedError):
            arena_of(engine).held_bytes()
    finally:
        os.close(watch)


@pytest.mark.slow
def test_an_array_outlives_an_engine_that_is_gone() -> None:
    engine = make_engine()
    array = filled(engine, make_pages(10))
    del engine
    gc.collect()
    np.testing.assert_array_equal(array, make_pages(10))


def test_bad_arguments_are_named(shared: Engine) -> None:
    for rows in (0, -1, 1.5, "3", None, True):
        with pytest.raises(BadArgument, match=f"^rows must be .* not {rows!r}"):
            shared.arena(rows)  # type: ignore[arg-type]
    for width in (0, -1, 1.5, "3", False):
        with pytest.raises(BadArgument, match=f"^width must be .* not {width!r}"):
            shared.arena(1, width)  # type: ignore[arg-type]
    with pytest.raises(BadArgument, match="at least one row"):
        Arena().array(0, 1)


@pytest.mark.parametrize("rows", [1 << 40, 1 << 62, 1 << 80])
def test_more_than_there_is_is_refused_before_the_kernel_kills_anybody(
    shared: Engine, rows: int
) -> None:
    with pytest.raises(OSError, match=f"{rows} × 4096 bytes") as failure:
        shared.arena(rows)
    assert failure.value.errno == errno.ENOMEM


@pytest.mark.slow
@pytest.mark.parametrize(("module", "name"), [(os, "posix_fallocate"), (mmap, "mmap")])
def test_an_array_that_cannot_be_had_leaves_nothing_held_and_the_arena_usable(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    arena = arena_of(engine)
    dropped = engine.arena(10)
    kept = filled(engine, make_pages(10))
    offset = arena.locate(dropped)
    del dropped
    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            for rows in (10, 20):
                with pytest.raises(OSError, match="No space left"):
                    engine.arena(rows)
        assert arena.held_bytes() == kept.nbytes
    again, larger = engine.arena(10), engine.arena(20)
    assert arena.locate(again) == offset
    larger.fill(1)
    assert not again.any()
    np.testing.assert_array_equal(kept, make_pages(10))


# Location


def test_locate_finds_arrays_of_the_arena_and_their_views_only() -> None:
    arena = Arena()
    assert arena.locate(np.zeros((3, 4), np.uint8)) == -1
    first, second = arena.array(3, 1000), arena.array(2, 5000)
    assert arena.locate(first) == 0
    start = arena.locate(second)
    assert start == MACHINE_PAGE
    assert arena.locate(second[1:]) == start + 5000
    assert arena.locate(second[1:, 7:]) == start + 5007
    assert arena.locate(second.reshape(-1)[3:].view()) == start + 3
    assert arena.locate(second.copy()) == -1
    private = np.zeros((2, 5000), np.uint8)
    assert arena.locate(private) == arena.locate(private[1:]) == -1
    arena.close()
    assert arena.locate(second) == start


def test_an_array_that_has_the_id_of_one_that_is_gone_is_not_taken_for_it() -> None:
    arena = Arena()
    kept = arena.array(1, 1)
    for _ in range(100):
        array = arena.array(3, PAGE)
        ident = id(array.base)
        del array
        foreign = [np.frombuffer(bytes(8), np.uint8) for _ in range(30)]
        assert all(arena.locate(other) == -1 for other in foreign)
        if any(id(other) == ident for other in foreign):
            break
    else:
        pytest.skip("no id was used again")
    assert arena.locate(kept) == 0
    arena.close()


# Processes and threads


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_frees_no_memory_and_its_writes_are_seen(
    engine: Engine,
) -> None:
    arena = arena_of(engine)
    array, other = filled(engine, make_pages(50)), engine.arena(30)
    held = arena.held_bytes()
    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        try:
            array[0] = 9
            del array, other
            gc.collect()
            os._exit(0)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert arena.held_bytes() == held
    assert (array[0] == 9).all()
    np.testing.assert_array_equal(array[1:], make_pages(50)[1:])
    assert not other.any()
    batch = CompressBatch(array)
    engine.compress(batch)
    check_compressed(engine, batch, array)


@pytest.mark.slow
def test_threads_that_make_and_drop_arrays_at_once_never_get_each_others(engine: Engine) -> None:
    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        kept: list[tuple[Bytes, int]] = []
        for turn in range(150):
            rows, width = int(rng.integers(1, 9)), int(rng.integers(1, 3) * 3000)
            array = engine.arena(rows, width)
            assert not array.any()
            mark = 1 + (seed * 60 + turn) % 255
            array.fill(mark)
            kept.append((array[rows // 2 :], mark))
            if len(kept) > 5:
                kept.pop(int(rng.integers(len(kept))))
            for view, expected in kept:
                assert (view == expected).all()
            if turn % 10 == 0:
                pages = make_pages(20, seed=turn)
                batch = CompressBatch(filled(engine, pages), dsts=engine.arena(20, 2 * PAGE))
                engine.compress(batch)
                check_compressed(engine, batch, pages)

    in_threads(4, work)
    gc.collect()
    assert arena_of(engine).held_bytes() == 0


# Interrupts


def test_an_interrupt_at_any_line_loses_no_range_and_no_memory() -> None:
    arena = Arena()
    made: list[Bytes] = []
    step = 0
    place: str | None = ""
    while place is not None:
        step += 1
        place = interrupted_at(
            step,
            lambda: made.append(arena.array(10, PAGE)),
            lambda path: path.name == "arena.py",
        )
        made.clear()
        assert arena.held_bytes() == 0, place
        array = arena.array(10, PAGE)
        assert arena.locate(array) == 0, place
        del array
    assert step > 12
    arena.close()


@pytest.mark.slow
def test_arrays_dropped_in_a_forked_child_stay_with_the_parent() -> None:
    arena = Arena()
    array = arena.array(10, PAGE)
    array[:] = 7

    def lose() -> None:
        nonlocal array
        del array
        gc.collect()

    in_forked_child(lose)
    assert array.min() == 7
    assert arena.held_bytes() == array.nbytes
