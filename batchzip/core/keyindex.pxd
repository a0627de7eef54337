from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from batchzip.core.table cimport BLOCK, BLOCK_BITS

cdef enum:
    NOWHERE = 0xFFFFFFFF
    LIVE_WORDS = BLOCK // 64

cdef struct KeySlot:
    uint32_t hash
    uint32_t position  # NOWHERE: unused

cdef struct KeyBlock:
    uint32_t before  # id of the previous block in the order of insertion; NOWHERE: none
    uint32_t after  # id of the next block; NOWHERE: none
    uint32_t used  # places given to keys so far
    uint32_t live  # places that have a value
    uint32_t room  # size of `keys` in bytes
    uint8_t *keys
    int64_t *deadlines  # by place; 0: no deadline; NULL: no place has one
    uint64_t live_bits[LIVE_WORDS]
    uint32_t ends[BLOCK]  # by place: end of the key in `keys`
    uint32_t lengths[BLOCK]  # by place: bytes of the serialised value

cdef struct KeyIndex:
    uint64_t seeds[2]
    KeySlot *slots
    int slot_bits
    uint64_t count
    KeyBlock **blocks  # by id; NULL: unused
    uint32_t *unused  # stack of unused ids
    uint32_t unused_count
    uint32_t block_room
    uint32_t first
    uint32_t last
    uint64_t key_room  # bytes of `keys` of all blocks
    uint64_t deadline_blocks  # blocks that have `deadlines`

cdef struct KeyView:  # a key to look for, or to add
    const uint8_t *data
    size_t length
    const uint8_t *compared
    size_t compared_length
    uint32_t hash

cdef inline KeyBlock *block_of(const KeyIndex *index, uint32_t position) noexcept nogil:
    return index.blocks[position >> BLOCK_BITS]

cdef inline uint32_t key_start(const KeyBlock *block, uint32_t place) noexcept nogil:
    return block.ends[place - 1] if place else 0

cdef inline bint place_is_live(const KeyBlock *block, uint32_t place) noexcept nogil:
    return block.live_bits[place >> 6] >> (place & 63) & 1

cdef void index_open(KeyIndex *index) noexcept nogil
cdef void index_close(KeyIndex *index) noexcept nogil
cdef uint32_t index_hash(
    const KeyIndex *index, const uint8_t *compared, size_t length
) noexcept nogil
cdef uint32_t index_find(const KeyIndex *index, const KeyView *key) noexcept nogil
cdef uint32_t index_prepare(KeyIndex *index, size_t length) noexcept nogil
cdef void index_add(KeyIndex *index, uint32_t position, const KeyView *key) noexcept nogil
cdef void index_remove(KeyIndex *index, uint32_t position) noexcept nogil
cdef int index_set_deadline(KeyIndex *index, uint32_t position, int64_t deadline) noexcept nogil
cdef uint32_t index_merge_into(KeyIndex *index, uint32_t first) noexcept nogil
cdef void index_move(KeyIndex *index, uint32_t position, uint32_t to) noexcept nogil
cdef void index_drop_block(KeyIndex *index, uint32_t id) noexcept nogil
cdef uint64_t index_bytes(const KeyIndex *index) noexcept nogil
cdef object index_fault(const KeyIndex *index)
