"""What this system offers for paged memory, and why not more, in words.

A process that handles its own page faults asks the kernel for a userfaultfd. There are three ways to one. They are
tried in this order:

    the system call        root, CAP_SYS_PTRACE, or vm.unprivileged_userfaultfd=1
    /dev/userfaultfd       whoever may open it
    user mode only         anybody; a system call that is handed cold memory fails with EFAULT
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from batchzip.core.userfaultfd import CLEAN_PAGES, NEEDED, POISONING, WAYS, probe
from batchzip.errors import PagingUnavailable
from batchzip.system.limits import named

_NAMES = {
    "syscall": "the system call userfaultfd",
    "device": "/dev/userfaultfd",
    "user mode": "the system call userfaultfd, for touches in user mode only",
}

_FILTERED = "or a filter of system calls forbids it, as containers have it"

_REASONS = {
    ("syscall", errno.EPERM): (
        f"it takes root, CAP_SYS_PTRACE or vm.unprivileged_userfaultfd=1, {_FILTERED}"
    ),
    ("device", errno.ENOENT): "it is not there: Linux 6.1 or newer has it, where /dev is complete",
    ("device", errno.EACCES): "this user may not open it: its owner may allow that by chmod",
    ("device", errno.EPERM): f"this user may not open it, {_FILTERED}",
    ("user mode", errno.EPERM): "a filter of system calls forbids it, as containers have it",
    ("user mode", errno.EINVAL): "the kernel is older than Linux 5.11",
    (
        "syscall",
        errno.ENOSYS,
    ): "the kernel has no userfaultfd, or a filter of system calls hides it",
    ("user mode", errno.ENOSYS): (
        "the kernel has no userfaultfd, or a filter of system calls hides it"
    ),
}

_WANTED = {
    CLEAN_PAGES: (
        "The kernel does not tell which pages were written (Linux 6.7 does): "
        "each page that was restored is compressed again."
    ),
    POISONING: (
        "The kernel cannot mark a page as lost (Linux 6.6 can): touching one ends in SIGSEGV, not SIGBUS."
    ),
}
"""By features, what is without them."""


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether paged memory works here, and how. True if it does; `str()` says it in words.

    Examples:
        >>> import batchzip
        >>> here = batchzip.paged.available()
        >>> bool(here) == (here.way is not None and here.enough)
        True
    """

    way: str | None
    """How a userfaultfd is had: "syscall", "device" or "user mode"; None: not at all."""
    refused: dict[str, str]
    """Why not by the ways that come before, by way."""
    enough: bool
    """Whether the kernel's userfaultfd handles what paged memory needs."""
    wanted: tuple[str, ...]
    """What the kernel lacks that it can do without, and what is instead."""

    def __bool__(self) -> bool:
        return self.way is not None and self.enough

    def __str__(self) -> str:
        if self.way is None:
            parts = ["Paged memory does not work here: the process gets no userfaultfd."]
        elif not self.enough:
            why = "the kernel tells no faults of shared memory (Linux 5.14 does)"
            parts = [f"Paged memory does not work here: {why}."]
        else:
            parts = [f"Paged memory works here, by {_NAMES[self.way]}."]
            if self.way == "user mode":
                parts.append(
                    "A system call that is handed cold memory fails with EFAULT: "
                    "wrap it in `with memory.resident(array):`."
                )
        for way, reason in self.refused.items():
            parts.append(f"Not by {_NAMES[way]}: {reason}.")
        return " ".join([*parts, *self.wanted])


def available() -> Availability:
    """Find out whether paged memory works in this process, by which way, and why not by the others.

    Examples:
        >>> import batchzip
        >>> if not batchzip.paged.available():
        ...     print(batchzip.paged.available())  # says in words what is missing
    """
    return _explained(*probe())


def require() -> None:
    """Raise PagingUnavailable where paged memory does not work here, and LimitReached where a limit is why."""
    way, features, failed = probe()
    for number in failed.values():
        if way is None and number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise named(OSError(number, os.strerror(number)), "no userfaultfd can be had")
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
