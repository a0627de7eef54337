"""LeakCheck catches what it is there for, by name, and nothing else."""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from batchzip import Engine
from batchzip.system.segment import Segment
from batchzip.testing import LeakCheck, start_resource_trackers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SLEEP = [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"]


@contextlib.contextmanager
def caught(*names: str) -> Iterator[None]:
    """Expect that what the block leaves behind is caught, and that each name is in the list."""
    with pytest.raises(AssertionError, match="left behind") as failure, LeakCheck(grace_s=0.02):
        yield
    for name in names:
        assert name in str(failure.value)


@pytest.mark.slow
def test_a_child_process_is_caught() -> None:
    with caught("child process", "sys.stdin.read()", "descriptor", "pipe:"):
        child = subprocess.Popen(SLEEP, stdin=subprocess.PIPE)
    child.communicate()


@pytest.mark.slow
def test_a_child_that_nobody_waited_for_is_caught() -> None:
    with caught("child process", "state Z"):
        pid = os.posix_spawn(sys.executable, [sys.executable, "-S", "-c", ""], os.environ)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    os.waitpid(pid, 0)


@pytest.mark.slow
def test_a_childs_child_is_caught() -> None:
    source = f"import subprocess, sys; subprocess.run({SLEEP!r})"
    with caught("import subprocess", "import sys; sys.stdin.read()"):
        child = subprocess.Popen([sys.executable, "-S", "-c", source], stdin=subprocess.PIPE)
        children = Path(f"/proc/{child.pid}/task/{child.pid}/children")
        while not children.read_text():
            time.sleep(0.005)
        grandchild = int(children.read_text())
        while b"sys.stdin" not in Path(f"/proc/{grandchild}/cmdline").read_bytes():
            time.sleep(0.005)
    child.communicate()


@pytest.mark.slow
def test_a_child_started_by_another_thread_is_caught() -> None:
    ended = threading.Event()
    started = threading.Event()
    children: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        children.append(subprocess.Popen(SLEEP, stdin=subprocess.PIPE))
        started.set()
        ended.wait()

    with caught("child process"):
        thread = threading.Thread(target=start)
        thread.start()
        started.wait()
    ended.set()
    thread.join()
    children[0].communicate()


@pytest.mark.slow
def test_a_descriptor_is_caught_with_what_it_refers_to(tmp_path: Path) -> None:
    path = tmp_path / "left open"
    with caught("descriptor", str(path)):
        fd = os.open(path, os.O_CREAT | os.O_RDWR)
    os.close(fd)


@pytest.mark.slow
def test_a_descriptor_in_the_place_of_another_is_caught(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    with caught(f"descriptor {fd}", "/dev/null"):
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, fd)
        os.close(null)
    os.close(fd)


@pytest.mark.slow
@pytest.mark.parametrize("daemon", [True, False])
def test_a_thread_is_caught_daemon_or_not(daemon: bool) -> None:
    end = threading.Event()
    with caught("thread", "the forgotten one"):
        thread = threading.Thread(target=end.wait, name="the forgotten one", daemon=daemon)
        thread.start()
    end.set()
    thread.join()


@pytest.mark.slow
def test_a_segment_is_caught() -> None:
    with caught("shared memory mapped: /memfd:batchzip-forgotten", "descriptor"):
        segment = Segment(4096, name="batchzip-forgotten")
    segment.close()


@pytest.mark.slow
def test_a_mapping_whose_descriptor_is_closed_is_caught() -> None:
    with caught("shared memory mapped: /memfd:batchzip-forgotten"):
        segment = Segment(4096, name="batchzip-forgotten")
        view = segment.view[:]
        segment.close()
    view.release()
    del segment
    gc.collect()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sem.test-{}-x", "batchzip-test-{}"])
def test_a_file_in_shared_memory_is_caught(name: str) -> None:
    path = Path("/dev/shm", name.format(os.getpid()))
    with caught(f"shared memory file: {path}"):
        path.write_bytes(b"x")
    path.unlink()


@pytest.mark.slow
def test_a_mapped_file_in_shared_memory_is_caught_under_any_name() -> None:
    path = Path("/dev/shm", f"anything{os.urandom(8).hex()}")
    with caught(f"shared memory mapped: {path}"):
        path.write_bytes(bytes(4096))
        with path.open("r+b") as file:
            mapping = mmap.mmap(file.fileno(), 4096)
    mapping.close()
    path.unlink()


@pytest.mark.slow
def test_an_engine_that_is_not_closed_is_caught_with_all_it_has() -> None:
    with caught("child process", "thread: <Thread(batchzip-supervisor", "/memfd:batchzip-ring"):
        engine = Engine("lz4", backend="workers", workers=1)
        engine.wait_ready()
    engine.close()


@pytest.mark.slow
def test_the_check_waits_for_threads_that_are_about_to_end() -> None:
    with LeakCheck():
        threading.Timer(0.1, lambda: None).start()


@pytest.mark.slow
def test_the_check_collects_garbage_first() -> None:
    class Cycle:
        def __init__(self) -> None:
            self.me = self
            self.segment = Segment(4096)

    with LeakCheck():
        Cycle()


@pytest.mark.slow
def test_objects_from_before_and_objects_cleaned_up_are_no_leak(tmp_path: Path) -> None:
    def open_and_close() -> None:
        with Segment(4096), (tmp_path / "file").open("w"):
            subprocess.run([sys.executable, "-S", "-c", ""], check=True)

    uses: list[Callable[[], object]] = [open_and_close, gc.collect, list]
    with Segment(4096), (tmp_path / "other").open("w"):
        for use in uses:
            with LeakCheck(grace_s=0):
                use()


@pytest.mark.slow
def test_workers_leave_no_helper_process() -> None:
    source = (
        "from batchzip import Engine\n"
        "from batchzip.testing import LeakCheck\n"
        "with LeakCheck(), Engine('lz4', backend='workers', workers=1) as engine:\n"
        "    engine.wait_ready()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_resource_tracker_that_runs_is_no_leak() -> None:
    with LeakCheck(grace_s=0):
        start_resource_trackers()  # started already


def test_an_exception_is_not_hidden_by_what_it_leaves() -> None:
    fds: list[int] = []

    def fail() -> None:
        fds.append(os.open("/dev/null", os.O_RDONLY))
        raise KeyError("the cause")

    with pytest.raises(KeyError, match="the cause"), LeakCheck(grace_s=0):
        fail()
    os.close(fds[0])
