"""Launch: starts a worker's process, and leaves nothing behind if that fails.

    Task ─▶ memory ─▶ python -P … -c START <descriptor> ─▶ startup.run ─▶ module.main(*arguments)
                 ◀── why it could not start ──┘

The process is a new interpreter with its owner's flags and import path
(batchzip/system/interpreter.py). It reads its task from memory that it inherits. The writer of a
pipe would wait for ever if the process died before it read.

Rejected: loky and multiprocessing's spawn. They import further modules, keep a resource tracker,
lose the flags -P, -I and -E, cannot start anything in a daemonic process, and flush a stdout that
may be None. A worker would take 79 ms and 18 MiB, against 20 ms and 8 MiB. posix_spawn: it passes
on descriptors that libraries left inheritable.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import select
import signal
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batchzip.system.descriptors import above_standard
from batchzip.system.interpreter import command, import_path
from batchzip.system.limits import needing

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

_START = """\
import marshal, posix, sys
fd = int(sys.argv[2])
start = marshal.loads(posix.pread(fd, posix.fstat(fd).st_size, 0))
sys.path[:], owner, module, arguments, fds = start
from batchzip_workers.startup import run
run(fd, owner, module, arguments, fds)
"""
"""Uses only modules that are compiled into the interpreter until it has the owner's path."""

_MOST_REASON = 1000
"""Longest text, in bytes, of why a worker could not start."""


@dataclass(frozen=True, slots=True)
class Task:
    """The task of a worker: `module.main(*arguments)`."""

    module: str
    arguments: tuple[Any, ...]
    """Values for `marshal`: numbers, text, bytes, and tuples of these."""
    descriptors: Sequence[int] = ()
    """Descriptors that it inherits with the same numbers."""
    needs: Collection[str] = ()
    """Other modules that it imports; see `batchzip.system.interpreter.import_path`."""


class Process:
    """A worker's process, from its start until it is reaped. `sentinel` is a pidfd. Thread-safe."""

    def __init__(self, pid: int, sentinel: int, memory: int, size: int) -> None:
        self.pid = pid
        self.sentinel = sentinel
        self.gave_up = False
        """Whether it probably ended by itself, and was not killed."""
        self._memory = memory
        self._size = size
        self._lock = threading.RLock()  # a signal handler may call this class again

    def kill(self) -> None:
        """Send SIGKILL. Do nothing if the process has ended or was reaped."""
        with self._lock, contextlib.suppress(ProcessLookupError):
            if self.sentinel >= 0:
                signal.pidfd_send_signal(self.sentinel, signal.SIGKILL)

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end. Return False after `timeout_s`."""
        poll = select.poll()
        poll.register(self.sentinel, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    @property
    def ended(self) -> bool:
        """Whether it has ended, even if it is not reaped yet."""
        with self._lock:
            return self.sentinel < 0 or self.wait(0)

    def reap(self) -> str:
        """Wait for its end and release everything. Return how it ended, as a text. Call it once."""
        try:
            end = os.waitid(os.P_PIDFD, self.sentinel, os.WEXITED)
        except ChildProcessError:  # SIGCHLD is ignored, or other code waits for every child
            end = None
        reason = os.pread(self._memory, _MOST_REASON, self._size).decode(errors="replace")
        with self._lock:
            sentinel, self.sentinel = self.sentinel, -1
            os.close(sentinel)
        os.close(self._memory)
        self.gave_up = end is not None and (
            end.si_code == os.CLD_EXITED or end.si_status not in (signal.SIGKILL, signal.SIGTERM)
        )
        if reason:
            return reason
        if end is None:
            return "it ended"
        status = end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
        return f"it ended with status {status}"


def launch(task: Task) -> Process:
    """Start a process for `task`. Raise any error that prevents it, and leave nothing behind."""
    import subprocess  # noqa: PLC0415 - takes 10 ms, which the caller need not wait for

    memory = sentinel = -1
    popen = None
    try:
        with above_standard():
            with needing("memfd_create"):
                memory = os.memfd_create("batchzip-task", os.MFD_CLOEXEC)
            os.fchmod(memory, 0o600)
            written = marshal.dumps(
                (
                    import_path({"batchzip", "batchzip_workers", task.module, *task.needs}),
                    os.getpid(),
                    task.module,
                    task.arguments,
                    tuple(task.descriptors),
                )
            )
            with open(memory, "wb", closefd=False) as file:
                file.write(written)
            popen = subprocess.Popen(  # noqa: S603 - this very interpreter
                [*command(), "-c", _START, "batchzip-worker", str(memory)],
                pass_fds=[memory, *task.descriptors],
            )
            with needing("pidfd_open"):
                sentinel = os.pidfd_open(popen.pid)
        process = Process(popen.pid, sentinel, memory, len(written))
    except BaseException:
        if popen is not None:
            popen.kill()
            popen.wait()
        for fd in (memory, sentinel):
            if fd >= 0:
                os.close(fd)
        raise
    popen.returncode = 0  # `reap` uses the pidfd; Popen would warn that the process still runs
    return process
