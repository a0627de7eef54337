"""Wherever Python runs, all of batchzip works, or one clear error says what is missing."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from support.paths import SUPPORT, TESTS
from support.scripts import ELSEWHERE, can_mount, run_python

from batchzip import Engine, SwapStore

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

LIFE = SUPPORT / "whole_life.py"

STEPS = ("auto", "threads", "workers", "store", "backing", "share", "share_backed")

RUN = f"exec(compile(open({str(LIFE)!r}).read(), 'life', 'exec'))\n"

NOBODY = 61234
"""A user without a name, a home or a file."""

PYTHON = shlex.quote(sys.executable)

needs_mounts = pytest.mark.skipif(not can_mount(), reason="nothing can be mounted here")

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
fail, allow = 0x50000 | errno.EPERM, 0x7fff0000
steps = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (6, 0, 0, fail), (6, 0, 0, allow)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, program, 0, 0) == 0, os.strerror(ctypes.get_errno())
"""

NO_PROC = "FileNotFoundError: .*sharing a store needs /proc, which is not mounted"

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
            (
                f"import threading; t = threading.Thread(target=exec, args=({RUN!r}, {{}})); "
                "t.start(); t.join()"
            ),
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
            "for folder in /sys /dev /proc; do mount -t tmpfs none $folder; done; "
            "exec LIFE <&- >&- 2>&-"
        ),
        refused=dict.fromkeys(("share", "share_backed"), NO_PROC),
        marks=needs_mounts,
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "place", [pytest.param(place, id=place.name, marks=place.marks) for place in PLACES]
)
def test_a_program_works_in_each_environment_or_says_why_not(place: Place, tmp_path: Path) -> None:
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


@pytest.mark.slow
@needs_root
def test_a_process_that_gave_up_root_is_attached_to_or_says_why_not() -> None:
    done = run_python("-W", "ignore::DeprecationWarning", "-c", OWNER)  # it forks beside threads
    assert (done.returncode, done.stderr) == (0, "")
    hidden, page, shared, early = done.stdout.splitlines()
    assert re.match(r"PermissionError .* because process \d+ changed its user .*DUMPABLE.*", hidden)
    assert page == "page"
    assert re.match(r"PermissionError .* after it shared the store: share it afterwards", shared)
    assert re.match(r"BatchzipError .*: create the store after changing the user", early)


@pytest.mark.slow
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
        f"process {os.getpid()} belongs to user 0, and this one to user {NOBODY}\n"
    )
