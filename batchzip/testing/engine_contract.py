"""The contract of an engine's other features: arenas, verify, statistics."""

from __future__ import annotations

import errno
from abc import abstractmethod
from typing import TYPE_CHECKING

import numpy as np
import pytest

from batchzip.batch import CompressBatch, DecompressBatch
from batchzip.codecs import make_codec
from batchzip.engine import Engine
from batchzip.errors import BadArgument, ClosedError
from batchzip.testing.plain import (
    PAGE,
    SLACK_S,
    check_compressed,
    check_restored,
    check_round_trip,
    in_threads,
    make_pages,
)

if TYPE_CHECKING:
    from batchzip.arguments.buffers import Bytes
    from batchzip.backend import Backend
    from batchzip.statistics import OperationStatistics


def _filled(engine: Engine, pages: Bytes) -> Bytes:
    array = engine.arena(*pages.shape)
    array[:] = pages
    return array


def _grown(before: OperationStatistics, after: OperationStatistics) -> tuple[int, ...]:
    """Return how many batches, pages, bytes in and bytes out were done in between."""
    names = ("batches", "pages", "bytes_in", "bytes_out")
    return tuple(getattr(after, name) - getattr(before, name) for name in names)


class EngineContract:
    """Promises about arenas, verify and statistics. BackendContract has the fixture `engine`."""

    @classmethod
    @abstractmethod
    def make_backend(cls) -> Backend:
        """Return a new backend, for each engine."""

    # Arena

    @pytest.mark.parametrize("count", [1, 2, 8, 300])
    def test_batches_in_the_arena_come_back_and_nothing_beside_them_is_touched(
        self, engine: Engine, count: int
    ) -> None:
        pages = make_pages(count, seed=count)
        memory = _filled(engine, np.full((count + 2, PAGE), 0xA5, np.uint8))
        memory[1:-1] = pages
        dsts = engine.arena(count + 2, 2 * PAGE - 100)
        restored = engine.arena(count + 2)
        dsts[[0, -1]] = restored[[0, -1]] = 0xA5
        batch = CompressBatch(memory[1:-1], dsts=dsts[1:-1])
        engine.compress(batch)
        check_compressed(engine, batch, pages)
        for submitted in (False, True):
            back = DecompressBatch((batch.dsts, batch.dlens), pages=restored[1:-1])
            if submitted:
                engine.submit(back).wait(SLACK_S)
            else:
                engine.decompress(back)
            check_restored(back, pages)
            restored[1:-1] = 0
        for untouched in (memory, dsts, restored):
            assert (untouched[[0, -1]] == 0xA5).all()

    def test_arena_and_private_memory_are_mixed_at_will(self, engine: Engine) -> None:
        pages = make_pages(200)
        for sources, dsts in (
            (_filled(engine, pages), None),
            (pages, engine.arena(200, 5000)),
            (list(_filled(engine, pages)), None),
        ):
            batch = CompressBatch(sources, dsts=dsts)
            engine.compress(batch)
            check_compressed(engine, batch, pages)
        back = DecompressBatch(batch.outputs(), pages=list(engine.arena(200)))
        engine.decompress(back)
        check_restored(back, pages)

    def test_an_output_that_does_not_fit_its_place_in_the_arena_is_enospc(
        self, engine: Engine
    ) -> None:
        pages = make_pages(300)
        dsts = engine.arena(302, 1700)
        dsts[[0, -1]] = 0xA5
        batch = CompressBatch(_filled(engine, pages), dsts=dsts[1:-1])
        engine.compress(batch)
        check_compressed(engine, batch, pages)
        assert np.count_nonzero(batch.errors == -errno.ENOSPC)
        assert (dsts[[0, -1]] == 0xA5).all()

    def test_an_array_is_of_zeros_and_writable_and_its_arguments_are_checked(
        self, engine: Engine
    ) -> None:
        for rows, width in ((1, 1), (3, 13), (5, PAGE)):
            array = engine.arena(rows, width)
            assert array.shape == (rows, width)
            assert array.dtype == np.uint8
            assert not array.any()
            array.fill(1)
            assert array.flags.c_contiguous
        assert engine.arena(2).shape == (2, PAGE)
        for name, arguments in (("rows", (0, 1)), ("width", (1, -1))):
            with pytest.raises(BadArgument, match=f"^{name} must be"):
                engine.arena(*arguments)
        with pytest.raises(OSError, match=r"\w") as failure:
            engine.arena(1 << 62)
        assert failure.value.errno in (errno.ENOMEM, errno.ENOSPC)

    def test_arrays_outlive_their_engine_which_gives_out_no_more(self) -> None:
        pages = make_pages(20)
        with Engine("lz4", backend=self.make_backend()) as engine:
            array = _filled(engine, pages)
        with pytest.raises(ClosedError):
            engine.arena(1)
        array[0] += 1
        np.testing.assert_array_equal(array[1:], pages[1:])

    # Verify

    @pytest.mark.parametrize("algorithm", ["lz4", "zstd"])
    def test_verified_pages_are_the_same_and_come_back(self, algorithm: str) -> None:
        with Engine(algorithm, backend=self.make_backend(), verify=True) as engine:
            engine.wait_ready(SLACK_S)
            for count in (1, 8, 300):
                pages = make_pages(count)
                check_round_trip(engine, pages)
                batch = engine.submit(CompressBatch(pages)).wait(SLACK_S)
                compress = make_codec(algorithm).compressor(PAGE)
                assert batch.outputs() == [compress(bytes(page)) for page in pages]

    # Statistics

    def test_what_is_done_is_counted_exactly(self, engine: Engine) -> None:
        before = engine.statistics
        sizes = [1, 2, 50, 300]
        produced: list[int] = []

        def work(seed: int) -> None:
            for count in sizes:
                pages = make_pages(count, seed=seed)
                batch = CompressBatch(pages)
                if seed % 2:
                    engine.compress(batch)
                else:
                    engine.submit(batch).wait(SLACK_S)
                back = DecompressBatch(batch.outputs())
                engine.decompress(back)
                check_restored(back, pages)
                produced.append(int(batch.dlens.sum()))

        in_threads(4, work)
        after = engine.statistics
        batches, pages = 4 * len(sizes), 4 * sum(sizes)
        total = sum(produced)
        assert _grown(before.compress, after.compress) == (batches, pages, pages * PAGE, total)
        assert _grown(before.decompress, after.decompress) == (batches, pages, total, pages * PAGE)
        assert after.errors == before.errors

    def test_errors_are_counted_by_code(self, engine: Engine) -> None:
        before = engine.statistics
        engine.compress(CompressBatch(make_pages(20), capacity=1))
        engine.submit(DecompressBatch([b"bad"] * 30)).wait(SLACK_S)
        after = engine.statistics
        for code, count in ((-errno.ENOSPC, 20), (-errno.EBADMSG, 30)):
            assert after.errors[code] - before.errors.get(code, 0) == count
        assert after.compress.pages - before.compress.pages == 20
        assert after.compress.bytes_out == before.compress.bytes_out

    def test_statistics_are_still_there_after_close(self) -> None:
        with Engine("lz4", backend=self.make_backend()) as engine:
            engine.wait_ready(SLACK_S)
            check_round_trip(engine, make_pages(200))
        statistics = engine.statistics
        assert statistics.compress.pages == statistics.decompress.pages == 200
        assert statistics.workers == ()
