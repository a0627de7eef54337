"""System limits: errors that name the limit that was reached, and threads that may fail to start.

The system's errors only say "Too many open files" or "can't start new thread". The errors of this
module add the limit's value and the command that shows it.
"""

from __future__ import annotations

import errno
import os
import threading
import weakref
from contextlib import contextmanager
from functools import partial

from batchzip.errors import LimitReached

TYPE_CHECKING = False  # from typing, it would cost each worker 1.6 MiB
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ADDRESSES = "RLIMIT_AS", "bytes of addresses", "ulimit -v"

_OF_PROCESS = {
    errno.EMFILE: [("RLIMIT_NOFILE", "open files", "ulimit -n")],
    errno.EFBIG: [("RLIMIT_FSIZE", "bytes in a file or in shared memory", "ulimit -f")],
    errno.ENOMEM: [_ADDRESSES],
    errno.EAGAIN: [("RLIMIT_NPROC", "processes and threads of its user", "ulimit -u"), _ADDRESSES],
}
"""Limits of a process by errno: their names, what they limit, and the shell's command for them."""

_LOOK_S = 0.05
"""Seconds between two checks whether a thread has ended before it began to run."""

_OF_SYSTEM = {
    errno.ENFILE: "the system has reached its limit of open files (fs.file-max)",
    errno.ENOMEM: "the machine or the control group has no memory left",
    errno.EAGAIN: "the control group has reached its limit of threads (pids.max)",
    errno.ENOSPC: "there is no space left on the device, or no memory for shared memory",
    errno.EDQUOT: "the user's quota is exhausted",
}
"""Limits outside the process by errno."""


def named(error: OSError, what: str = "") -> OSError:
    """Return a LimitReached that names the limit behind an error. Return any other error unchanged.

    `what` says what is unavailable.
    """
    number = error.errno
    if number is None or isinstance(error, LimitReached):
        return error
    reasons = [reason for limit in _OF_PROCESS.get(number, ()) if (reason := _of_process(*limit))]
    if number in _OF_SYSTEM:
        reasons.append(_OF_SYSTEM[number])
    if not reasons:
        return error
    text = f"{os.strerror(number)}{what and f': {what}'}; {', or '.join(reasons)}"
    if error.filename is None:
        return LimitReached(number, text)
    return LimitReached(number, text, error.filename)


@contextmanager
def needing(call: str) -> Iterator[None]:
    """Raise LimitReached, which names a system call, if it is forbidden or missing here."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOSYS):
            raise
        text = (
            f"{os.strerror(error.errno)}: batchzip needs the system call {call}, which the kernel "
            "lacks or a filter of system calls (seccomp, as in containers) forbids"
        )
        raise LimitReached(error.errno, text) from None


def _of_process(limit: str, what: str, command: str) -> str:
    """Return a text that names a limit of this process, or "" if there is none."""
    import resource  # noqa: PLC0415 - only errors need it

    most = resource.getrlimit(getattr(resource, limit))[0]
    if most == resource.RLIM_INFINITY:
        return ""
    return f"this process may have {most} {what} ({limit}, {command})"


def start_thread(target: Callable[..., object], *arguments: object, name: str) -> None:
    """Start a daemon thread. Raise LimitReached if the system refuses it."""
    begin(threading.Thread(target=target, args=arguments, name=name, daemon=True))


def is_out_of_memory(error: Exception) -> bool:
    """Return whether memory was exhausted. For its locks, Python raises a RuntimeError then."""
    return isinstance(error, MemoryError) or "can't allocate lock" in str(error)


class _Started(threading.Event):
    """The event that Thread.start() waits for. `wait` raises MemoryError if the thread ended early.

    A thread without memory for its first Python call ends silently, and Python's own event is never
    set (gh-140746). Only the thread refers to its first function. So a weak reference to that
    function shows when the thread has ended.

    `wait` does not take the event's condition: an interrupt just after that would leave it locked,
    and the new thread would wait for it for ever.
    """

    def __init__(self, thread: threading.Thread) -> None:
        super().__init__()
        self._not_set = threading.Lock()
        self._not_set.acquire()
        function = partial(thread._bootstrap)  # type: ignore[attr-defined] # noqa: SLF001
        vars(thread).update(_bootstrap=function, _started=self)
        self._function = weakref.ref(function)
        del function  # a debugger may keep this frame
        self._thread: threading.Thread | None = thread

    def wait(self, timeout: float | None = None) -> bool:
        thread, self._thread = self._thread, None
        if thread is None:
            return super().wait(timeout)
        del vars(thread)["_bootstrap"]
        while not self._not_set.acquire(timeout=_LOOK_S):
            if self.cannot_come():
                raise MemoryError("it ended because there was no memory")
        return True

    def set(self) -> None:
        super().set()
        self._not_set.release()

    def cannot_come(self) -> bool:
        """Return whether the thread has ended, or was never made, without setting this event."""
        return self._function() is None and not self.is_set()


def begin(thread: threading.Thread) -> None:
    """Start a thread. Raise LimitReached if the system refuses it.

    After an interrupt the thread either runs or was never made.
    """
    started = None
    try:
        started = _Started(thread)
        thread.start()
    except BaseException as error:
        vars(thread).pop("_bootstrap", None)
        if started is not None and started.cannot_come():
            # Python forgets it only after an Exception. A list of all threads would keep it.
            threading._limbo.pop(thread, None)  # type: ignore[attr-defined] # noqa: SLF001
        if not isinstance(error, RuntimeError | MemoryError):
            raise
        # Python hides the errno of pthread_create(3), which is EAGAIN for all these limits.
        refused = OSError(errno.EAGAIN, "")
        raise named(refused, f"no thread can be started ({error or 'no memory'})") from error
