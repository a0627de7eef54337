"""Engine: what it is made of, what it refuses, and single pages."""

from __future__ import annotations

import errno
import gc
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest

import batchzip
from batchzip import (
    BackendUnavailable,
    BadArgument,
    BadBatch,
    CompressBatch,
    DecompressBatch,
    Engine,
    PageError,
    UnknownAlgorithm,
    UnknownBackend,
    backend,
)
from batchzip.backend import is_native
from batchzip.codecs import make_codec
from batchzip.codecs.lz4 import Lz4
from batchzip.codecs.zstd import Zstd
from batchzip.system import cpus
from batchzip_sequential import SequentialBackend

PAGE = bytes(range(256)) * 16
BACKENDS = ("sequential", "threads", "workers")
"""Those that need nothing besides this machine."""


def check_it_works(engine: Engine) -> None:
    batch = CompressBatch([PAGE] * 20)
    engine.compress(batch)
    back = DecompressBatch(batch.outputs())
    engine.decompress(back)
    assert bytes(back.pages[19]) == PAGE


def test_backends_and_algorithms_are_listed_by_name() -> None:
    assert {"dask", *BACKENDS} <= set(batchzip.backends())
    assert {"lz4", "zstd"} <= set(batchzip.algorithms())
    assert batchzip.backends() == sorted(batchzip.backends())
    assert batchzip.algorithms() == sorted(batchzip.algorithms())


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_every_name_makes_an_engine_that_works(backend: str) -> None:
    for algorithm in batchzip.algorithms():
        if backend == "threads" and not is_native(make_codec(algorithm)):
            with pytest.raises(BackendUnavailable, match=f"{algorithm} .* use backend='workers'"):
                Engine(algorithm, backend=backend)
            continue
        with Engine(algorithm, backend=backend) as engine:
            assert backend in (engine.backend.name, "auto")
            assert engine.batch_size >= 1
            check_it_works(engine)


def test_an_unknown_backend_is_told_which_there_are_auto_included() -> None:
    with pytest.raises(UnknownBackend, match=r"'gpu'; known: .*auto.*sequential.*workers"):
        Engine("lz4", backend="gpu")


def test_an_unknown_algorithm_is_told_which_there_are() -> None:
    with pytest.raises(UnknownAlgorithm, match=r"'lzo'; known: .*lz4.*zstd"):
        Engine("lzo", backend="sequential")


def test_an_unknown_parameter_is_told_which_there_are() -> None:
    with pytest.raises(BadArgument, match=r"lz4 has no parameter 'level'.*acceleration"):
        Engine("lz4", backend="sequential", level=3)


@pytest.mark.parametrize("page_size", [0, -4096, 256, 4095, 6144, 4 << 20, 4096.0, "4096", None])
def test_a_page_size_is_a_power_of_two_in_range(page_size: int) -> None:
    with pytest.raises(BadArgument, match="power of two from 512 to 2097152"):
        Engine("lz4", backend="sequential", page_size=page_size)


def test_a_batch_of_another_page_size_is_refused_with_both() -> None:
    with Engine("lz4", backend="sequential") as engine:
        for batch in (CompressBatch(bytes(8192), page_size=8192), CompressBatch([bytes(512)])):
            for use in (engine.compress, engine.submit):
                with pytest.raises(BadBatch, match=f"must have pages of .* not {batch.page_size}"):
                    use(batch)
        with pytest.raises(BadBatch, match="not 8192"):
            engine.decompress(DecompressBatch([b"x"], page_size=8192))


def test_a_refused_batch_keeps_the_results_it_has() -> None:
    batch = CompressBatch([PAGE])
    with Engine("lz4", backend="sequential") as engine:
        engine.compress(batch)
        before = bytes(batch.output(0))
    with Engine("lz4", backend="sequential", page_size=512) as other:
        with pytest.raises(BadBatch):
            other.compress(batch)
        assert batch.output(0) == before


def test_the_wrong_kind_of_batch_is_refused() -> None:
    compress, decompress = CompressBatch([PAGE]), DecompressBatch([b"x"])
    with Engine("lz4", backend="sequential") as engine:
        with pytest.raises(BadBatch, match="CompressBatch, not DecompressBatch"):
            engine.compress(decompress)  # type: ignore[arg-type]
        with pytest.raises(BadBatch, match="DecompressBatch, not CompressBatch"):
            engine.decompress(compress)  # type: ignore[arg-type]
        with pytest.raises(BadBatch, match="not list"):
            engine.submit([PAGE])  # type: ignore[type-var]


@pytest.mark.parametrize("workers", [0, -1, 1.5, "2"])
def test_workers_is_a_number_of_at_least_one(workers: int) -> None:
    with pytest.raises(BadArgument, match="workers must be an integer in 1…1024"):
        Engine("lz4", workers=workers)


def test_a_backend_made_by_hand_brings_its_own_workers() -> None:
    backend = SequentialBackend()
    with pytest.raises(BadArgument, match="to the backend instance"):
        Engine("lz4", backend=backend, workers=1)
    with Engine("lz4", backend=backend) as engine:  # it was not taken by what was refused
        check_it_works(engine)


def test_a_codec_made_by_hand_brings_its_own_parameters() -> None:
    with pytest.raises(BadArgument, match="to the codec instance"):
        Engine(Zstd(5), backend="sequential", level=3)
    with Engine(Zstd(5), backend="sequential") as engine:
        assert engine.codec == Zstd(5)
        check_it_works(engine)


def test_parameters_reach_the_codec() -> None:
    with Engine("lz4", backend="sequential", high_compression=9) as engine:
        assert engine.codec == Lz4(high_compression=9)
        check_it_works(engine)


@pytest.mark.slow
def test_workers_is_the_number_of_processes() -> None:
    with Engine("lz4", backend="workers", workers=2) as engine:
        assert engine.wait_ready(60)
        assert len(set(engine.worker_pids)) == 2
        assert engine.batch_size > 2
    assert engine.worker_pids == ()


def test_auto_is_sequential_where_there_is_one_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "usable_cpus", lambda: 1)
    with Engine("lz4") as engine:
        assert engine.backend.name == "sequential"
        assert engine.worker_pids == ()
        assert engine.batch_size == 1
        check_it_works(engine)


@pytest.mark.parametrize(("algorithm", "name"), [("lz4", "threads"), ("deflate", "workers")])
def test_auto_suits_the_codec_where_there_are_more_or_workers_are_asked_for(
    algorithm: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads run C functions, and processes what is Python."""
    monkeypatch.setattr(backend, "usable_cpus", lambda: 2)
    monkeypatch.setattr(cpus, "usable_cpus", lambda: 2)
    with Engine(algorithm) as engine:
        assert engine.backend.name == name
        assert engine.wait_ready(60)
        assert len(engine.worker_pids) == (name == "workers")
        check_it_works(engine)
    monkeypatch.setattr(backend, "usable_cpus", lambda: 1)
    with Engine(algorithm, workers=1) as engine:
        assert engine.backend.name == name


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["lz4", "deflate"])
def test_auto_is_sequential_in_a_process_that_may_use_one_cpu(algorithm: str) -> None:
    source = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        "import batchzip\n"
        f"with batchzip.Engine({algorithm!r}) as engine: print(engine.backend.name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("sequential\n", "")


@pytest.mark.parametrize("algorithm", batchzip.algorithms())
def test_a_single_page_comes_back(algorithm: str) -> None:
    with Engine(algorithm, backend="sequential") as engine:
        for page in (PAGE, bytes(4096), np.random.default_rng(1).bytes(4096)):
            output = engine.compress_page(page)
            assert type(output) is bytes
            batch = CompressBatch([page])
            engine.compress(batch)
            assert batch.output(0) == output
            for src in (output, memoryview(output), bytearray(output)):
                assert engine.decompress_page(memoryview(src)) == page


def test_a_single_page_is_any_buffer_of_a_page() -> None:
    array = np.frombuffer(PAGE, np.uint8)
    with Engine("lz4", backend="sequential") as engine:
        expected = engine.compress_page(PAGE)
        for page in (
            bytearray(PAGE),
            memoryview(PAGE),
            array,
            array.reshape(64, 64),
            array.view("u4"),
        ):
            assert engine.compress_page(page) == expected
        with pytest.raises(BadBatch, match="contiguous"):
            engine.compress_page(np.zeros(8192, np.uint8)[::2])
        with pytest.raises(BadBatch, match="must be a buffer"):
            engine.compress_page("page")  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, 1, 4095, 4097, 8192])
def test_a_single_page_of_another_size_is_einval(size: int) -> None:
    with Engine("lz4", backend="sequential") as engine:
        for page in (bytes(size), bytearray(size)):
            with pytest.raises(PageError) as refused:
                engine.compress_page(page)
            assert refused.value.errno == -errno.EINVAL


@pytest.mark.parametrize("algorithm", batchzip.algorithms())
def test_a_single_source_that_is_no_page_is_ebadmsg(algorithm: str) -> None:
    with Engine(algorithm, backend="sequential") as engine:
        good = engine.compress_page(PAGE)
        short = engine.codec.compressor(512)(PAGE[:512])
        long = engine.codec.compressor(8192)(PAGE * 2)
        for src in (b"", b"x", good[:-1], good + b"x", short, long, bytes(1 << 20)):
            with pytest.raises(PageError, match="Bad message") as refused:
                engine.decompress_page(src)
            assert refused.value.errno == -errno.EBADMSG
        assert engine.decompress_page(good) == PAGE


def test_its_repr_says_what_it_is() -> None:
    with Engine("zstd", level=1, backend="sequential") as engine:
        assert repr(engine) == "<Engine Zstd(level=1) on sequential, 4096 B pages>"


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_engine_that_is_lost_is_closed(backend: str) -> None:
    engine = Engine("lz4", backend=backend)
    check_it_works(engine)
    reference = weakref.ref(engine.backend)
    del engine
    gc.collect()
    assert reference() is None  # and LeakCheck sees its workers gone


def test_an_engine_that_could_not_be_made_leaves_nothing_to_close() -> None:
    with pytest.raises(BadArgument):
        Engine("lz4", page_size=1)
    with pytest.raises(BadArgument):
        Engine("zstd", level=99)
    gc.collect()  # __del__ of the half-made ones raises nothing


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_last_reference_to_an_engine_may_go_in_a_callback(backend: str) -> None:
    engine = Engine("lz4", backend=backend)
    engine.wait_ready(60)
    gone, held = threading.Event(), threading.Event()
    request = engine.submit(CompressBatch(np.zeros((2000, 4096), np.uint8)))

    def lose(keep: list[Engine]) -> None:
        held.wait(60)
        keep.clear()
        gone.set()

    keep = [engine]
    del engine
    if request.done():
        held.set()  # the callback comes in this thread
    threading.Timer(0.05, held.set).start()
    request.add_done_callback(lambda _: lose(keep))
    assert gone.wait(60)
