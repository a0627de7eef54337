from libc.stdint cimport uint8_t, uint32_t, uint64_t

from batchzip.core.zspages cimport PoolState

# The caller holds the mutex, except for `pool_lock` and `pool_try_lock`. After close() no handle is
# live, and an allocation fails with -EBADF.
cdef void pool_lock(PoolState *pool) noexcept nogil
cdef bint pool_try_lock(PoolState *pool) noexcept nogil
cdef void pool_unlock(PoolState *pool) noexcept nogil
# Allocate all objects or none. Return 0, -ENOMEM (no memory) or -ENOSPC (the limit). The contents
# of the objects are undefined.
cdef int pool_allocate(
    PoolState *pool, uint32_t count, const uint32_t *lengths, uint64_t *handles
) noexcept nogil
# Return the address, or NULL if the handle is not live. It is valid until the mutex is released or
# anything is allocated.
cdef uint8_t *pool_bytes(PoolState *pool, uint64_t handle, uint32_t *length) noexcept nogil
# Return the object's length, or 0 if the handle is not live.
cdef uint32_t pool_free(PoolState *pool, uint64_t handle) noexcept nogil
# Call it after a batch of frees: return idle memory beyond the reserve to the system.
cdef void pool_settle(PoolState *pool) noexcept nogil
cdef uint64_t limit_of(limit) except? 0


cdef class Allocator:
    cdef PoolState state
    cdef uint32_t made_in
    cdef bint ended  # closed; protected by the GIL
    cdef int refuse(self) except -1  # raise ClosedError or ForkedProcess
    cdef int raise_refusal(self, int error) except -1  # raise for an error of `pool_allocate`
    cdef int raise_bad(self, Py_ssize_t index, const uint64_t *handles) except -1
