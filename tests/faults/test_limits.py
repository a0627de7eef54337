"""Limits of the system: on descriptors, threads, processes, addresses, bytes of a file.

Each test lets a little life (life.py) meet the limit at every place where it may be.
"""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pytest
from support.forked import in_forked_child
from support.life import live

from batchzip import (
    BatchzipError,
    CompressBatch,
    CompressedMapping,
    Engine,
    LimitReached,
    RequestTimeout,
    SwapStore,
)
from batchzip.store.remote import view
from batchzip.testing import LeakCheck
from batchzip.testing.plain import make_pages
from batchzip_workers import backend as workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

MIB = 1 << 20

_USER = 54_321
"""A user who has no process."""


@pytest.fixture(scope="module", autouse=True)
def imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Have everything imported: what Python's imports make of a limit is not ours."""
    for backend in ("sequential", "threads", "workers"):
        folder = tmp_path_factory.mktemp(backend)
        assert live(backend, folder, free_descriptors(200)) == []


@contextmanager
def free_descriptors(count: int) -> Iterator[None]:
    """Leave so many descriptors that can be had."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    top = max(map(int, os.listdir("/proc/self/fd")))  # noqa: PTH208 - one descriptor less
    held = []
    while (fd := os.open(os.devnull, os.O_RDONLY)) < top:
        held.append(fd)
    os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (fd + count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for fd in held:
            os.close(fd)


@contextmanager
def limited(which: int, value: int) -> Iterator[None]:
    before = resource.getrlimit(which)
    resource.setrlimit(which, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(which, before)


@contextmanager
def free_addresses(size: int) -> Iterator[None]:
    """Leave so many bytes of addresses that can be had."""
    used = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    with limited(resource.RLIMIT_AS, used + size):
        yield


@contextmanager
def threads_that_start(count: int) -> Iterator[None]:
    """Let so many threads of Python start."""
    started: list[threading.Thread] = []

    def start(thread: threading.Thread) -> None:
        if len(started) >= count:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        before(thread)

    with pytest.MonkeyPatch.context() as patch:
        before = threading.Thread.start
        patch.setattr(threading.Thread, "start", start)
        yield
    started.clear()


@contextmanager
def few_processes(count: int) -> Iterator[None]:
    """Be a user who may have so many processes and threads; root may have any number."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(_USER)
        os.setuid(_USER)
    with limited(resource.RLIMIT_NPROC, count), pytest.MonkeyPatch.context() as patch:
        # That user may not be allowed to run this Python, and then no worker would start.
        patch.setattr(workers, "why_no_python", lambda: None)
        yield


BACKENDS = pytest.mark.parametrize("backend", ["sequential", "threads", "workers"])


def lives(
    backend: str, folder: Path, limits: Iterable[AbstractContextManager[object]], **how: Any
) -> list[str]:
    """Live a life under each limit, in a process of its own each. Return what they made fail."""
    with tempfile.TemporaryFile("w+b", buffering=0) as told:
        for number, limit in enumerate(limits):
            place = folder / str(number)
            place.mkdir()
            place.chmod(0o777)
            in_forked_child(partial(_tell, told, backend, place, limit, **how))
        told.seek(0)
        return told.read().decode().splitlines()


def _tell(
    told: BinaryIO, backend: str, folder: Path, limit: AbstractContextManager[object], **how: Any
) -> None:
    told.write("".join(f"{line}\n" for line in live(backend, folder, limit, **how)).encode())


@BACKENDS
@pytest.mark.slow
def test_a_program_without_descriptors_names_the_limit_and_loses_nothing(
    backend: str, tmp_path: Path
) -> None:
    counts = range(0, 28, 1 if backend == "sequential" else 3)
    failed = lives(backend, tmp_path, map(free_descriptors, counts), patience_s=0.05)
    assert any("SwapStore: LimitReached" in line and "RLIMIT_NOFILE" in line for line in failed)
    assert any("_read_elsewhere" in line for line in failed)


@pytest.mark.slow
@BACKENDS
def test_files_may_not_be_large(backend: str, tmp_path: Path) -> None:
    """Shared memory counts, too."""
    sizes = 0, 1, 65536, 2 * MIB, 3 * MIB, 5 * MIB
    limits = [limited(resource.RLIMIT_FSIZE, size) for size in sizes]
    failed = lives(backend, tmp_path, limits)
    assert any("SwapStore: LimitReached" in line and "RLIMIT_FSIZE" in line for line in failed)


@pytest.mark.slow
@BACKENDS
def test_no_thread_can_be_started(backend: str, tmp_path: Path) -> None:
    failed = lives(backend, tmp_path, map(threads_that_start, range(6)))
    assert {line.partition(":")[0] for line in failed} == {"_read_elsewhere"}
    assert all("no thread can be started (can't start new thread)" in line for line in failed)


@pytest.mark.slow
def test_without_a_thread_the_caller_writes_cold_pages_back(tmp_path: Path) -> None:
    pages = np.ascontiguousarray(make_pages(40)[0::5])
    with Engine("lz4", backend="sequential") as engine:
        store = SwapStore(engine, max_pool_bytes=1 << 18, backing=tmp_path / "file")
        with store, threads_that_start(0):
            for first in range(0, 1000, len(pages)):
                store.store(first, pages)
            assert store.counters.written_back_pages
            assert store.counters.pool_total_size <= 1 << 18
            assert (store.load_many(range(1000)) == np.tile(pages, (125, 1))).all()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@BACKENDS
def test_a_user_may_have_no_more_threads_and_processes(backend: str) -> None:
    limits = [few_processes(number) for number in range(1, 6)]
    with tempfile.TemporaryDirectory() as folder:  # one that others may enter
        Path(folder).chmod(0o777)
        failed = lives(backend, Path(folder), limits)
    assert {line.partition(":")[0] for line in failed} == {"_read_elsewhere"}
    assert any("RLIMIT_NPROC" in line for line in failed)


@BACKENDS
@pytest.mark.slow
def test_a_program_without_address_space_names_the_limit_and_loses_nothing(
    backend: str, tmp_path: Path
) -> None:
    """Python itself is short of memory then, too."""
    step = MIB if backend == "sequential" else 3 * MIB
    limits = map(free_addresses, range(0, 16 * MIB, step))
    failed = lives(backend, tmp_path, limits, may_fail=(BatchzipError, MemoryError), patience_s=0.5)
    assert any("SwapStore: LimitReached" in line and "RLIMIT_AS" in line for line in failed)


@pytest.mark.slow
@BACKENDS
def test_locked_memory_and_stacks_may_be_of_any_size(backend: str, tmp_path: Path) -> None:
    limits = [
        limited(resource.RLIMIT_MEMLOCK, 0),
        limited(resource.RLIMIT_STACK, resource.RLIM_INFINITY),
        limited(resource.RLIMIT_STACK, 1 << 40),
    ]
    assert lives(backend, tmp_path, limits) == []


def each_call(
    engine: Engine, second: Engine, store: SwapStore, folder: Path
) -> dict[str, tuple[Callable[[], object], bool]]:
    """Return public calls, and whether they need descriptors; what they make they close."""
    mapping = CompressedMapping(store, name="values")
    mapping["key"] = bytes(range(256)) * 100
    pages = make_pages(12, seed=3)
    return {
        "store": (lambda: store.store(500, pages), False),
        "load": (lambda: store.load(500), False),
        "load_many": (lambda: store.load_many(range(500, 512)), False),
        "put": (lambda: mapping.__setitem__("other", bytes(range(256)) * 50), False),
        "get": (lambda: mapping["key"], False),
        "check": (store.check, False),
        "compact": (store.compact, False),
        "writeback": (lambda: store.writeback(3), False),
        "recompress": (lambda: store.recompress(second), False),
        "counters": (lambda: (store.counters, store.status(), store.classes()), False),
        "group": (lambda: store.group("new").close(), False),
        "compress": (lambda: engine.compress(CompressBatch(pages)), False),
        "submit": (lambda: engine.submit(CompressBatch(pages)).wait(), False),
        # From Python 3.13 on, a mapping keeps no descriptor.
        "arena": (
            lambda: engine.arena(3),
            engine.backend.name == "workers" and sys.version_info < (3, 13),
        ),
        "sequential": (lambda: Engine("lz4", backend="sequential").close(), False),
        "threads": (lambda: Engine("lz4", backend="threads", workers=1).close(), False),
        "workers": (lambda: Engine("lz4", backend="workers", workers=1).close(), True),
        "SwapStore": (lambda: SwapStore(engine).close(), True),
        "path": (lambda: SwapStore(engine, backing=folder / "path").close(), True),
        "folder": (lambda: SwapStore(engine, backing=folder).close(), True),
        "share": (lambda: SwapStore.share(store).attach().close(), True),
    }


@pytest.mark.slow
@BACKENDS
def test_each_call_with_any_number_of_free_descriptors_works_or_names_the_limit(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "_ANSWER_S", 0.2)
    options: dict[str, Any] = {} if backend == "sequential" else {"workers": 1}
    with (
        Engine("lz4", backend=backend, **options) as engine,
        Engine("zstd", backend="sequential") as second,
        SwapStore(engine, backing=tmp_path / "file") as store,
    ):
        assert engine.wait_ready()
        store.store(0, make_pages(40))
        for name, (call, needs_some) in each_call(engine, second, store, tmp_path).items():
            call()
            failed = 0
            for count in range(21):
                gc.collect()
                with LeakCheck(ignore="batchzip-share|eventfd|socket"), free_descriptors(count):
                    try:
                        call()
                    except (LimitReached, RequestTimeout):
                        failed += 1
                    else:
                        break
            assert bool(failed) is needs_some, name
            assert failed < 20, name
        store.check_invariants()
        assert store.load_many(range(40)).tobytes() == make_pages(40).tobytes()
    assert not list(tmp_path.iterdir())


FIRST_USE = """
import importlib.metadata, inspect, os, resource, sys
import batchzip
from batchzip import CompressBatch, Engine, LimitReached, SwapStore
from batchzip.core.libraries import libraries
import batchzip.codecs.lz4, batchzip_sequential
before = resource.getrlimit(resource.RLIMIT_NOFILE)
fds = [os.open(os.devnull, os.O_RDONLY) for _ in range({free} + 1)]
if {known}:
    batchzip.algorithms(), batchzip.backends()
resource.setrlimit(resource.RLIMIT_NOFILE, (fds[-1] + 1, before[1]))
for fd in fds[1:]:
    os.close(fd)
try:
    Engine("lz4", backend="sequential").close()
except LimitReached as error:
    assert "RLIMIT_NOFILE" in str(error)
found = [library.problem for library in libraries()]
resource.setrlimit(resource.RLIMIT_NOFILE, before)
with Engine("lz4") as engine, SwapStore(engine) as store:
    store.store(0, bytes(4096))
assert all(library.problem is None for library in libraries()), libraries()
print(any(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize("known", [False, True], ids=["nothing", "plug-ins"])
def test_a_first_use_without_descriptors_breaks_no_later_one(known: bool) -> None:
    """What is looked for then is not taken for what is not there."""
    out = []
    for free in (0, 4):
        source = FIRST_USE.format(free=free, known=known)
        done = subprocess.run(
            [sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        out.append(done.stdout.strip())
    assert out[0] == "True"
    assert out[-1] == "False"
