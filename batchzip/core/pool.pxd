from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from batchzip.core.memory cimport Memory

cdef enum:
    CLASSES = 258  # by grains: 1 to 257
    GROUPS = 4  # of zspages with holes, by fullness
    FREE_LISTS = 160  # of free ranges, by length
    FREE_WORDS = 3  # of bits for them
    FIRST_SLOT = 8
    GENERATION_SHIFT = 48

cdef extern from *:
    """
    #include <pthread.h>
    #include <stdint.h>
    typedef struct {
        uint64_t first : 45;    /* grain where it begins */
        uint64_t group : 3;     /* list of its class that it is in; GROUPS: none, it is full */
        uint64_t capacity : 7;  /* objects it has room for; 0: a free range */
        uint64_t grains : 9;    /* of an object; 0: a free range */
        uint64_t live;          /* a bit for each object; or the grains of a free range */
        uint32_t before, after; /* in a list */
        uint32_t below, above;  /* in the order of addresses */
    } bz_range;
    """
    ctypedef struct Range "bz_range":
        uint64_t first
        uint32_t group
        uint32_t capacity
        uint32_t grains
        uint64_t live
        uint32_t before
        uint32_t after
        uint32_t below
        uint32_t above

    ctypedef struct Mutex "pthread_mutex_t":
        pass

cdef struct SizeClass:
    uint64_t live  # objects
    uint64_t room  # objects that its zspages have room for
    uint32_t zspages
    uint32_t groups[GROUPS]  # first zspage of each list; the last list has the fullest

cdef struct PoolState:
    # What others may read, under the lock.
    uint64_t held  # bytes of memory behind the objects
    uint64_t stored  # bytes asked for
    uint64_t objects
    uint64_t limit  # of `held`; UINT64_MAX: none
    uint32_t page_size
    uint32_t length_bits  # of a word, below the address
    # What is the pool's own.
    Mutex mutex
    bint closed
    uint32_t grain_shift  # log2 of the bytes of a grain
    uint32_t page_shift  # log2 of the bytes of a machine page
    uint32_t most_grains  # of a zspage
    Memory data
    Memory words
    uint64_t slots  # slots that have memory
    uint64_t next_slot  # the first that was never used
    uint64_t free_slot  # first of the chain; 0: none
    Range *ranges  # record 0 is none
    uint32_t range_room  # records there is memory for
    uint32_t range_count  # records that were ever used
    uint32_t spare_range  # first of the records that are not used, chained by `after`
    uint32_t last  # the range that ends at `top`
    uint64_t top  # grains in use, free ranges between zspages included
    uint64_t free_grains  # of all free ranges
    uint32_t *pages  # by machine page: BACKED | the first zspage that touches it
    uint64_t page_room  # pages there is an entry for
    uint64_t idle  # pages that have memory and that no zspage touches
    uint64_t hand  # page where the search for idle ones goes on
    uint64_t sliding  # grain where compaction goes on
    uint64_t slid  # grains that slid over the free range there
    uint64_t fresh  # grains that the batch under way will want beyond `top`
    uint64_t free_map[FREE_WORDS]  # which lists have a range
    uint32_t free_lists[FREE_LISTS]
    SizeClass classes[CLASSES]

# The caller holds the lock, but for `pool_lock`. After close() nothing is live, and nothing can be
# allocated (-EBADF).
cdef void pool_lock(PoolState *pool) noexcept nogil
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
    cdef int refuse(self) except -1  # raise ClosedError or ForkedProcess
    cdef int raise_refusal(self, int error) except -1  # what an error of `pool_allocate` means
    cdef int raise_bad(self, Py_ssize_t index, const uint64_t *handles) except -1
