"""Userfaultfd: the ways to open one, and the features of the kernel.

    syscall     userfaultfd(2): needs root, CAP_SYS_PTRACE, or vm.unprivileged_userfaultfd = 1
    device      /dev/userfaultfd (Linux 6.1): needs permission to open it
    user mode   userfaultfd(2) for faults in user mode only (Linux 5.11): needs no privilege

The ways are tried in this order. With the last one, a system call that touches an unmapped page
fails with EFAULT.

The calls are defined in the .pxd, so that each module can inline them.
Source: Documentation/admin-guide/mm/userfaultfd.rst.
"""

import errno
import os

from libc.errno cimport errno as c_errno
from libc.stdint cimport uint64_t

from batchzip.system.descriptors import moved_above_standard

cdef extern from *:
    long syscall(long, ...) nogil
    int ioctl(int, unsigned long, ...) nogil

WAYS = ("syscall", "device", "user mode")
"""The ways to open a userfaultfd, in the order in which they are tried."""

NEEDED = MISSING_SHMEM | MINOR_SHMEM
"""The feature bits that paged memory requires; Linux 5.14 has them."""

CLEAN_PAGES = WP_SHMEM | WP_ASYNC
"""The feature bits that distinguish written pages from others; Linux 6.7 has them."""

POISONING = POISON
"""The feature bit that makes a lost page raise SIGBUS; Linux 6.6 has it."""

cdef int _FLAGS = O_CLOEXEC | O_NONBLOCK


cdef int _open(int way) except? -1:
    """Return a new userfaultfd, or a negative errno."""
    cdef int fd
    if way == 1:
        try:
            device = os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            return -error.errno
        fd = ioctl(device, BZ_NEW, _FLAGS)
        failed = c_errno
        os.close(device)
    else:
        fd = syscall(SYS_userfaultfd, _FLAGS | (BZ_USER_MODE_ONLY if way == 2 else 0))
        failed = c_errno
    return fd if fd >= 0 else -failed


def probe() -> tuple:
    """Return the way that works, or None; the feature bits; and the errno of each failed way."""
    failures = {}
    cdef uint64_t features = 0
    cdef int fd, failed
    for number, way in enumerate(WAYS):
        fd = _open(number)
        if fd < 0:
            failures[way] = -fd
            continue
        failed = bz_uffd_open_api(fd, &features)  # with no request, it returns all features
        os.close(fd)
        if failed:
            failures[way] = -failed
            continue
        return way, features, failures
    return None, 0, failures


cdef int open_userfaultfd(uint64_t *features, int *way) except -1:
    """Open a userfaultfd with those of `features` that the kernel has.

    Raise OSError if no way works or a feature in NEEDED is missing.
    """
    cdef uint64_t wanted = features[0]
    cdef int fd, failed
    found, has, failures = probe()
    if found is None:
        raise OSError(failures[WAYS[0]], os.strerror(failures[WAYS[0]]))
    if has & NEEDED != NEEDED:
        raise OSError(
            errno.EOPNOTSUPP, "this kernel's userfaultfd does not handle faults of shared memory"
        )
    way[0] = WAYS.index(found)
    fd = _open(way[0])
    if fd < 0:
        raise OSError(-fd, os.strerror(-fd))
    try:
        fd = moved_above_standard(fd)
        features[0] = wanted & has
        failed = bz_uffd_open_api(fd, features)
        if failed:
            raise OSError(-failed, os.strerror(-failed))
        features[0] &= wanted
    except BaseException:
        os.close(fd)
        raise
    return fd
