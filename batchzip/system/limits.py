"""Limits of the system, as users meet them: errors that name the limit, and threads that may not start.

What fails for want of something says "Too many open files" or "can't start new thread". Neither tells how many
there may be, nor which command shows it. What is raised here does.
"""

from __future__ import annotations

import errno
import os
import threading
import weakref
from functools import partial

from batchzip.errors import LimitReached

TYPE_CHECKING = False  # from typing, it would cost each worker 1.6 MiB
if TYPE_CHECKING:
    from collections.abc import Callable

_ADDRESSES = "RLIMIT_AS", "bytes of addresses", "ulimit -v"

_OF_PROCESS = {
    errno.EMFILE: [("RLIMIT_NOFILE", "open files", "ulimit -n")],
    errno.EFBIG: [("RLIMIT_FSIZE", "bytes in a file or in shared memory", "ulimit -f")],
    errno.ENOMEM: [_ADDRESSES],
    errno.EAGAIN: [("RLIMIT_NPROC", "processes and threads of its user", "ulimit -u"), _ADDRESSES],
}
"""By errno, limits of a process: what they count, and the shell's word for them."""

_LOOK_S = 0.05
"""Seconds between two looks at whether a thread that does not begin has ended."""

_OF_SYSTEM = {
    errno.ENFILE: "the system has as many open files as it may (fs.file-max)",
    errno.ENOMEM: "the machine or the control group has no memory left",
    errno.EAGAIN: "the control group has as many threads as it may (pids.max)",
    errno.ENOSPC: "there is no room left on the device, or no memory for shared memory",
    errno.EDQUOT: "the user's quota is used up",
}
"""By errno, what else it may be."""


def named(error: OSError, what: str = "") -> OSError:
    """Return a LimitReached that names the limit behind an error; the error itself if it is another one.

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


def _of_process(limit: str, what: str, command: str) -> str:
    """Say how much this process may have of something; nothing where there is no limit."""
    import resource  # noqa: PLC0415 - for errors alone

    most = resource.getrlimit(getattr(resource, limit))[0]
    if most == resource.RLIM_INFINITY:
        return ""
    return f"this process may have {most} {what} ({limit}, {command})"


def start_thread(target: Callable[..., object], *arguments: object, name: str) -> None:
    """Start a daemon thread. Raise LimitReached where the system gives none."""
    begin(threading.Thread(target=target, args=arguments, name=name, daemon=True))


def is_out_of_memory(error: Exception) -> bool:
    """Return whether memory was out, which Python tells of its locks by RuntimeError."""
    return isinstance(error, MemoryError) or "can't allocate lock" in str(error)


class _Started(threading.Event):
    """What Thread.start() waits for; where the thread ends before it runs, it raises MemoryError.

    A thread that has no memory for its first Python call ends without a word, and Python's own event is never
    set (gh-140746). The thread alone keeps the function that it begins with, which tells when it has ended.
    """

    def __init__(self, thread: threading.Thread) -> None:
        super().__init__()
        begins_with = partial(thread._bootstrap)  # type: ignore[attr-defined] # noqa: SLF001 - see above
        self._function = weakref.ref(begins_with)
        vars(thread).update(_bootstrap=begins_with, _started=self)
        self._thread: threading.Thread | None = thread

    def wait(self, timeout: float | None = None) -> bool:
        thread, self._thread = self._thread, None
        if thread is None:
            return super().wait(timeout)
        del vars(thread)["_bootstrap"]
        while not super().wait(_LOOK_S):
            if self._function() is None and not self.is_set():
                threading._limbo.pop(thread, None)  # type: ignore[attr-defined] # noqa: SLF001 - as start() does
                raise MemoryError("it ended for want of memory")
        return True


def begin(thread: threading.Thread) -> None:
    """Start a thread that was made. Raise LimitReached where the system gives none."""
    try:
        _Started(thread)
        thread.start()
    except (RuntimeError, MemoryError) as error:
        vars(thread).pop("_bootstrap", None)
        # Python keeps the number that pthread_create(3) gave to itself: there is one for all of these.
        refused = OSError(errno.EAGAIN, "")
        raise named(refused, f"no thread can be started ({error or 'no memory'})") from error
