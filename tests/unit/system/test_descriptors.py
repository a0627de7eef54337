"""batchzip's descriptors are never standard ones, go with their owners, and are closed once."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support.forked import in_forked_child

from batchzip import BadArgument, CompressBatch, CompressedMapping, Engine, SwapStore, attach
from batchzip.pool import Pool
from batchzip.system.arena import Arena
from batchzip.system.segment import Segment

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BEGIN = """
import os, sys, threading
import batchzip
from batchzip import CompressBatch, Engine, SwapStore
from batchzip.system.descriptors import above_standard, moved_above_standard
from batchzip.store import attach
report = open(sys.argv[1], "w")
for fd in {closed}:
    os.close(fd)
def ours():
    return [fd for fd in {closed} if os.path.lexists(f"/proc/self/fd/{{fd}}")]
def of_workers(engine):
    links = [f"/proc/{{pid}}/fd/{{fd}}" for pid in engine.worker_pids for fd in range(3)]
    found = [os.readlink(link) for link in links]
    return [target for target in found if target.startswith(("/memfd", "socket", "anon"))]
"""

USES = {
    "a store": """
store = SwapStore(Engine("lz4", backend="sequential"))
store.store(0, [os.urandom(4096)] * 100)
assert store.load(5)
""",
    "a store with a backing file": """
store = SwapStore(Engine("lz4", backend="sequential"), backing=sys.argv[2], max_pool_bytes=1 << 16)
store.store(0, [os.urandom(4096) for _ in range(200)])
assert store.load(5)
""",
    "a store with an unnamed backing file": """
engine = Engine("lz4", backend="sequential")
store = SwapStore(engine, backing=os.path.dirname(sys.argv[2]), max_pool_bytes=1 << 16)
store.store(0, [os.urandom(4096) for _ in range(200)])
assert store.load(5)
""",
    "a shared store and its reader": """
store = SwapStore(Engine("lz4", backend="sequential"))
store.store(0, [bytes([n]) * 1000 + os.urandom(3096) for n in range(100)])
share = store.share()
view = attach(share)
assert view.load(5) == store.load(5)
""",
    "workers and an arena": """
engine = Engine("lz4", backend="workers", workers=2)
assert engine.wait_ready()
arrays = [engine.arena(10) for _ in range(10)]
batch = CompressBatch(arrays[0])
engine.compress(batch)
assert not batch.has_errors
assert not of_workers(engine)
""",
    "a worker in the place of one that was killed": """
import signal, time
engine = Engine("lz4", backend="workers", workers=1)
assert engine.wait_ready()
before = engine.worker_pids
os.kill(*before, signal.SIGKILL)
while engine.worker_pids in (before, ()): time.sleep(0.001)
assert engine.wait_ready()
assert not of_workers(engine)
""",
    "a mapping, a group of a view, a request": """
engine = Engine("lz4", backend="threads", workers=1)
store = SwapStore(engine)
mapping = batchzip.CompressedMapping(store, name="values")
mapping["key"] = bytes(100_000)
view = attach(store.share())
group = view.group("values")
assert group.counters.stored_values
assert not engine.submit(CompressBatch([bytes(4096)] * 100)).wait().has_errors
assert store.check().ok and store.recompress("zstd") is not None
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("closed", [(0, 1, 2), (1,)], ids=str)
@pytest.mark.parametrize("use", USES)
def test_nothing_of_ours_is_a_standard_descriptor(
    use: str, closed: tuple[int, ...], tmp_path: Path
) -> None:
    report = run(BEGIN.format(closed=closed) + USES[use], tmp_path)
    assert report == "[]"


@pytest.mark.slow
def test_many_threads_make_descriptors_at_once(tmp_path: Path) -> None:
    source = (
        BEGIN.format(closed=(0, 1, 2))
        + """
low = []
def make():
    for _ in range(300):
        with above_standard():
            fd = os.memfd_create("mine")
            if fd < 3:
                low.append(fd)
        os.close(fd)
threads = [threading.Thread(target=make) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not low
"""
    )
    assert run(source, tmp_path) == "[]"


MOMENTS = {
    "looks": """
def leave_then(fd, look=descriptors._is_open):
    found = look(fd)
    if fd == 2:
        in_a_thread(descriptors._plugs.leave)
    return found
assert descriptors._plugs.take()
descriptors._is_open = leave_then
use()
if descriptors._plugs._users:
    descriptors._plugs.leave()
""",
    "closes": """
others, looked, left = [], threading.Event(), threading.Event()
def look_then(fd, look=descriptors._is_open):
    found = look(fd)
    if fd == 2:
        looked.set()
        left.wait()
    return found
def start_then(fd, close=os.close):
    if not others:
        others.append(threading.Thread(target=use))
        others[0].start()
        looked.wait(0.5)  # it cannot look before this one has left
    close(fd)
assert descriptors._plugs.take()
descriptors._is_open = look_then
os.close = start_then
descriptors._plugs.leave()
left.set()
others[0].join()
""",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_no_user_gets_a_standard_number_while_others_leave(moment: str, tmp_path: Path) -> None:
    source = (
        BEGIN.format(closed=(0, 1, 2))
        + """
from batchzip.system import descriptors
made = []
def use():
    with above_standard():
        made.append(os.memfd_create("mine"))
def in_a_thread(call):
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
"""
        + MOMENTS[moment]
        + """
if made[0] < 3:
    os._exit(3)
"""
    )
    assert run(source, tmp_path) == "[]"


@pytest.mark.slow
def test_a_descriptor_can_be_moved(tmp_path: Path) -> None:
    source = (
        BEGIN.format(closed=(0,))
        + """
fd = os.memfd_create("mine")
assert fd == 0
os.write(fd, b"text")
fd = moved_above_standard(fd)
assert fd > 2 and os.pread(fd, 4, 0) == b"text" and not os.get_inheritable(fd)
assert moved_above_standard(fd) == fd
os.close(fd)
"""
    )
    assert run(source, tmp_path) == "[]"


# Whose a number is


@pytest.mark.slow
def test_a_forked_child_closes_no_file_of_the_program_after_a_store_was_closed(
    store: SwapStore,
) -> None:
    store.store(0, bytes(4096))
    with attach(store.share()):
        store.close()
        fds = [
            os.memfd_create("mine") for _ in range(20)
        ]  # they have the numbers that close() freed

        def use_all() -> None:
            for fd in fds:
                os.write(fd, b"x")

        in_forked_child(use_all)
        for fd in fds:
            os.close(fd)


@pytest.mark.slow
def test_numbers_that_the_program_closed_and_has_again_are_the_programs(tmp_path: Path) -> None:
    """As a daemon does it that closes all numbers it does not know."""
    source = """
import os, sys
import batchzip
from batchzip.store.remote import share_server
share_server._END_S = 0.01  # its thread sleeps on numbers that are none
store = batchzip.SwapStore(batchzip.Engine("lz4", backend="sequential"))
store.store(0, bytes(4096))
batchzip.attach(store.share()).close()
server = store._servers[0]
while server._readers: pass
of_server = [server._bell.fileno(), server._listener.fileno(), server._path.fileno()]
own = os.open(sys.argv[1] + "/file", os.O_RDWR | os.O_CREAT)
for fd in of_server:
    os.dup2(own, fd)
def use_all():
    for fd in of_server:
        assert os.write(fd, b"x")
pid = os.fork()
if pid == 0:
    try:
        use_all()
        del store, server
        use_all()
    except BaseException:
        os._exit(1)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
store.close()
use_all()
print("ok", flush=True)
os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", source, tmp_path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("ok\n", "")


# What is lost


def lose_a_view(engine: Engine, _: Path) -> None:
    with SwapStore(engine) as store:
        store.group("one").store(0, bytes(4096))
        store.store(0, bytes(4096))
        view = attach(store.share())
        assert view.load(0) == view.group("one").load(0)


def lose_a_shared_store(engine: Engine, folder: Path) -> None:
    store = SwapStore(engine, backing=folder / "file", max_pool_bytes=0)
    store.group("one").store(0, [os.urandom(4096)] * 20)
    store.share()


def lose_a_mapping_and_its_store(engine: Engine, folder: Path) -> None:
    store = SwapStore(engine, backing=folder)
    mapping = CompressedMapping(store, name="values")
    mapping["key"] = os.urandom(10_000)
    itself = [mapping]
    itself.append(itself)  # type: ignore[arg-type] # as garbage is


def lose_an_engine_with_threads(_: Engine, __: Path) -> None:
    lost = Engine("lz4", backend="threads", workers=2)
    lost.submit(CompressBatch([bytes(4096)] * 100)).wait()


def lose_an_engine_with_workers(_: Engine, __: Path) -> None:
    lost = Engine("lz4", backend="workers", workers=1)
    assert lost.wait_ready()
    arrays = [lost.arena(10) for _ in range(5)]
    lost.compress(CompressBatch(arrays[0]))


def lose_segments(_: Engine, __: Path) -> None:
    segment = Segment(100_000, reserve=True)
    Segment.attach(os.dup(segment.fd))
    arena = Arena()
    arena.array(10, 4096)[:] = 1
    pool = Pool()
    pool.put(b"object")


def lose_what_could_not_be_made(engine: Engine, folder: Path) -> None:
    with pytest.raises(BadArgument):
        SwapStore(engine, backing=[])
    with pytest.raises(FileNotFoundError):
        SwapStore(engine, backing=folder / "no" / "file")
    with pytest.raises(FileNotFoundError):
        attach(f"/proc/{os.getpid()}/fd/100000")


@pytest.mark.slow
@pytest.mark.parametrize(
    "lose",
    [
        lose_a_view,
        lose_a_shared_store,
        lose_a_mapping_and_its_store,
        lose_an_engine_with_threads,
        lose_an_engine_with_workers,
        lose_segments,
        lose_what_could_not_be_made,
    ],
)
def test_objects_lost_without_a_close_leave_no_descriptor(
    lose: Callable[[Engine, Path], None], engine: Engine, tmp_path: Path
) -> None:
    """The check that each test has finds threads, processes and mappings, too."""
    lose(engine, tmp_path)
    gc.collect()


def run(source: str, folder: Path) -> str:
    """Run a script with descriptors closed; what it has in their place at its end."""
    report = folder / "report"
    source += "\nfound = ours()\nreport.write(str(found))\nreport.close()\n"
    subprocess.run(
        [sys.executable, "-c", source, report, folder / "backing"], timeout=60, check=True
    )
    return report.read_text()


DAEMON = """
import gc, os, sys, batchzip
old = batchzip.Engine("lz4", backend="workers", workers=1)
others = [batchzip.Engine("lz4", backend="threads", workers=1), batchzip.SwapStore(old)]
others[1].store(0, [b"a" * 4096] * 4)
others.append(batchzip.attach(str(others[1].share())))
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
os.setsid()
os.closerange(3, 1000)
engine = batchzip.Engine("lz4", backend="workers", workers=1)
assert engine.wait_ready(10)
with engine, batchzip.SwapStore(engine) as store:
    store.store(0, [b"b" * 4096] * 4)
    store.share()
    if sys.argv[1] == "close":
        for each in (*others[::-1], old):
            each.close()
    del old, others
    gc.collect()
    assert store.load(1) == b"b" * 4096
    with batchzip.attach(str(store.share())) as view:
        assert view.load(2) == b"b" * 4096
    assert engine.wait_ready(10)
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["close", "drop"])
def test_a_daemon_that_closed_every_number_may_use_them_again(end: str) -> None:
    command = [sys.executable, "-W", "error", "-c", DAEMON, end]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
