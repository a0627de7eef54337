"""A worker that cannot start is reported once and leaves nothing behind."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from support.codecs.faulty import FaultyCodec
from support.waiting import await_true
from support.worker_programs import BEGIN, SHOW_FLAGS, run

import batchzip
from batchzip import CompressBatch, Engine
from batchzip_workers import launch as launch_module
from batchzip_workers import worker_slot as place_module
from batchzip_workers.launch import Task, launch

PAGES = [b"a" * 4096, bytes(range(256)) * 16] * 50


def work(engine: Engine) -> None:
    batch = CompressBatch(PAGES)
    engine.compress(batch)
    assert not batch.has_errors


# Where workers cannot be


def test_a_frozen_application_has_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(batchzip.BackendUnavailable, match="frozen"):
        Engine("lz4", backend="workers")
    with Engine("lz4") as engine:
        work(engine)
        assert engine.worker_pids == ()


def test_an_embedded_interpreter_that_knows_no_python_has_no_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(batchzip.BackendUnavailable, match="embedded"):
        Engine("lz4", backend="workers")


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_workers_start_where_standard_streams_are_closed(closed: str, tmp_path: Path) -> None:
    """And what is closed is open in a worker: nothing of its own lies there."""
    report = tmp_path / "report"
    source = BEGIN + (
        "with Engine('lz4', backend='workers', workers=1) as engine:\n"
        "    assert engine.wait_ready()\n"
        "    check(engine)\n"
        "    (pid,) = engine.worker_pids\n"
        "    inside = engine.arena(4)\n"
        "    mine = [os.readlink(f'/proc/self/fd/{fd}') for fd in range(3)\n"
        "            if os.path.exists(f'/proc/self/fd/{fd}')]\n"
        "    fds = [os.readlink(f'/proc/{pid}/fd/{fd}') for fd in range(3)]\n"
        f"open({str(report)!r}, 'w').write(f'{{mine}} {{fds}}')\n"
    )
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, source],
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert not re.search("batchzip|memfd|eventfd|pidfd", report.read_text())


def test_workers_start_where_stdout_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with Engine("lz4", backend="workers", workers=1) as engine:
        assert engine.wait_ready()


class Awkward(FaultyCodec):
    """Raises what it is told to, so many times, when it is pickled."""

    raises: type[BaseException] = Exception
    times = 0

    def __reduce__(self) -> tuple[type[FaultyCodec], tuple[int]]:
        if type(self).times > 0:
            type(self).times -= 1
            raise self.raises("as it was told")
        return FaultyCodec, (self.owner,)


@pytest.mark.slow
@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, MemoryError])
def test_a_codec_whose_pickling_fails_is_warned_of_once_and_tried_again(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Awkward, "raises", error)
    monkeypatch.setattr(Awkward, "times", 4)
    with Engine(Awkward(os.getpid()), backend="workers", workers=1) as engine:
        with pytest.warns(batchzip.WorkerWarning, match=f"{error.__name__}: as it was told"):
            assert not engine.wait_ready()
        for _ in range(10):  # a second warning would be an error
            work(engine)
        await_true(lambda: engine.wait_ready(0), "a worker, later")
        work(engine)


@pytest.mark.slow
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_codec_that_ends_its_thread_while_a_worker_is_replaced_ends_nothing(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Awkward, "raises", error)
    with Engine(Awkward(os.getpid()), backend="workers", workers=1) as engine:
        assert engine.wait_ready()
        (first,) = engine.worker_pids
        monkeypatch.setattr(Awkward, "times", 1)
        os.kill(first, signal.SIGKILL)
        await_true(lambda: set(engine.worker_pids) - {first}, "another worker")
        assert Awkward.times == 0
        assert engine.wait_ready()
        work(engine)


class Unreadable(FaultyCodec):
    """Can be pickled, but not read."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


@pytest.mark.slow
def test_a_worker_that_cannot_read_its_codec_says_why(capfd: pytest.CaptureFixture[str]) -> None:
    with Engine(Unreadable(os.getpid()), backend="workers", workers=1) as engine:
        with pytest.warns(batchzip.WorkerWarning, match="ValueError: invalid literal.*no number"):
            assert not engine.wait_ready()
        work(engine)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_where_no_thread_can_start_it_says_so_once_and_tries_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(place_module, "LAST_RETRY_S", 0.01)

    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        engine = Engine("lz4", backend="workers", workers=1)
        with pytest.warns(batchzip.WorkerWarning, match="can't start new thread"):
            assert not engine.wait_ready()
        for _ in range(10):  # a second warning would be an error
            work(engine)
        assert not engine.submit(CompressBatch(PAGES)).wait().has_errors
    with engine:
        await_true(lambda: engine.wait_ready(1), "workers, later")
        assert len(engine.worker_pids) == 1
        work(engine)


# A start that fails leaves nothing behind (see conftest.py)


def no_more(*_: object, **__: object) -> Any:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@pytest.mark.parametrize("call", ["memfd_create", "pidfd_open", "fchmod"])
def test_a_start_that_fails_at_any_call_leaves_nothing(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, call, no_more)
    with pytest.raises(OSError, match="Too many open files"):
        launch(Task("batchzip_workers.worker", ()))


def test_a_start_without_room_for_the_process_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launch_module, "command", lambda: ["/nowhere/python"])
    with pytest.raises(FileNotFoundError):
        launch(Task("batchzip_workers.worker", ()))


def test_arguments_that_cannot_be_passed_leave_nothing() -> None:
    with pytest.raises(ValueError, match="unmarshallable"):
        launch(Task("batchzip_workers.worker", (object(),)))


@pytest.mark.slow
def test_workers_work_where_somebody_else_reaps_every_child() -> None:
    source = BEGIN + (
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "with Engine('lz4', backend='workers', workers=1) as engine:\n"
        "    assert engine.wait_ready()\n"
        "    os.kill(engine.worker_pids[0], signal.SIGKILL)\n"
        "    while not engine.statistics.restarts: time.sleep(0.001)\n"
        "    assert engine.wait_ready()\n"
        "    check(engine)\n"
    )
    done = run(["-c", source])
    assert (done.returncode, done.stderr) == (0, "")


def test_a_process_is_killed_from_any_thread_and_never_another() -> None:
    process = launch(Task("time", ()))  # has no main: it ends at once, and says so
    assert process.wait(20)
    threads = [threading.Thread(target=process.kill) for _ in range(4)]
    for thread in threads:
        thread.start()
    end = process.reap()
    process.kill()
    for thread in threads:
        thread.join()
    assert "AttributeError" in end


@pytest.mark.slow
def test_a_ctrl_c_while_workers_start_does_not_reach_them(tmp_path: Path) -> None:
    """As a terminal sends it: to every process of the group."""
    source = BEGIN + (
        "signal.signal(signal.SIGINT, lambda *_: None)\n"
        "with Engine('lz4', backend='workers', workers=1) as engine:\n"
        "    while not engine.wait_ready(0):\n"
        "        os.killpg(0, signal.SIGINT)\n"
        "    check(engine)\n"
        "    assert engine.statistics.restarts == 0\n"
    )
    done = run(["-c", source], start_new_session=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_workers_are_gone_with_an_owner_that_is_killed_while_they_start() -> None:
    source = BEGIN + (
        "engine = Engine('lz4', backend='workers', workers=2)\n"
        "while len(engine.worker_pids) < 2: pass\n"
        "print(*engine.worker_pids, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = run(["-c", source])
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, "")
    pids = [int(pid) for pid in done.stdout.split()]
    await_true(lambda: not any(map(_is_running, pids)), "the workers' end")


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


# What a worker costs


@pytest.mark.slow
def test_a_worker_imports_little_before_its_work(tmp_path: Path) -> None:
    (tmp_path / "shows_modules.py").write_text(
        "import os, sys\ndef main(fd): os.write(fd, ' '.join(sys.modules).encode())\n"
    )
    path = f"import sys; sys.path[:] = {[*sys.path, str(tmp_path)]!r}\n"
    source = SHOW_FLAGS.format(folder=str(tmp_path)).replace("shows_flags", "shows_modules")
    done = run(["-S", "-c", path + source])
    assert (done.returncode, done.stderr) == (0, "")
    found = set(done.stdout.splitlines()[0].split())
    assert "batchzip_workers.startup" in found
    assert not found & {"typing", "enum", "re", "pickle", "dataclasses", "numpy", "multiprocessing"}


@pytest.mark.slow
def test_a_worker_has_at_most_ten_mebibytes() -> None:
    with Engine("lz4", backend="workers", workers=1) as engine:
        assert engine.wait_ready()
        work(engine)
        (pid,) = engine.worker_pids
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii")
    (kibibytes,) = re.findall(r"^Pss: +(\d+) kB$", rollup, re.MULTILINE)
    assert int(kibibytes) <= 10 << 10


def test_a_worker_has_no_descriptor_that_it_does_not_need() -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)  # as a library in C may leave one
    try:
        with Engine("lz4", backend="workers", workers=1) as engine:
            assert engine.wait_ready()
            (pid,) = engine.worker_pids
            targets = {fd.readlink() for fd in Path(f"/proc/{pid}/fd").iterdir()}
            assert Path(f"/proc/self/fd/{write}").readlink() not in targets
    finally:
        os.close(read)
        os.close(write)
