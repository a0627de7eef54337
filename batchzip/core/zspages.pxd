from libc.stdint cimport uint8_t, uint32_t, uint64_t

from batchzip.core.memory cimport Memory

cdef enum:
    CLASSES = 258  # size classes by grains: 1 to 257
    GROUPS = 4  # fullness groups of zspages with holes
    FREE_LISTS = 160  # lists of free ranges, by length
    FREE_WORDS = 3  # words of the bitmap of these lists
    FIRST_SLOT = 8
    GENERATION_SHIFT = 48
    HEADER = 4  # bytes before each object: its slot
    UNLISTED = 7  # group of a zspage that is in no list
    MOST_OBJECTS = 64  # maximum objects of a zspage, the number of bits in its bitmap

cdef extern from *:
    """
    #include <pthread.h>
    #include <stdint.h>
    typedef struct {
        uint64_t first : 45;    /* grain where it begins */
        uint64_t group : 3;     /* its list in its class, or GROUPS if it is full and in no list */
        uint64_t capacity : 7;  /* objects it has room for; 0 for a free range */
        uint64_t grains : 9;    /* grains per object; 0 for a free range */
        uint64_t live;          /* a bit for each object; the length in grains of a free range */
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
    uint64_t live  # number of live objects
    uint64_t room  # number of objects that its zspages have room for
    uint32_t zspages
    uint32_t groups[GROUPS]  # first zspage of each list; the last list has the fullest

cdef struct PoolState:
    # Other modules may read these fields under the mutex.
    uint64_t held  # bytes of memory behind the objects
    uint64_t stored  # sum of the objects' lengths in bytes
    uint64_t objects
    uint64_t limit  # maximum of `held`; UINT64_MAX means no limit
    uint32_t page_size
    uint32_t length_bits  # of a word, below the address
    # The fields from here on are private to the pool.
    Mutex mutex
    bint closed
    uint32_t grain_shift  # log2 of the bytes of a grain
    uint32_t page_shift  # log2 of the bytes of a machine page
    uint32_t most_grains  # maximum grains of a zspage
    Memory data
    Memory words
    uint64_t slots  # number of slots that have memory
    uint64_t next_slot  # the first slot that was never used
    uint64_t free_slot  # head of the chain of free slots, or 0
    Range *ranges  # record 0 stands for no range
    uint32_t range_room  # number of records that have memory
    uint32_t range_count  # number of records that were ever used
    uint32_t spare_range  # head of the chain of unused records, linked by `after`
    uint32_t last  # the range that ends at `top`
    uint64_t top  # grains in use, free ranges between zspages included
    uint64_t free_grains  # of all free ranges
    uint32_t *pages  # by machine page: BACKED | the first zspage that touches it
    uint64_t page_room  # number of machine pages that have an entry in `pages`
    uint64_t idle  # number of backed pages that no zspage touches
    uint64_t hand  # page at which the search for idle pages continues
    uint64_t sliding  # grain at which compaction continues
    uint64_t slid  # grains that slid over the free range there
    uint64_t fresh  # grains that the current batch will need beyond `top`
    uint64_t free_map[FREE_WORDS]  # bitmap of the lists that have a range
    uint32_t free_lists[FREE_LISTS]
    SizeClass classes[CLASSES]

cdef extern from *:
    """
    #include "native.h"
    static inline uint32_t bz_ones(uint64_t bits) { return (uint32_t)__builtin_popcountll(bits); }
    static inline uint32_t bz_lowest(uint64_t bits) { return (uint32_t)__builtin_ctzll(bits); }
    static inline uint32_t bz_log2(uint64_t value) { return 63 - (uint32_t)__builtin_clzll(value); }
    #define BZ_BACKED 0x80000000u        /* in pages[]: the page has memory */
    #define BZ_ONE ((uint64_t)1 << 48)   /* one generation; set in a live word */
    #define BZ_SLOT (BZ_ONE - 1)
    #define BZ_RETIRED ((uint64_t)0xFFFE << 48)
    #define BZ_MOST_SLOTS ((uint64_t)1 << 32) /* the header of an object has four bytes */
    """
    uint32_t bz_ones(uint64_t) noexcept nogil
    uint32_t bz_lowest(uint64_t) noexcept nogil
    uint32_t bz_log2(uint64_t) noexcept nogil
    uint64_t bz_load64(const uint64_t *) noexcept nogil
    void bz_store64(uint64_t *, uint64_t) noexcept nogil
    void bz_order_stores() noexcept nogil
    uint32_t BACKED "BZ_BACKED"
    uint64_t ONE "BZ_ONE"
    uint64_t SLOT "BZ_SLOT"
    uint64_t RETIRED "BZ_RETIRED"
    uint64_t MOST_SLOTS "BZ_MOST_SLOTS"
    uint64_t UINT64_MAX

# Machine pages.
cdef int back_pages(PoolState *pool, uint64_t first, uint64_t end, uint64_t most) noexcept nogil
cdef void punch_idle(PoolState *pool, uint64_t keep) noexcept nogil
cdef void touch_pages(PoolState *pool, uint32_t at) noexcept nogil
cdef void untouch_pages(PoolState *pool, uint32_t at) noexcept nogil

# Ranges and zspages, by the number of their record.
cdef bint has_spare_range(PoolState *pool) noexcept nogil
cdef uint32_t take_range(PoolState *pool) noexcept nogil
cdef void link_range(PoolState *pool, uint32_t at, uint32_t below, uint32_t above) noexcept nogil
cdef void unlist_free(PoolState *pool, uint32_t at) noexcept nogil
cdef void make_free(PoolState *pool, uint32_t at, uint64_t length) noexcept nogil
cdef uint32_t make_zspage(PoolState *pool, uint32_t grains, int *error) noexcept nogil
cdef void end_zspage(PoolState *pool, uint32_t at) noexcept nogil
cdef uint32_t zspage_at(const PoolState *pool, uint64_t grain) noexcept nogil
cdef void regroup_zspage(PoolState *pool, uint32_t at, uint32_t group) noexcept nogil


# Look-ups that are made for each object.

cdef inline uint64_t length_of(const Range *span) noexcept nogil:
    return span.live if not span.capacity else <uint64_t>span.capacity * span.grains


cdef inline uint64_t end_of(const Range *span) noexcept nogil:
    return span.first + length_of(span)


cdef inline uint64_t page_of(const PoolState *pool, uint64_t grain) noexcept nogil:
    """Return the machine page in which a grain begins."""
    return grain << pool.grain_shift >> pool.page_shift


cdef inline uint64_t end_page_of(const PoolState *pool, uint64_t grain) noexcept nogil:
    """Return the end of the machine pages that the grains below `grain` touch."""
    return ((grain << pool.grain_shift) + (<uint64_t>1 << pool.page_shift) - 1) >> pool.page_shift


cdef inline uint32_t group_of(const Range *span) noexcept nogil:
    """Return the fullness group of a zspage, by quarters of its capacity."""
    cdef uint32_t four = 4 * bz_ones(span.live), capacity = span.capacity
    if four == 4 * capacity:
        return UNLISTED
    return (four >= capacity) + (four >= 2 * capacity) + (four >= 3 * capacity)


cdef inline uint64_t *words_of(const PoolState *pool) noexcept nogil:
    return <uint64_t *>pool.words.base


cdef inline uint8_t *bytes_at(const PoolState *pool, uint64_t grain) noexcept nogil:
    return pool.data.base + (grain << pool.grain_shift)


cdef inline uint64_t place_of(const PoolState *pool, uint64_t word) noexcept nogil:
    """Return the grain that a live word names."""
    return (word & SLOT) >> pool.length_bits


cdef inline uint32_t length_of_word(const PoolState *pool, uint64_t word) noexcept nogil:
    """Return the length of a live word's object."""
    return <uint32_t>(word & ((<uint64_t>1 << pool.length_bits) - 1)) + 1


cdef inline void regroup(PoolState *pool, uint32_t at) noexcept nogil:
    """Move a zspage to the list of its fullness group."""
    cdef uint32_t group = group_of(&pool.ranges[at])
    if group != pool.ranges[at].group:
        regroup_zspage(pool, at, group)
