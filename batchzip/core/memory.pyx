"""Memory: what the core asks the system for: heap memory, and memory that other processes can see.

    bz_malloc, bz_calloc, bz_realloc   as in C
    Memory                             a memfd with one mapping, as segment.py has it for Python

A Memory begins as address space and no memory. memory_reserve() gives memory to a part of it, so
that what is written there can neither fault nor find that the system has no more; memory_release()
punches a hole. The file never shrinks (F_SEAL_SHRINK), opens for the same user only (mode 0600),
has no name in the file system, and its descriptor is above 2.

Other processes read it through descriptors that are opened for reading only. A process of the same user can
still open it through /proc and write. Memory that never gives back what it reserves is therefore sealed
(F_SEAL_FUTURE_WRITE, Linux 5.1): only the owner's mapping, which may grow and move, can write. Tables and words
are sealed. Objects are not, because the kernel then refuses to punch holes; their checksums show changes.

Every request can be made to fail by a test, the n-th from now: so all that handles the failure is
run. The hook costs an atomic addition a request.
"""

import errno
import fcntl
import os

from libc.errno cimport EINTR, ENOMEM, errno as c_errno
from libc.stdlib cimport calloc, malloc, realloc
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from batchzip.system.descriptors import above_standard, seal_writing
from batchzip.system.limits import named

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
    PIECE = 4 << 20  # bytes that the system is asked for at a time
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
    """Return how many requests for memory there have been."""
    return bz_read_figure(&bz_requests)


def fail_allocation(uint64_t number, uint64_t count=1) -> None:
    """Have the `number`-th request from now fail, and the `count` − 1 after it. 0: no more."""
    bz_fail(number, count)


cdef class Descriptor:
    """A descriptor of this process, closed once, when it goes at the latest, and only while it is still ours.

    A program may close every number it does not know, as daemons do, and get the number again for a file of its
    own. Each method is one step: no interrupt comes into it, and no other thread.
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
        """Whether it was closed."""
        return self.fd < 0

    def ring(self) -> None:
        """Add one to the eventfd that it is; do nothing once it is closed."""
        cdef uint64_t one = 1
        if self.is_ours():
            write(self.fd, &one, sizeof(one))  # one that has counted up to its end rings already

    cdef bint is_ours(self) noexcept:
        cdef Stat stat
        if self.fd < 0 or fstat(self.fd, &stat):
            return False
        return stat.st_dev == self.device and stat.st_ino == self.inode

    def close(self) -> None:
        """Close it, unless that is done."""
        if self.is_ours():
            close(self.fd)
        self.fd = -1

    def __dealloc__(self):
        if self.is_ours():
            close(self.fd)


cdef uint64_t machine_page() noexcept nogil:
    """Return the bytes of one page of the machine."""
    return sysconf(_SC_PAGESIZE)


cdef int memory_create(
    Memory *memory, str name, uint64_t most, uint64_t least, bint keeps=False
) except -1:
    """Make memory of `most` bytes of address space, or half as much, and so on, down to `least`.

    `name` shows in /proc/PID/maps. If it `keeps` what it reserves, memory_release() is refused, and nobody
    else can write. Raise LimitReached; nothing is left then.
    """
    cdef void *base = MAP_FAILED
    cdef uint64_t size = 2 * most
    cdef int fd = -1, error
    cdef Stat stat
    with above_standard():
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
    """Enlarge the address space; `base` may be another then. Return 0 or a negative errno."""
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
    """Give memory to whole pages that have none, or to none. Return 0 or a negative errno."""
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
        # The kernel begins again at each signal: a piece has to be done between two of them.
        piece = max(piece // 2, <uint64_t>LEAST_PIECE)
    if length > machine_page():  # a fault costs no more for one page
        madvise(memory.base + offset, length, MADV_POPULATE_WRITE)
    return 0


cdef int memory_release(Memory *memory, uint64_t offset, uint64_t length) noexcept nogil:
    """Give the memory of whole pages back; they read as zero. Return 0 or a negative errno."""
    if length and fallocate(memory.fd, BZ_PUNCH, offset, length):
        return -c_errno
    return 0


cdef uint64_t memory_held(const Memory *memory) noexcept nogil:
    """Return the bytes of memory behind it, as the kernel counts them."""
    cdef Stat stat
    return 0 if fstat(memory.fd, &stat) else stat.st_blocks * 512


cdef void memory_close(Memory *memory) noexcept nogil:
    """Drop mapping and descriptor, if there are any: the memory goes with the last of them."""
    cdef Stat stat
    if memory.base is NULL:
        return
    munmap(memory.base, memory.size)
    if fstat(memory.fd, &stat) == 0 and stat.st_dev == memory.device and stat.st_ino == memory.inode:
        close(memory.fd)
    memory.fd = -1
    memory.base = NULL
    memory.size = 0
