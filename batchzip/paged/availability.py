"""Availability: find out whether this system supports paged memory, and explain why not.

A process that handles its own page faults asks the kernel for a userfaultfd. There are three ways
to get one. They are tried in this order:

    the system call     needs root, CAP_SYS_PTRACE, or vm.unprivileged_userfaultfd=1
    /dev/userfaultfd    needs the permission to open it
    user mode only      needs no privilege. A system call on cold memory fails with EFAULT.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from batchzip.core.userfaultfd import CLEAN_PAGES, NEEDED, POISONING, WAYS, probe
from batchzip.errors import PagingUnavailable
from batchzip.system.limits import named

_NAMES = {
    "syscall": "the system call userfaultfd, for all faults",
    "device": "/dev/userfaultfd",
    "user mode": "the system call userfaultfd, for faults in user mode only",
}

_FILTERED = "a filter of system calls (seccomp, as in containers) forbids it"
_HIDDEN = "the kernel has no userfaultfd, or a filter of system calls (seccomp) hides it"

_REASONS = {
    ("syscall", errno.EPERM): (
        f"it needs root, CAP_SYS_PTRACE or vm.unprivileged_userfaultfd=1, or {_FILTERED}"
    ),
    ("syscall", errno.ENOSYS): _HIDDEN,
    ("device", errno.ENOENT): "it does not exist: it needs Linux 6.1 and a complete /dev",
    ("device", errno.EACCES): "this user may not open it: its owner can allow that with chmod",
    ("device", errno.EPERM): f"this user may not open it, or {_FILTERED}",
    ("user mode", errno.EPERM): _FILTERED,
    ("user mode", errno.EINVAL): "the kernel is older than Linux 5.11",
    ("user mode", errno.ENOSYS): _HIDDEN,
}

_WANTED = {
    CLEAN_PAGES: (
        "The kernel does not report which pages were written (Linux 6.7 does): "
        "each restored page is compressed again."
    ),
    POISONING: (
        "The kernel cannot mark a page as lost (Linux 6.6 can): "
        "touching one ends in SIGSEGV, not SIGBUS."
    ),
}
"""For each optional feature, the consequence of its absence."""


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether paged memory works here, and in which way. True if it does. `str()` explains it.

    Examples:
        >>> import batchzip
        >>> here = batchzip.paged.available()
        >>> bool(here) == (here.way is not None and here.enough)
        True
    """

    way: str | None
    """How the process gets a userfaultfd: "syscall", "device" or "user mode". None: not at all."""
    refused: dict[str, str]
    """The ways that were tried before and failed, with the reasons."""
    enough: bool
    """Whether the kernel's userfaultfd has all features that paged memory needs."""
    wanted: tuple[str, ...]
    """Optional features that the kernel lacks, with the consequences."""

    def __bool__(self) -> bool:
        return self.way is not None and self.enough

    def __str__(self) -> str:
        if self.way is None:
            parts = ["Paged memory does not work here: the process cannot get a userfaultfd."]
        elif not self.enough:
            why = "the kernel does not report faults in shared memory (Linux 5.14 does)"
            parts = [f"Paged memory does not work here: {why}."]
        else:
            parts = [f"Paged memory works here, by {_NAMES[self.way]}."]
            if self.way == "user mode":
                parts.append(
                    "A system call on cold memory fails with EFAULT: "
                    "wrap it in `with memory.resident(array):`."
                )
        if self.refused:
            others = (f"{_NAMES[way]} ({reason})" for way, reason in self.refused.items())
            parts.append(f"Not available: {'; '.join(others)}.")
        return " ".join([*parts, *self.wanted])


def available() -> Availability:
    """Return whether paged memory works in this process, in which way, and why not in others.

    Examples:
        >>> import batchzip
        >>> if not batchzip.paged.available():
        ...     print(batchzip.paged.available())  # explains what is missing
    """
    return _explained(*probe())


def require() -> None:
    """Raise PagingUnavailable if paged memory does not work here.

    Raise LimitReached instead if a limit of the process or the system is the reason.
    """
    way, features, failed = probe()
    for number in failed.values():
        if way is None and number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise named(OSError(number, os.strerror(number)), "no userfaultfd can be opened")
    ways = _explained(way, features, failed)
    if not ways:
        raise PagingUnavailable(str(ways))


def _explained(way: str | None, features: int, failed: dict[str, int]) -> Availability:
    refused = {each: _reason(each, failed[each]) for each in WAYS if failed.get(each)}
    if way is None:
        return Availability(None, refused, enough=False, wanted=())
    return Availability(
        way,
        refused,
        features & NEEDED == NEEDED,
        tuple(text for bits, text in _WANTED.items() if features & bits != bits),
    )


def _reason(way: str, number: int) -> str:
    return _REASONS.get((way, number)) or os.strerror(number).lower()
