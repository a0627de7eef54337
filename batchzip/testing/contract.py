"""The contract suite: one test for each promise of a backend.

The author of a backend writes in a test module:

    class TestMyBackend(BackendContract):
        @classmethod
        def make_backend(cls) -> Backend:
            return MyBackend(lanes=2)

and runs pytest. Each test's name is the promise that it checks. All tests run for every available
algorithm, and for a codec with a dictionary and a filter; `codecs` lists them. So a codec is tested
on the backend, too. Nothing is mocked: batches, threads and forks are real. Tests that do not
change the engine share one per algorithm. Those that close or fork it create their own.

The module with the class must be importable by its name, as in pytest's default import mode,
because forked children and the interpreter's exit are tested in a new interpreter. Results are
compared with those of the codec called directly, page by page (`Plain`).
"""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest

from batchzip.batch import CompressBatch, DecompressBatch
from batchzip.codecs import Codec, algorithms
from batchzip.engine import Engine
from batchzip.errors import BadArgument, ClosedError
from batchzip.testing.engine_contract import EngineContract
from batchzip.testing.leaks import LeakCheck, is_alive
from batchzip.testing.plain import (
    PAGE,
    SLACK_S,
    Plain,
    check_compressed,
    check_restored,
    check_round_trip,
    in_threads,
    make_layered_codec,
    make_pages,
)
from batchzip.testing.request_contract import RequestContract

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from batchzip.arguments.buffers import Bytes
    from batchzip.backend import Backend


class BackendContract(RequestContract, EngineContract):
    """Every promise of a backend. A subclass, called Test…, creates the backend.

    Examples:
        >>> from batchzip.testing import BackendContract
        >>> from batchzip_sequential import SequentialBackend
        >>> class TestSequential(BackendContract):  # pytest collects its tests
        ...     @classmethod
        ...     def make_backend(cls):
        ...         return SequentialBackend()
        >>> sum(name.startswith("test_") for name in dir(TestSequential)) > 30
        True
    """

    places: ClassVar = [0, 1, 149, 150, 298, 299]
    """Indices of bad pages in a batch of 300: at the beginning, in the middle and at the end."""

    codecs: ClassVar[Sequence[str | Callable[[], Codec]]] = [*algorithms(), make_layered_codec]
    """Codecs that the tests run with: names of algorithms, or functions that return a codec. A
    subclass with fewer codecs runs faster. The author of a codec lists that codec."""

    @classmethod
    def make_backend(cls) -> Backend:
        """Return a new backend, for each engine."""
        raise NotImplementedError("the subclass must return its backend from make_backend")

    @classmethod
    def make_engine(cls, algorithm: str | Codec = "lz4", page_size: int = PAGE) -> Engine:
        """Return an engine whose backend is ready."""
        engine = Engine(algorithm, backend=cls.make_backend(), page_size=page_size)
        engine.wait_ready(SLACK_S)
        return engine

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run the tests with every codec."""
        if "engine" in metafunc.fixturenames:
            metafunc.parametrize("engine", self.codecs, indirect=True, scope="class")
        elif "each_algorithm" in metafunc.fixturenames:
            names = [codec for codec in self.codecs if isinstance(codec, str)]
            metafunc.parametrize("each_algorithm", names)

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, request: pytest.FixtureRequest) -> Iterator[Engine]:
        """Yield one engine per algorithm, for all tests that do not change it."""
        codec = request.param() if callable(request.param) else request.param
        with LeakCheck(), cls.make_engine(codec) as engine:
            engine.submit(CompressBatch(make_pages(2))).wait()  # what starts with the first request
            workers = engine.worker_pids
            yield engine
            assert engine.worker_pids == workers, "good and bad input alike end no worker"

    # Round trips

    @pytest.mark.parametrize("count", [1, 2, 3, 8, 64, 257, 1000])
    def test_batches_of_every_size_come_back_byte_for_byte(
        self, engine: Engine, count: int
    ) -> None:
        check_round_trip(engine, make_pages(count, seed=count))

    @pytest.mark.parametrize("count", [1, 8, 257])
    @pytest.mark.parametrize(
        "form",
        [
            pytest.param(lambda pages: [bytes(page) for page in pages], id="bytes"),
            pytest.param(lambda pages: [memoryview(page) for page in pages], id="memoryviews"),
            pytest.param(lambda pages: pages.tobytes(), id="flat"),
        ],
    )
    def test_pages_in_every_form_come_back_byte_for_byte(
        self, engine: Engine, form: Callable[[Bytes], Any], count: int
    ) -> None:
        pages = make_pages(count, seed=count)
        batch = CompressBatch(form(pages), page_size=PAGE)
        engine.compress(batch)
        check_compressed(engine, batch, pages)
        back = DecompressBatch(batch.outputs())
        engine.decompress(back)
        check_restored(back, pages)

    @pytest.mark.parametrize("count", [1, 2, 257])
    @pytest.mark.parametrize("form", ["array", "rows", "flat"])
    def test_pages_are_restored_to_where_they_are_wanted_and_nowhere_else(
        self, engine: Engine, form: str, count: int
    ) -> None:
        pages = make_pages(count)
        srcs = Plain(engine).compress(pages)
        memory = np.full((count + 2, PAGE), 0xA5, np.uint8)
        wanted: dict[str, Any] = {
            "array": memory[1:-1],
            "rows": list(memory[1:-1]),
            "flat": memory[1:-1].reshape(-1),
        }
        engine.decompress(DecompressBatch(srcs, pages=wanted[form]))
        np.testing.assert_array_equal(memory[1:-1], pages)
        assert (memory[[0, -1]] == 0xA5).all()

    def test_sources_are_taken_as_the_array_and_lengths_that_compress_left(
        self, engine: Engine
    ) -> None:
        pages = make_pages(300)
        batch = CompressBatch(pages)
        engine.compress(batch)
        back = DecompressBatch((batch.dsts, batch.dlens.tolist()))
        engine.decompress(back)
        check_restored(back, pages)

    @pytest.mark.parametrize(
        ("page_size", "counts"), [(512, (8, 1000)), (65536, (5, 33)), (2 << 20, (3,))]
    )
    def test_pages_of_every_size_come_back(
        self, each_algorithm: str, page_size: int, counts: tuple[int, ...]
    ) -> None:
        with self.make_engine(each_algorithm, page_size) as engine:
            workers = engine.worker_pids
            for count in counts:
                check_round_trip(engine, make_pages(count, page_size=page_size))
            pages = make_pages(3, page_size=page_size)
            batch = CompressBatch([bytes(page) for page in pages])
            engine.compress(batch)
            check_compressed(engine, batch, pages)
            assert engine.worker_pids == workers, "good input ends no worker"

    # Errors of single pages

    def test_a_page_of_another_size_is_einval_and_hides_no_other(self, engine: Engine) -> None:
        pages: list[bytes] = [bytes(page) for page in make_pages(300)]
        sizes = [PAGE - 1, PAGE + 1, 0, 1, 2 * PAGE, 64 * PAGE]
        for place, size in zip(self.places, sizes, strict=True):
            pages[place] = b"x" * size
        batch = CompressBatch(pages, page_size=PAGE)
        engine.compress(batch)
        assert np.flatnonzero(batch.errors).tolist() == self.places
        assert (batch.errors[self.places] == -errno.EINVAL).all()
        assert not batch.dlens[self.places].any()
        plain = Plain(engine)
        for index, page in enumerate(pages):
            if index not in self.places:
                assert plain.restore(bytes(batch.output(index))) == page, index

    @pytest.mark.parametrize("capacity", [1, 100, 1700, PAGE, 5 * PAGE])
    def test_an_output_that_does_not_fit_is_enospc_and_nothing_beside_it_is_touched(
        self, engine: Engine, capacity: int
    ) -> None:
        pages = make_pages(300)
        memory = np.full((302, capacity), 0xA5, np.uint8)
        batch = CompressBatch(pages, dsts=memory[1:-1])
        engine.compress(batch)
        check_compressed(engine, batch, pages)  # no output ran into the next
        assert (memory[[0, -1]] == 0xA5).all()

    @pytest.mark.parametrize("rows", [False, True], ids=["array", "rows"])
    def test_an_undecodable_source_is_ebadmsg_leaves_its_page_and_hides_no_other(
        self, engine: Engine, rows: bool
    ) -> None:
        pages = make_pages(300)
        plain = Plain(engine)
        good = plain.compress(pages)
        half = engine.codec.compressor(PAGE // 2)(bytes(PAGE // 2))
        twice = engine.codec.compressor(2 * PAGE)(bytes(2 * PAGE))
        random = np.random.default_rng(5).bytes
        flipped = [bytearray(good[0]) for _ in range(0, len(good[0]), 97)]
        for number, changed in enumerate(flipped):
            changed[97 * number] ^= 1 << number % 8
        bad = [b"", b"\0", random(100), random(PAGE), bytes(PAGE), half, twice, good[0][:-1]]
        bad += [
            good[0][: len(good[0]) // 2],
            good[0] + b"x",
            good[0] + bytes(2 * PAGE),
            *map(bytes, flipped),
        ]
        bad += [random(64 * PAGE)]
        for number, src in enumerate(bad):
            srcs = list(good)
            for place in self.places:
                srcs[place] = src
            memory = np.full((302, PAGE), 0xA5, np.uint8)
            wanted = memory[1:-1]
            batch = DecompressBatch(srcs, pages=list(wanted) if rows else wanted)
            engine.decompress(batch)
            restored = plain.restore(src)
            code = 0 if restored is not None else -errno.EBADMSG
            expected = pages.copy()
            expected[self.places] = 0xA5 if restored is None else np.frombuffer(restored, np.uint8)
            assert set(batch.errors[self.places].tolist()) == {code}, number
            assert set(batch.dlens[self.places].tolist()) == {0 if code else PAGE}, number
            assert np.count_nonzero(batch.errors) == (len(self.places) if code else 0), number
            np.testing.assert_array_equal(wanted, expected, err_msg=str(number))
            assert (memory[[0, -1]] == 0xA5).all(), number

    def test_a_batch_of_nothing_but_errors_is_no_failure_of_the_batch(self, engine: Engine) -> None:
        batch = CompressBatch([b"x"] * 100, page_size=PAGE)
        engine.compress(batch)
        assert (batch.errors == -errno.EINVAL).all()
        back = DecompressBatch([b""] * 100)
        engine.decompress(back)
        assert (back.errors == -errno.EBADMSG).all()

    # One descriptor, several runs

    def test_a_batch_run_again_forgets_its_earlier_errors(self, engine: Engine) -> None:
        pages = make_pages(64)
        batch = CompressBatch([b"x", *map(bytes, pages[1:])], page_size=PAGE)
        engine.compress(batch)
        assert batch.errors[0] == -errno.EINVAL
        batch.refill(pages)
        engine.compress(batch)
        check_compressed(engine, batch, pages)

        srcs = [bytearray(output) for output in batch.outputs()]
        kept = bytes(srcs[3])
        srcs[3][:] = bytes(len(kept))
        back = DecompressBatch(srcs)
        engine.decompress(back)
        assert np.flatnonzero(back.errors).tolist() == [3]
        srcs[3][:] = kept
        engine.decompress(back)
        check_restored(back, pages)

    def test_a_refilled_descriptor_does_as_a_new_one(self, engine: Engine) -> None:
        batch = CompressBatch(make_pages(300))
        for seed, count in enumerate([300, 1, 299, 2, 150, 300]):
            pages = make_pages(count, seed=seed)
            batch.refill(pages)
            assert len(batch) == len(batch.dsts) == len(batch.dlens) == len(batch.errors) == count
            engine.compress(batch)
            check_compressed(engine, batch, pages)
            back = DecompressBatch((batch.dsts, batch.dlens.tolist()))
            engine.submit(back).wait(SLACK_S)
            check_restored(back, pages)

    # Threads

    def test_several_threads_each_get_their_own_results(self, engine: Engine) -> None:
        def work(seed: int) -> None:
            for turn in range(6):
                check_round_trip(engine, make_pages(1 + 41 * turn, seed=seed))
                pages = make_pages(30, seed=1000 + turn)
                check_compressed(engine, engine.submit(CompressBatch(pages)).wait(SLACK_S), pages)

        in_threads(4, work)

    # The end

    def test_close_finishes_what_is_under_way_and_may_be_called_again(self) -> None:
        engine = self.make_engine()
        work = [make_pages(100, seed=seed) for seed in range(6)]
        requests = [engine.submit(CompressBatch(pages)) for pages in work]
        engine.close()
        engine.close()
        for pages, request in zip(work, requests, strict=True):
            check_compressed(engine, request.wait(timeout_s=0), pages)

    def test_a_closed_engine_refuses_every_use(self) -> None:
        with self.make_engine() as engine:
            batch = CompressBatch(make_pages(8))
            engine.compress(batch)
            back = DecompressBatch(batch.outputs())
        uses: list[Callable[[], object]] = [
            lambda: engine.compress(batch),
            lambda: engine.decompress(back),
            lambda: engine.submit(batch),
            lambda: engine.compress_page(bytes(PAGE)),
            lambda: engine.decompress_page(b""),
            lambda: engine.arena(1),
            engine.wait_ready,
            engine.__enter__,
        ]
        for use in uses:
            with pytest.raises(ClosedError, match="closed"):
                use()
        assert not batch.errors.any()  # results of before stay

    def test_closing_under_running_threads_gives_each_batch_whole_or_refused(self) -> None:
        engine = self.make_engine()
        begun = threading.Barrier(4)

        def work(seed: int) -> None:
            begun.wait(SLACK_S)
            if seed == 0:
                time.sleep(0.02)
                engine.close()
                return
            while True:
                pages = make_pages(50, seed=seed)
                batch = CompressBatch(pages)
                try:
                    engine.compress(batch)
                except ClosedError:
                    return
                check_compressed(engine, batch, pages)

        in_threads(4, work)

    def test_a_backend_serves_one_engine(self) -> None:
        backend = self.make_backend()
        with Engine("lz4", backend=backend) as first:
            with pytest.raises(BadArgument, match="one for each engine"):
                Engine("lz4", backend=backend)
            check_round_trip(first, make_pages(64))
        with pytest.raises(BadArgument, match="one for each engine"):
            Engine("lz4", backend=backend)

    @pytest.mark.slow
    def test_a_forked_child_is_refused_and_no_end_of_a_process_does_harm(self) -> None:
        done = subprocess.run(  # noqa: S603 - this very interpreter
            [
                sys.executable,
                "-c",
                _FORKING,
                json.dumps(sys.path),
                self.__module__,
                type(self).__qualname__,
            ],
            capture_output=True,
            text=True,
            timeout=SLACK_S,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        deadline = time.monotonic() + 5
        workers = [int(pid) for pid in done.stdout.split()]
        while any(map(is_alive, workers)):
            assert time.monotonic() < deadline, "workers outlive their owner"
            time.sleep(0.01)


_FORKING = """
import functools, importlib, json, os, sys, warnings
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
sys.path[:] = json.loads(sys.argv[1])
binding = functools.reduce(getattr, sys.argv[3].split("."), importlib.import_module(sys.argv[2]))
from batchzip import CompressBatch, DecompressBatch, ForkedProcess
from batchzip.testing.plain import check_round_trip, make_pages

def use_in_child(engine, batch):
    back = DecompressBatch(batch.outputs())
    for use in (
        lambda: engine.compress(batch),
        lambda: engine.decompress(back),
        lambda: engine.submit(batch),
        lambda: engine.compress_page(bytes(4096)),
        lambda: engine.decompress_page(b""),
        lambda: engine.arena(1),
        lambda: engine.statistics,
        engine.wait_ready,
        engine.__enter__,
    ):
        try:
            use()
        except ForkedProcess:
            continue
        os._exit(1)
    engine.close()

engine = binding.make_engine()
batch = CompressBatch(make_pages(100))
engine.compress(batch)
engine.submit(batch).wait()
pids = engine.worker_pids
for leave in (os._exit, sys.exit):
    child = os.fork()
    if child == 0:
        use_in_child(engine, batch)
        leave(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, leave
    check_round_trip(engine, make_pages(300))
    assert engine.worker_pids == pids, "a child's exit ended a worker"
requests = [engine.submit(CompressBatch(make_pages(300))) for _ in range(5)]
print(*pids)
"""
"""A program that forks twice, and ends with its engine open and requests in progress."""
