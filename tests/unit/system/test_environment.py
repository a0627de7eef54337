"""Wherever Python runs: each place either has all of batchzip, or one clear error for what it lacks."""

from __future__ import annotations

import io
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.command import assert_refused, commands
from support.paths import SUPPORT, TESTS

from batchzip import BackendUnavailable, BatchzipError, Engine, SwapStore
from batchzip.cli.main import main
from batchzip.plugins import plugin_entry_points
from batchzip.sources.workload import Workload
from batchzip.system.cpus import usable_cpus
from batchzip.system.interpreter import why_no_python

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LIFE = SUPPORT / "whole_life.py"
STEPS = ("auto", "threads", "workers", "store", "backing", "share", "share_backed")
RUN = f"exec(compile(open({str(LIFE)!r}).read(), 'life', 'exec'))\n"
ELSEWHERE = ("unshare", "--mount", "sh", "-c")
"""Runs a shell command in which one can mount."""

NOBODY = 61234
"""A user without a name, a home or a file."""

PYTHON = shlex.quote(sys.executable)


@cache
def can_mount() -> bool:
    if shutil.which("unshare") is None or shutil.which("mount") is None:
        return False
    tried = [*ELSEWHERE, "mount -t tmpfs none /dev/shm"]
    return subprocess.run(tried, capture_output=True, check=False).returncode == 0


needs_mounts = pytest.mark.skipif("not can_mount()", reason="nothing can be mounted here")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@dataclass(frozen=True)
class Place:
    """How a program is run, and what of it does not work there."""

    name: str
    command: Sequence[str] = (sys.executable, str(LIFE))
    environment: Mapping[str, str | None] = field(default_factory=dict)
    """What is other in it; None: what is not in it."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Steps that end in an error, and a regular expression for its text."""
    input: str | None = None
    marks: Any = ()


def in_shell(line: str) -> tuple[str, ...]:
    return "sh", "-c", line.replace("LIFE", f"{PYTHON} {shlex.quote(str(LIFE))}")


def mounted(line: str) -> tuple[str, ...]:
    return *ELSEWHERE, in_shell(f"set -e; {line}")[-1]


def read_only(folders: str) -> str:
    return (
        f"for folder in {folders}; do mount --bind $folder $folder; "
        "mount -o remount,bind,ro $folder; done"
    )


def after(source: str, *flags: str) -> tuple[str, ...]:
    """Have a program do something first."""
    return sys.executable, *flags, "-c", f"{source}\n{RUN}"


DROPPED = f"""
import os, sys, batchzip
for name in batchzip.__all__:
    getattr(batchzip, name)
with batchzip.Engine("lz4", backend="threads") as engine, batchzip.SwapStore(engine) as store:
    batchzip.attach(store.share()).close()  # Python's own folder may be nobody else's
import batchzip.mapping, batchzip_workers.backend, pickle, shutil, subprocess, tempfile
os.umask(0o777)
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
"""

REAPING = """
import os, signal
def reap(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
signal.signal(signal.SIGCHLD, reap)
"""

FILTERED = """
import ctypes, errno, os, platform, struct
number = {"x86_64": 204, "aarch64": 123}[platform.machine()]  # sched_getaffinity
steps = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (6, 0, 0, 0x50000 | errno.EPERM), (6, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, program, 0, 0) == 0, os.strerror(ctypes.get_errno())
"""

NO_PROC = "FileNotFoundError: .*by way of /proc, which is not mounted"
NO_PLACE = "FileNotFoundError: .*No usable temporary directory"
NO_PYTHON = "(BackendUnavailable: .*which this user cannot run.*|ok)"

PLACES = [
    # Standard streams
    Place("streams closed", in_shell("exec LIFE <&- >&- 2>&-")),
    Place("stdout and stderr full", in_shell("exec LIFE > /dev/full 2>&1")),
    Place("stdout and stderr without a reader", in_shell("LIFE 2>&1 | :")),
    Place("no streams", after("import sys; sys.stdin = sys.stdout = sys.stderr = None")),
    # The working directory
    Place("directory removed", in_shell("mkdir gone && cd gone && rmdir ../gone && exec LIFE")),
    # How the program is started
    Place("from stdin", (sys.executable, "-"), input=LIFE.read_text()),
    Place("session", (sys.executable, "-i", "-q", str(LIFE)), input=""),
    Place("module", (sys.executable, "-m", "support.whole_life"), {"PYTHONPATH": str(TESTS)}),
    Place(
        "no argv, no __main__",
        after("import sys; del sys.argv; kept = sys.modules.pop('__main__')"),
    ),
    Place(
        "thread",
        (
            sys.executable,
            "-c",
            f"import threading; t = threading.Thread(target=exec, args=({RUN!r}, {{}})); t.start(); t.join()",
        ),
    ),
    Place(
        "odd sys.path",
        after(
            "import pathlib, sys\n"
            "sys.path[:0] = [pathlib.Path('.'), None, 5, b'/tmp', '', '/nowhere/\\udcff']"
        ),
    ),
    # Flags and the environment; more of them in test_worker_processes.py
    Place(
        "strict",
        (sys.executable, *["-I", "-OO", "-B", "-u", "-bb", "-X", "dev", "-W", "error"], str(LIFE)),
    ),
    Place(
        "other flags",
        (
            sys.executable,
            *["-E", "-s", "-O", "-X", "utf8=0", "-X", "frozen_modules=off", "-R", "-q"],
            str(LIFE),
        ),
    ),
    Place(
        "poor environment",
        environment={
            **dict.fromkeys(("HOME", "LANG", "USER", "LOGNAME", "PATH"), None),
            "LC_ALL": "C",
            "PYTHONCOERCECLOCALE": "0",
            "PYTHONUTF8": "0",
            "PYTHONIOENCODING": "ascii",
            "PYTHONHASHSEED": "0",
            "PYTHONMALLOC": "debug",
            "PYTHONASYNCIODEBUG": "1",
            "PYTHONPATH": ":.:",
            "PYTHONINSPECT": "1",
            "TERM": "dumb",
            "COLUMNS": "10",
            "TZ": "Odd/Zone",
            "TMPDIR": ".",
            "ODD": "caf\udce9",
        },
    ),
    Place("temporary folder missing", environment={"TMPDIR": "/nowhere", "LC_ALL": "xx_YY"}),
    # Signals, scheduling and sessions
    Place("signals ignored", in_shell("trap '' CHLD PIPE HUP TERM USR1; exec LIFE")),
    Place(
        "signals blocked",
        after("import signal; signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())"),
    ),
    Place("children reaped", after(REAPING)),
    Place(
        "subreaper, no new privileges",
        after(
            "import ctypes, os; prctl = ctypes.CDLL(None).prctl\n"
            "assert prctl(36, 1, 0, 0, 0) == prctl(38, 1, 0, 0, 0) == 0\n"
            "os.setsid(); os.nice(19); os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])"
        ),
    ),
    Place(
        "filter of system calls",
        after(FILTERED),
        marks=pytest.mark.skipif(
            platform.machine() not in ("x86_64", "aarch64"), reason="of two machines"
        ),
    ),
    # Users
    Place(
        "user without a name, processes hidden",
        (
            *ELSEWHERE,
            'mount -t proc -o hidepid=2 none /proc; exec "$0" -c "$1"',
            sys.executable,
            DROPPED + RUN,
        ),
        {"HOME": None},
        refused={"workers": NO_PYTHON},
        marks=[needs_mounts, needs_root],
    ),
    # File systems
    Place(
        "nothing writable",
        mounted(f"{read_only('/tmp /var/tmp /dev/shm')}; cd /proc; exec LIFE"),
        {"TMPDIR": None},
        refused=dict.fromkeys(("backing", "share", "share_backed"), NO_PLACE),
        marks=needs_mounts,
    ),
    Place(
        "only /dev/shm writable",
        mounted(f"{read_only('/tmp /var/tmp')}; cd /proc; exec LIFE"),
        {"TMPDIR": None},
        refused=dict.fromkeys(("backing", "share_backed"), NO_PLACE),
        marks=needs_mounts,
    ),
    Place(
        "no /proc, no /sys, no /dev",
        mounted(
            "for folder in /sys /dev /proc; do mount -t tmpfs none $folder; done; exec LIFE <&- >&- 2>&-"
        ),
        refused=dict.fromkeys(("share", "share_backed"), NO_PROC),
        marks=needs_mounts,
    ),
]


@pytest.mark.parametrize(
    "place", [pytest.param(place, id=place.name, marks=place.marks) for place in PLACES]
)
def test_a_whole_life(place: Place, tmp_path: Path) -> None:
    """It works, or ends in an error that says why, and nothing else is written anywhere."""
    environment = {**os.environ, **place.environment}
    for name in ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"):
        environment.pop(name, None)
    tmp_path.chmod(0o777)
    reader, writer = os.pipe()
    try:
        done = subprocess.run(
            place.command,
            env={name: text for name, text in environment.items() if text is not None}
            | {"WHOLE_LIFE_REPORT": str(writer)},
            cwd=tmp_path,
            pass_fds=[writer],
            capture_output=True,
            input=(place.input or "").encode(),
            timeout=60,
            check=False,
        )
    finally:
        os.close(writer)
        with os.fdopen(reader) as file:  # to its end: nobody has the other side open any more
            report = file.read()
    assert (done.returncode, done.stdout, done.stderr.replace(b">>> \n", b"")) == (0, b"", b"")
    told = dict(line.split(": ", 1) for line in report.splitlines())
    assert tuple(told) == STEPS
    for step, outcome in told.items():
        assert re.match(place.refused.get(step, "ok$"), outcome), (step, outcome)


# Attaching after privileges were dropped

OWNER = f"""
import ctypes, os, sys, batchzip
for name in batchzip.__all__:
    getattr(batchzip, name)
from batchzip.cli.main import main
import batchzip.cli.top

def attached(address):
    child = os.fork()
    if child == 0:
        try:
            with batchzip.attach(address) as view:
                print("page" if view.load(0) == bytes(4096) else "another page", flush=True)
        except (batchzip.BatchzipError, OSError) as error:
            print(type(error).__name__, error, flush=True)
        finally:
            os._exit(0)
    os.waitpid(child, 0)

def made():
    store = batchzip.SwapStore(engine)
    store.store(0, bytes(4096))
    return store

engine = batchzip.Engine("lz4", backend="sequential")
early, shared = made(), made()
address = shared.share()
address.attach().close()
os.setgroups([]), os.setgid({NOBODY}), os.setuid({NOBODY})
late = made()
attached(late.share())
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE
for where in (late.share(), address, early.share()):
    attached(where)
"""


@needs_root
def test_who_gave_up_root_is_attached_to_or_one_hears_why_not() -> None:
    done = run_python("-W", "ignore::DeprecationWarning", "-c", OWNER)  # it forks beside threads
    assert (done.returncode, done.stderr) == (0, "")
    hidden, page, shared, early = done.stdout.splitlines()
    assert re.match(r"PermissionError .* as process \d+ changed its user .*DUMPABLE.*", hidden)
    assert page == "page"
    assert re.match(r"PermissionError .* after it shared the store: share it afterwards", shared)
    assert re.match(r"BatchzipError .*: make the store afterwards", early)


@needs_root
def test_another_user_hears_whose_process_it_is() -> None:
    source = (
        "import os, sys, batchzip, batchzip.store.remote.view\n"
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        "try: batchzip.attach(sys.argv[1])\n"
        "except PermissionError as error: print(error.strerror)\n"
    )
    with Engine("lz4", backend="sequential") as engine, SwapStore(engine) as store:
        done = run_python("-c", source, str(store.share()))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(
        f"process {os.getpid()} is of user 0, and this one of user {NOBODY}\n"
    )


# Where there is no Python to start

APPLICATION = """
import os, sys
sys.executable = os.environ["APPLICATION"]
with open(os.environ["LOG"], "a") as log:
    print("begun", file=log)
import batchzip
with batchzip.Engine("zstd") as engine:
    batch = batchzip.CompressBatch([bytes(4096)] * 8)
    engine.compress(batch)
    assert not batch.has_errors
try:
    batchzip.Engine("zstd", backend="workers")
except batchzip.BackendUnavailable as error:
    print(error)
"""


def test_an_application_with_python_in_it_is_not_begun_once_more(tmp_path: Path) -> None:
    """Though nothing says that it is frozen."""
    program, application, log = (tmp_path / name for name in ("code.py", "application", "log"))
    program.write_text(APPLICATION)
    application.write_text(f'#!/bin/sh\nexec {PYTHON} "{program}" "$@"\n')
    application.chmod(0o755)
    done = subprocess.run(
        [application],
        env=os.environ | {"APPLICATION": str(application), "LOG": str(log)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "an application that is not called python: use backend='threads'" in done.stdout
    assert log.read_text() == "begun\n"


@pytest.mark.parametrize(
    ("executable", "reason"),
    [
        (None, "frozen or embedded"),
        ("", "frozen or embedded"),
        (5, "frozen or embedded"),
        ("FOLDER/missing/python", "cannot run"),
        ("FOLDER", "cannot run"),
        ("FOLDER/python", "cannot run"),
        ("/bin/cat", "not called python"),
        (sys.executable, None),
        (os.fsencode(sys.executable), None),
        ("FOLDER/tool", None),
        ("FOLDER/mayapy", None),
    ],
)
def test_what_can_be_started_as_python(
    executable: object, reason: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "python").touch(0o600)
    (tmp_path / "tool").symlink_to(sys.executable)
    (tmp_path / "mayapy").touch(0o700)
    if isinstance(executable, str):
        executable = executable.replace("FOLDER", str(tmp_path))
    monkeypatch.setattr(sys, "executable", executable)
    found = why_no_python()
    assert found is reason is None or (found and reason and reason in found)
    if reason is not None:
        with pytest.raises(BackendUnavailable, match=reason):
            Engine("lz4", backend="workers")
        with pytest.raises(
            BatchzipError, match=f"the workload is a Python process, and .*{reason}"
        ):
            Workload()
        with Engine("deflate") as engine:  # in Python: it would be for workers
            assert engine.worker_pids == ()


# What is looked for outside batchzip


def test_damaged_metadata_of_others_hurt_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("one", b"\xff\xfe["), ("two", b"[batchzip.codecs]\nno point\n= x\n")):
        folder = tmp_path / f"{name}-1.dist-info"
        folder.mkdir()
        (folder / "entry_points.txt").write_bytes(text)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path, None, b"bytes"])
    found = plugin_entry_points.__wrapped__("batchzip.codecs")
    assert {"lz4", "zstd"} <= set(found)


def test_no_figures_about_memory_and_processors_are_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> Any:
        raise PermissionError(1, "as a filter says")

    monkeypatch.setattr(os, "sched_getaffinity", refuse)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    monkeypatch.setattr(Path, "read_text", refuse)
    assert usable_cpus() == os.cpu_count()
    with Engine("lz4", backend="workers", workers=1) as engine:
        assert engine.arena(1 << 15).nbytes == 128 << 20


# The command

CLOSED = [">&-", "2>&-", "<&- >&- 2>&-", "> /dev/full", "2> /dev/full", "> /dev/full 2>&1"]


def run_python(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


@pytest.mark.parametrize("streams", CLOSED)
@pytest.mark.parametrize(("arguments", "code"), [("--help", 0), ("bogus", 2), ("algorithms", 0)])
def test_a_command_ends_as_it_should_whatever_its_streams(
    arguments: str, code: int, streams: str
) -> None:
    """A report that cannot be written is an error; one that nobody wants is none."""
    command = f"exec {PYTHON} -X dev -m batchzip.cli.main {arguments} {streams}"
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False
    )
    full = "> /dev/full" in streams.replace("2> /dev/full", "")
    assert done.returncode == (2 if full else code)
    said = [] if "2>" in streams else done.stderr.splitlines()
    assert len(said) == ("2>" not in streams and done.returncode == 2)
    assert all(line.startswith("batchzip: ") for line in said)


@needs_mounts
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("swap --file data --workers 1", 0, ""),
        ("swap --workload-mib 1", 2, ".* '/proc/self/statm'"),
        ("top /proc/1/fd/1", 2, "/proc/1/fd/1: .*, as /proc is not mounted"),
    ],
)
def test_a_command_without_proc_works_or_names_it(
    arguments: str, code: int, said: str, tmp_path: Path
) -> None:
    (tmp_path / "data").write_bytes(bytes(range(256)) * 256)
    line = f"umount -l /proc; exec {PYTHON} -m batchzip.cli.main {arguments}"
    done = subprocess.run(
        [*ELSEWHERE, line], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code
    assert re.fullmatch(f"batchzip: {said}\n" if said else "", done.stderr)


def test_help_is_written_with_the_characters_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for command in ("", *commands()):
        written = io.BytesIO()
        with io.TextIOWrapper(written, "ascii") as stdout, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stdout)
            with pytest.raises(SystemExit, match="0"):
                main([*command.split(), "--help"])
            assert b"exit codes: 0 all went well" in written.getvalue()


def test_an_empty_file_name_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    assert_refused(capfd, ["swap", "--file", ""], "'': No such file or directory")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["swap", "--workload-mib", "1", "--json"],
        [
            "bench",
            *[
                "--file",
                "data",
                "--pages",
                "8",
                "--rounds",
                "1",
                "--batches",
                "8",
                "--algorithms",
                "lz4",
                "--json",
            ],
        ],
    ],
    ids=lambda arguments: arguments[0],
)
def test_no_command_runs_what_lies_in_the_current_directory(
    arguments: list[str], tmp_path: Path
) -> None:
    """Nor do the processes that it starts, as loky's."""
    command, folder = tmp_path / "batchzip-command", tmp_path / "folder"
    command.write_text("import sys\nfrom batchzip.cli.main import main\nsys.exit(main())\n")
    folder.mkdir()
    (folder / "data").write_bytes(bytes(range(256)) * 256)
    for name in (*sys.stdlib_module_names, "numpy", "lz4", "loky", "batchzip", "sitecustomize"):
        (folder / f"{name}.py").write_text(
            f"open({str(tmp_path / 'EXECUTED')!r}, 'w').close()\nraise ImportError('planted')\n"
        )
    done = run_python(str(command), *arguments, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "EXECUTED").exists()
