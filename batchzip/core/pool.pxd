from libc.stdint cimport uint8_t, uint32_t, uint64_t

from batchzip.core.zspages cimport PoolState

# The caller holds the lock, but for `pool_lock` and `pool_try_lock`. After close() nothing is live, and nothing can be
# allocated (-EBADF).
cdef void pool_lock(PoolState *pool) noexcept nogil
cdef bint pool_try_lock(PoolState *pool) noexcept nogil
cdef void pool_unlock(PoolState *pool) noexcept nogil
# All or none: 0, -ENOMEM (no memory) or -ENOSPC (the limit). What the objects hold is undefined.
cdef int pool_allocate(
    PoolState *pool, uint32_t count, const uint32_t *lengths, uint64_t *handles
) noexcept nogil
# NULL: not live. Good until the lock is let go, or anything is allocated.
cdef uint8_t *pool_bytes(PoolState *pool, uint64_t handle, uint32_t *length) noexcept nogil
# Return the object's length; 0: not live.
cdef uint32_t pool_free(PoolState *pool, uint64_t handle) noexcept nogil
# After a batch of frees: give back the memory that is idle beyond what may be.
cdef void pool_settle(PoolState *pool) noexcept nogil


cdef class Allocator:
    cdef PoolState state
    cdef uint32_t made_in
    cdef bint ended  # closed: read and written with the GIL
    cdef int refuse(self) except -1  # raise ClosedError or ForkedProcess
    cdef int raise_refusal(self, int error) except -1  # what an error of `pool_allocate` means
    cdef int raise_bad(self, Py_ssize_t index, const uint64_t *handles) except -1
