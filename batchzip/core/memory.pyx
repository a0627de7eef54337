"""Memory that the core gets from the system: heap memory, and memory that processes share.

    bz_malloc, bz_calloc, bz_realloc   as in C
    Memory                             a memfd with one mapping; segment.py is the one in Python

A Memory begins as address space without memory. memory_reserve() allocates memory for a part of it,
so that a write there can neither fault nor run out of memory. memory_release() punches a hole. The
file never shrinks (F_SEAL_SHRINK), only the same user can open it (mode 0600), it has no name in
the file system, and its descriptor is above 2.

Other processes read it through read-only descriptors. A process of the same user can still open it
through /proc and write to it. Memory that is never released is therefore sealed
(F_SEAL_FUTURE_WRITE, Linux 5.1): only the owner's mapping, which may grow and move, can write. The
tables and state words are sealed. The memory of objects is not, because the kernel then refuses to
punch holes; checksums detect changes there.

A test can make the n-th request from now fail, so that the tests reach every error path. The hook
costs one atomic addition per request.
"""

import errno
import fcntl
import os

from libc.errno cimport EINTR, ENOMEM, errno as c_errno
from libc.stdlib cimport calloc, malloc, realloc
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from batchzip.system.descriptors import above_standard, seal_writing
from batchzip.system.limits import named, needing

cdef extern from *:
    """
    #include "native.h"
    #include <fcntl.h>
    #include <linux/falloc.h>

    static uint64_t bz_requests, bz_first_failing, bz_failing;

    static int bz_grants(void) {
        uint64_t number = __atomic_add_fetch(&bz_requests, 1, __ATOMIC_RELAXED);
        uint64_t first = __atomic_load_n(&bz_first_failing, __ATOMIC_RELAXED);
        return !bz_unlikely(number - first < __atomic_load_n(&bz_failing, __ATOMIC_RELAXED));
    }
    static void bz_fail(uint64_t number, uint64_t count) {
        uint64_t first = __atomic_load_n(&bz_requests, __ATOMIC_RELAXED) + number;
        __atomic_store_n(&bz_failing, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&bz_first_failing, first, __ATOMIC_RELAXED);
        __atomic_store_n(&bz_failing, number ? count : 0, __ATOMIC_RELAXED);
    }
    #ifndef MADV_POPULATE_WRITE
    #define MADV_POPULATE_WRITE 23 /* Linux 5.14; older kernels refuse it, which only costs time */
    #endif
    #define BZ_PUNCH (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)
    """
    bint bz_grants() nogil
    void bz_fail(uint64_t, uint64_t) nogil
    uint64_t bz_requests
    uint64_t bz_read_figure(const uint64_t *) nogil
    enum: PROT_READ
    enum: PROT_WRITE
    enum: MAP_SHARED
    enum: MREMAP_MAYMOVE
    enum: MADV_POPULATE_WRITE
    enum: BZ_PUNCH
    enum: _SC_PAGESIZE
    ctypedef struct Stat "struct stat":
        uint64_t st_blocks
        uint64_t st_dev
        uint64_t st_ino
    void *MAP_FAILED
    void *mmap(void *, size_t, int, int, int, long) nogil
    void *mremap(void *, size_t, size_t, int) nogil
    int munmap(void *, size_t) nogil
    int madvise(void *, size_t, int) nogil
    int fallocate(int, int, long, long) nogil
    int ftruncate(int, long) nogil
    int fstat(int, Stat *) nogil
    int close(int) nogil
    long write(int, const void *, size_t) nogil
    long sysconf(int) nogil

cdef enum:
    PIECE = 4 << 20  # bytes per request to the system
    LEAST_PIECE = 64 << 10


cdef void *bz_malloc(size_t size) noexcept nogil:
    return malloc(size) if bz_grants() else NULL


cdef void *bz_calloc(size_t count, size_t size) noexcept nogil:
    return calloc(count, size) if bz_grants() else NULL


cdef void *bz_realloc(void *memory, size_t size) noexcept nogil:
    return realloc(memory, size) if bz_grants() else NULL


cdef bint bz_may_reserve() noexcept nogil:
    return bz_grants()


def allocations() -> int:
    """Return the number of requests for memory so far."""
    return bz_read_figure(&bz_requests)


def fail_allocation(uint64_t number, uint64_t count=1) -> None:
    """Make the `number`-th request from now fail, and the `count` − 1 requests after it.

    With 0, no request fails any more.
    """
    bz_fail(number, count)


cdef class Descriptor:
    """A descriptor of this process that is closed exactly once.

    It is closed at deallocation at the latest, and only if the number still belongs to the same
    file: a program may close every number it does not know, as daemons do, and get the number again
    for a file of its own. Each method is one step: neither a signal handler nor another thread runs
    in between.
    """

    cdef int fd
    cdef uint64_t device, inode

    def __cinit__(self, int fd):
        cdef Stat stat
        self.fd = -1
        if fstat(fd, &stat):
            raise OSError(c_errno, os.strerror(c_errno))
        self.device, self.inode = stat.st_dev, stat.st_ino
        self.fd = fd

    def fileno(self) -> int:
        """Return its number. Raise ValueError once it is closed."""
        if self.fd < 0:
            raise ValueError("this descriptor is closed")
        return self.fd

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.fd < 0

    def ring(self) -> None:
        """Add one to this eventfd. Do nothing if it is closed."""
        cdef uint64_t one = 1
        if self.is_ours():
            write(self.fd, &one, sizeof(one))  # fails only at the maximum, which wakes readers too

    cdef bint is_ours(self) noexcept:
        cdef Stat stat
        if self.fd < 0 or fstat(self.fd, &stat):
            return False
        return stat.st_dev == self.device and stat.st_ino == self.inode

    def close(self) -> None:
        """Close the descriptor, unless it is closed already, by this object or by other code."""
        if self.is_ours():
            close(self.fd)
        self.fd = -1

    def __dealloc__(self):
        if self.is_ours():
            close(self.fd)


cdef uint64_t machine_page() noexcept nogil:
    """Return the size of the machine's page in bytes."""
    return sysconf(_SC_PAGESIZE)


cdef int memory_create(
    Memory *memory, str name, uint64_t most, uint64_t least, bint keeps=False
) except -1:
    """Create memory with `most` bytes of address space.

    If the system refuses that, try half as much, and so on, down to `least`. `name` shows in
    /proc/PID/maps. With `keeps`, memory_release() fails, and no other process can write. Raise
    LimitReached if the system grants too little; nothing is left behind then.
    """
    cdef void *base = MAP_FAILED
    cdef uint64_t size = 2 * most
    cdef int fd = -1, error
    cdef Stat stat
    with above_standard(), needing("memfd_create"):
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.fchmod(fd, 0o600)
        while base == MAP_FAILED:
            size //= 2
            error = errno.ENOMEM
            if bz_may_reserve():
                if ftruncate(fd, size) == 0:
                    base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
                error = c_errno
            if base == MAP_FAILED and size // 2 < least:
                raise named(OSError(error, ""), f"{size} bytes of shared memory")
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        if keeps:
            seal_writing(fd)
    except BaseException:
        if base != MAP_FAILED:
            munmap(base, size)
        close(fd)
        raise
    fstat(fd, &stat)
    memory.device, memory.inode = stat.st_dev, stat.st_ino
    memory.fd = fd
    memory.base = <uint8_t *>base
    memory.size = size
    return 0


cdef int memory_grow(Memory *memory, uint64_t size) noexcept nogil:
    """Enlarge the address space. `base` may move. Return 0 or a negative errno."""
    cdef void *base
    if not bz_may_reserve():
        return -ENOMEM
    if ftruncate(memory.fd, size):
        return -c_errno
    base = mremap(memory.base, memory.size, size, MREMAP_MAYMOVE)
    if base == MAP_FAILED:
        return -c_errno
    memory.base = <uint8_t *>base
    memory.size = size
    return 0


cdef int memory_reserve(Memory *memory, uint64_t offset, uint64_t length) noexcept nogil:
    """Allocate memory for whole pages that have none: for all or for none of them.

    Return 0 or a negative errno.
    """
    cdef uint64_t piece = PIECE, done = 0, part
    cdef int failed
    if not bz_may_reserve():
        return -ENOMEM
    while done < length:
        part = min(piece, length - done)
        if fallocate(memory.fd, 0, offset + done, part) == 0:
            done += part
            continue
        failed = c_errno
        if failed != EINTR:
            memory_release(memory, offset, done)
            return -failed
        # The kernel starts over after each signal, so a piece must be small enough to finish
        # between two signals.
        piece = max(piece // 2, <uint64_t>LEAST_PIECE)
    if length > machine_page():  # for one page, a fault costs no more than the call
        madvise(memory.base + offset, length, MADV_POPULATE_WRITE)
    return 0


cdef int memory_release(Memory *memory, uint64_t offset, uint64_t length) noexcept nogil:
    """Return the memory of whole pages to the system; they then read as zero.

    Return 0 or a negative errno.
    """
    if length and fallocate(memory.fd, BZ_PUNCH, offset, length):
        return -c_errno
    return 0


cdef uint64_t memory_held(const Memory *memory) noexcept nogil:
    """Return the bytes of memory that are allocated, as the kernel counts them."""
    cdef Stat stat
    return 0 if fstat(memory.fd, &stat) else stat.st_blocks * 512


cdef void memory_close(Memory *memory) noexcept nogil:
    """Unmap the memory and close the descriptor, if they exist.

    The kernel frees the memory when its last mapping and descriptor are gone.
    """
    cdef Stat stat
    if memory.base is NULL:
        return
    munmap(memory.base, memory.size)
    if (
        fstat(memory.fd, &stat) == 0
        and stat.st_dev == memory.device
        and stat.st_ino == memory.inode
    ):
        close(memory.fd)
    memory.fd = -1
    memory.base = NULL
    memory.size = 0
