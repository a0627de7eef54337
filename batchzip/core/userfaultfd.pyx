"""Userfaultfd: who may handle the faults of this process, and what its kernel can do with them.

    syscall     userfaultfd(2): root, CAP_SYS_PTRACE, or vm.unprivileged_userfaultfd = 1
    device      /dev/userfaultfd, for whoever may open it (Linux 6.1)
    user mode   userfaultfd(2) for faults of ordinary code only: anybody, from Linux 5.11 on

The ways are tried in this order. With the last one a system call that touches a page which is not
mapped fails with EFAULT.

The calls themselves stand in the .pxd, so that each module compiles them in.
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
"""How this process may get a userfaultfd, in the order in which the ways are tried."""

NEEDED = MISSING_SHMEM | MINOR_SHMEM
"""Feature bits that paged memory cannot do without; Linux 5.14 has them."""

CLEAN_PAGES = WP_SHMEM | WP_ASYNC
"""Feature bits that tell pages that were written from others; Linux 6.7 has them."""

POISONING = POISON
"""The feature bit that lets a page raise SIGBUS; Linux 6.6 has it."""

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
    """Return the way that works or None, the kernel's feature bits, and the errno of each way that does not."""
    failures = {}
    cdef uint64_t features = 0
    cdef int fd, failed
    for number, way in enumerate(WAYS):
        fd = _open(number)
        if fd < 0:
            failures[way] = -fd
            continue
        failed = bz_uffd_open_api(fd, &features)  # asked for nothing, it says what there is
        os.close(fd)
        if failed:
            failures[way] = -failed
            continue
        return way, features, failures
    return None, 0, failures


cdef int open_userfaultfd(uint64_t *features, int *way) except -1:
    """Open one with as many of `features` as there are. Raise OSError if no way works, or NEEDED is missing."""
    cdef uint64_t wanted = features[0]
    cdef int fd, failed
    found, has, failures = probe()
    if found is None:
        raise OSError(failures[WAYS[0]], os.strerror(failures[WAYS[0]]))
    if has & NEEDED != NEEDED:
        raise OSError(errno.EOPNOTSUPP, "userfaultfd handles no faults of shared memory here")
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
