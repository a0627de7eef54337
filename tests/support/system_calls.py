"""Filters of system calls (seccomp), as containers have them. They stay until the process ends."""

from __future__ import annotations

import ctypes
import os
import platform
import struct

import pytest

LIBC = ctypes.CDLL(None, use_errno=True)

NUMBERS = {
    "x86_64": {
        "ioctl": 16,
        "madvise": 28,
        "seccomp": 317,
        "memfd_create": 319,
        "userfaultfd": 323,
        "pidfd_open": 434,
    },
    "aarch64": {
        "ioctl": 29,
        "madvise": 233,
        "seccomp": 277,
        "memfd_create": 279,
        "userfaultfd": 282,
        "pidfd_open": 434,
    },
}.get(platform.machine(), {})
"""Numbers of system calls by their names."""

needs_filters = pytest.mark.skipif(not NUMBERS, reason="numbers of two machines")

_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _FAIL = 0x7FFF0000, 0x50000


def forbid(call: str, code: int) -> None:
    """Let a system call fail with the errno `code` in all threads of this process from now on."""
    _install([*_unless(0, NUMBERS[call], skip=1), (_RETURN, 0, 0, _FAIL | code)])


def refuse(call: str, value: int, code: int, *, argument: int = 1) -> None:
    """Let a system call fail if its argument of this position has the given value."""
    steps = [
        *_unless(0, NUMBERS[call], skip=3),
        *_unless(16 + 8 * argument, value, skip=1),
        (_RETURN, 0, 0, _FAIL | code),
    ]
    _install(steps)


def _unless(offset: int, value: int, skip: int) -> list[tuple[int, int, int, int]]:
    """Return the steps that skip others unless a word of the call has the given value."""
    return [(_LOAD, 0, 0, offset), (_EQUAL, 0, skip, value)]


def _install(steps: list[tuple[int, int, int, int]]) -> None:
    steps = [*steps, (_RETURN, 0, 0, _ALLOW)]
    filter_ = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(filter_))
    assert LIBC.prctl(38, 1, 0, 0, 0) == 0  # no new privileges
    done = LIBC.syscall(NUMBERS["seccomp"], 1, 1, program)  # for all threads
    assert done == 0, os.strerror(ctypes.get_errno())
