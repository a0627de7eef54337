from libc.stdint cimport int64_t, uint64_t

from batchzip.core.zspages cimport PoolState

cdef uint64_t compact_pool(PoolState *pool, int64_t most) noexcept nogil
cdef uint64_t fragmented_bytes(const PoolState *pool) noexcept nogil
