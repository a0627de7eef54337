"""How workers are started: as their owner was, from nowhere else, and what becomes of it where that fails."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lz4
import pytest
from support.codecs.faulty import FaultyCodec

import batchzip
from batchzip import CompressBatch, Engine
from batchzip_workers import launch as launch_module
from batchzip_workers import worker_slot as place_module
from batchzip_workers.launch import Task, launch

if TYPE_CHECKING:
    from collections.abc import Sequence

PAGES = [b"a" * 4096, bytes(range(256)) * 16] * 50

PLANTED = ("types", "pickle", "signal", "struct", "lz4", "numpy", "cloudpickle", "sitecustomize")
"""Modules that a worker would import if they were looked for where they lie."""

BEGIN = """
import os, signal, sys, time
import batchzip
from batchzip import CompressBatch, DecompressBatch, Engine
pages = [b"a" * 4096, bytes(range(256)) * 16] * 50

def check(engine):
    batch = CompressBatch(pages)
    engine.compress(batch)
    back = DecompressBatch(batch.outputs())
    engine.decompress(back)
    assert not batch.has_errors and not back.has_errors
    assert [bytes(page) for page in back.pages] == pages
"""

PRINT_PATH = BEGIN + (
    "with Engine('lz4', backend='workers', workers=1) as engine:\n"
    "    assert engine.wait_ready(), engine.backend._supervisor.failure\n"
    "    check(engine)\n"
    "print('done')\n"
)


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A folder full of modules that say so when they are run."""
    folder = tmp_path / "planted"
    folder.mkdir()
    for name in PLANTED:
        (folder / f"{name}.py").write_text(
            f"open({str(tmp_path / 'EXECUTED')!r}, 'w').close()\nraise ImportError('planted')\n"
        )
    return folder


def run(arguments: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
    options.setdefault("capture_output", True)
    return subprocess.run(
        [sys.executable, *arguments], text=True, timeout=60, check=False, **options
    )


def work(engine: Engine) -> None:
    batch = CompressBatch(PAGES)
    engine.compress(batch)
    assert not batch.has_errors


def wait_until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        time.sleep(0.005)


# What a worker imports, and with which flags it runs


@pytest.mark.parametrize("how", ["script", "-P", "-I"])
def test_nothing_is_imported_from_the_current_directory(
    how: str, planted: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(PRINT_PATH)
    arguments = [script] if how == "script" else [how, "-c", PRINT_PATH]
    done = run(arguments, cwd=planted)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
    assert not (tmp_path / "EXECUTED").exists()


def test_the_workers_of_a_session_do_not_import_from_the_current_directory(
    planted: Path, tmp_path: Path
) -> None:
    """What the owner itself would import from there, by -c, is planted once it has started."""
    there = planted.rename(tmp_path / "later")
    planted.mkdir()
    source = BEGIN + (
        "import ctypes, pickle, cloudpickle, lz4.block, subprocess\n"
        f"for name in os.listdir({str(there)!r}):\n"
        f"    os.rename(os.path.join({str(there)!r}, name), name)\n"
        "assert '' in sys.path\n"
        "with Engine('lz4', backend='workers', workers=1) as engine:\n"
        "    assert engine.wait_ready(), engine.backend._supervisor.failure\n"
        "    check(engine)\n"
    )
    done = run(["-c", source], cwd=planted)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "EXECUTED").exists()


FLAGS = """
import sys
def main(fd):
    import os
    os.write(fd, repr((sys.flags, sys.warnoptions, sys._xoptions, sys.path)).encode())
"""

SHOW_FLAGS = """
import os, sys
sys.path[:0] = [{folder!r}]
from batchzip_workers.launch import Task, launch
reader, writer = os.pipe()
process = launch(Task("shows_flags", (writer,), [writer]))
os.close(writer)
with open(reader) as file:
    print(file.read())
process.reap()
print(repr((sys.flags, sys.warnoptions, sys._xoptions, sys.path)))
"""


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["-P"],
        ["-I"],
        ["-E"],
        ["-E", "-s", "-B"],
        ["-O"],
        ["-OO"],
        ["-X", "dev"],
        ["-W", "error"],
    ],
    ids=" ".join,
)
def test_a_worker_has_the_flags_and_the_path_of_its_owner(flags: list[str], tmp_path: Path) -> None:
    (tmp_path / "shows_flags.py").write_text(FLAGS)
    done = run([*flags, "-c", SHOW_FLAGS.format(folder=str(tmp_path))])
    assert (done.returncode, done.stderr) == (0, "")
    worker, owner = done.stdout.splitlines()
    # A worker never looks in the current directory.
    assert worker == owner.replace("safe_path=False", "safe_path=True").replace("'', ", "")


@pytest.mark.parametrize(
    "flags", [["-O"], ["-OO"], ["-X", "dev"], ["-W", "error"], ["-E"], ["-I"], ["-P"]], ids=" ".join
)
def test_workers_work_whatever_their_owners_flags(flags: list[str]) -> None:
    done = run([*flags, "-c", PRINT_PATH])
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_workers_work_without_site() -> None:
    path = f"import sys; sys.path[:] = {sys.path!r}\n"
    done = run(["-S", "-c", path + PRINT_PATH])
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_pythonsafepath_and_python_options_in_the_environment_are_honoured(tmp_path: Path) -> None:
    done = run(["-c", PRINT_PATH], env={**os.environ, "PYTHONSAFEPATH": "1"}, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_workers_find_batchzip_where_only_the_current_directory_has_it(tmp_path: Path) -> None:
    """As in a checkout that is not installed: then it is looked at last."""
    for package in ("batchzip", "batchzip_workers"):
        (tmp_path / package).symlink_to(Path(sys.modules[package].__path__[0]))
    packages = Path(lz4.__path__[0]).parent
    source = (
        f"import sys; sys.path.append({str(packages)!r})\n"
        "from batchzip import Engine\n"
        "from batchzip.codecs.lz4 import Lz4\n"
        "from batchzip_workers.backend import WorkersBackend\n"
        "with open('types.py', 'w') as file: file.write('raise ImportError(\"planted\")')\n"
        "with Engine(Lz4(), backend=WorkersBackend(workers=1)) as engine:\n"
        "    assert engine.wait_ready(), engine.backend._supervisor.failure\n"
    )
    done = run(["-S", "-c", source], cwd=tmp_path)  # without site, no editable install is found
    assert (done.returncode, done.stderr) == (0, "")


# Codecs of the user's own


OWN_CODEC = """
from dataclasses import dataclass
from typing import ClassVar
import lz4.block
from batchzip.codecs import Codec
@dataclass(frozen=True, slots=True)
class Own(Codec):
    name: ClassVar[str] = "own"
    owner: int
    def compressor(self, page_size):
        def compress(page):
            assert os.getpid() != self.owner
            return lz4.block.compress(page, store_size=False)
        return compress
    def decompressor(self, page_size):
        # In the function within, too: cloudpickle does not see what is named there.
        return lambda src: lz4.block.decompress(src, uncompressed_size=page_size)
"""

USE_OWN = """
print("run")
from batchzip_workers.backend import WorkersBackend
codec = Own(os.getpid())
with Engine(codec, backend=WorkersBackend(workers=1, isolate=True)) as engine:
    assert engine.wait_ready(), engine.backend._supervisor.failure
    check(engine)
"""


def test_a_codec_of_main_works_and_main_is_run_once(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(BEGIN + OWN_CODEC + USE_OWN)
    for arguments in ([script], ["-c", script.read_text()]):
        done = run(arguments)
        assert (done.returncode, done.stdout, done.stderr) == (0, "run\n", "")


def test_a_codec_that_a_function_defines_works() -> None:
    body = OWN_CODEC.replace("\n", "\n    ")
    source = BEGIN + "def define():" + body
    done = run(["-c", source + "\n    return Own\nOwn = define()\n" + USE_OWN])
    assert (done.returncode, done.stdout, done.stderr) == (0, "run\n", "")


@pytest.mark.parametrize("how", ["script", "-c", "-m", "stdin"])
def test_a_codec_of_a_module_beside_the_program_works(how: str, tmp_path: Path) -> None:
    """Also where Python found it in the current directory: then that is looked at last."""
    (tmp_path / "own.py").write_text("import os\n" + OWN_CODEC)
    source = BEGIN + "from own import Own\n" + USE_OWN
    (tmp_path / "program.py").write_text(source)
    arguments = {
        "script": ["program.py"],
        "-c": ["-c", source],
        "-m": ["-m", "program"],
        "stdin": ["-"],
    }[how]
    done = run(arguments, cwd=tmp_path, input=source if how == "stdin" else None)
    assert (done.returncode, done.stdout, done.stderr) == (0, "run\n", "")


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
        wait_until(lambda: engine.wait_ready(0), "a worker, later")
        work(engine)


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
        wait_until(lambda: set(engine.worker_pids) - {first}, "another worker")
        assert Awkward.times == 0
        assert engine.wait_ready()
        work(engine)


class Unreadable(FaultyCodec):
    """Can be pickled, but not read."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


def test_a_worker_that_cannot_read_its_codec_says_why(capfd: pytest.CaptureFixture[str]) -> None:
    with Engine(Unreadable(os.getpid()), backend="workers", workers=1) as engine:
        with pytest.warns(batchzip.WorkerWarning, match="ValueError: invalid literal.*no number"):
            assert not engine.wait_ready()
        work(engine)
    assert capfd.readouterr() == ("", "")


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
        wait_until(lambda: engine.wait_ready(1), "workers, later")
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
    wait_until(lambda: not any(map(_is_running, pids)), "the workers' end")


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


# What a worker costs


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
