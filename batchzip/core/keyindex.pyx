"""KeyIndex: a hash table from keys to positions, in order of insertion, as CPython's compact dict.

    key ─▶ SipHash ─▶ slots: hash, position ─▶ block = position >> 9 ─▶ the key's bytes, compared
                                            └─▶ the entry of index RECORDS | position in the table

    order   first ─▶ block 4 ─▶ block 0 ─▶ block 7 ─▶ last: the block that is being filled
    block   ends     8  14  22 │ lengths  310  280  1044 │ keys  susera1│suserb│s…

A value has its position for as long as its key exists. The order of keys is the order of the blocks
in their list, and of the places within a block. A removed key leaves its place and its bytes
unused. Two neighbouring blocks with few values are merged into a new block. Therefore at least 7/16
of all places are in use, and no call does more than one such merge.

    bytes per value       typical
    slot                  11 to 21    8 bytes, 3/8 to 3/4 full
    end, length           8 to 18
    entry (table.pyx)     16 to 36
    a deadline, if any    8

Rejected: a Python dict from key to position, because a str of ten letters takes 59 bytes, its slot
in the dict up to 60, and the int 32. Keys in the pool beside the values, because each `in` would
read the file for values in the backing file. One array in order of insertion that is compacted as a
whole, because that pauses for 100 ms with a million values.

The hash is SipHash-1-3 with a random key, as in CPython, because an attacker may choose keys that
collide.

Invariants (`index_fault`)
* If a block marks a place as live, exactly one slot has its position, with the hash of its key.
* `live` is the number of a block's live bits. Every block has at least one.

Locks: the caller holds the pool's mutex in every call.
"""

from libc.stdlib cimport free
from libc.string cimport memcmp, memcpy, memmove, memset

from batchzip.core.keys cimport compared_part
from batchzip.core.memory cimport bz_calloc, bz_malloc, bz_realloc

cdef extern from "native.h" nogil:
    """
    #define BZ_ROTATE(x, bits) ((x) << (bits) | (x) >> (64 - (bits)))
    #define BZ_SIP_ROUND                                                                        \
        a += b; c += d; b = BZ_ROTATE(b, 13) ^ a; d = BZ_ROTATE(d, 16) ^ c; a = BZ_ROTATE(a, 32); \
        c += b; a += d; b = BZ_ROTATE(b, 17) ^ c; d = BZ_ROTATE(d, 21) ^ a; c = BZ_ROTATE(c, 32);
    /* SipHash-1-3 (Aumasson and Bernstein). */
    static uint64_t bz_siphash(const uint64_t *key, const uint8_t *data, size_t length) {
        uint64_t a = key[0] ^ 0x736f6d6570736575u, b = key[1] ^ 0x646f72616e646f6du;
        uint64_t c = key[0] ^ 0x6c7967656e657261u, d = key[1] ^ 0x7465646279746573u;
        uint64_t word, rest = (uint64_t)length << 56;
        for (; length >= 8; data += 8, length -= 8) {
            memcpy(&word, data, 8);
            d ^= word;
            BZ_SIP_ROUND
            a ^= word;
        }
        word = 0;
        memcpy(&word, data, length);
        rest |= word;
        d ^= rest;
        BZ_SIP_ROUND
        a ^= rest;
        c ^= 0xff;
        BZ_SIP_ROUND
        BZ_SIP_ROUND
        BZ_SIP_ROUND
        return a ^ b ^ c ^ d;
    }
    """
    uint64_t bz_siphash(const uint64_t *, const uint8_t *, size_t)

cdef enum:
    FIRST_SLOT_BITS = 3
    FIRST_BLOCKS = 4
    FIRST_BYTES = 256
    MERGE_LIVE = BLOCK * 7 // 8  # two neighbours with at most this many values in total are merged
    MOST_BLOCKS = (1 << (32 - BLOCK_BITS)) - 1


def siphash(uint64_t first, uint64_t second, bytes data not None) -> int:
    """Return the SipHash-1-3 of `data` with the 128-bit key (`first`, `second`); for tests."""
    cdef uint64_t key[2]
    key[0], key[1] = first, second
    return bz_siphash(key, data, len(data))


cdef void index_open(KeyIndex *index) noexcept nogil:
    """Initialise an empty index. Its memory is zero, except for the seeds."""
    index.first = index.last = NOWHERE


cdef void index_close(KeyIndex *index) noexcept nogil:
    """Remove all keys, and free the memory."""
    cdef uint32_t id
    for id in range(index.block_room):
        if index.blocks[id] is not NULL:
            free(index.blocks[id].keys)
            free(index.blocks[id].deadlines)
            free(index.blocks[id])
    free(index.blocks)
    free(index.unused)
    free(index.slots)
    index.blocks = NULL
    index.unused = NULL
    index.slots = NULL
    index.slot_bits = 0
    index.block_room = index.unused_count = 0
    index.count = index.key_room = index.deadline_blocks = 0
    index.first = index.last = NOWHERE


cdef uint32_t index_hash(
    const KeyIndex *index, const uint8_t *compared, size_t length
) noexcept nogil:
    return <uint32_t>bz_siphash(index.seeds, compared, length)


# Slots.

cdef inline uint64_t _home(const KeyIndex *index, uint32_t hash) noexcept nogil:
    return <uint64_t>hash >> (32 - index.slot_bits)


cdef inline bint _is_key(
    const KeyIndex *index, uint32_t position, const KeyView *key
) noexcept nogil:
    cdef const KeyBlock *block = block_of(index, position)
    cdef uint32_t place = position & (BLOCK - 1), start = key_start(block, place)
    cdef const uint8_t *part = NULL
    cdef size_t length = 0
    compared_part(block.keys + start, block.ends[place] - start, &part, &length)
    return length == key.compared_length and memcmp(part, key.compared, length) == 0


cdef uint32_t index_find(const KeyIndex *index, const KeyView *key) noexcept nogil:
    """Return the position of a key, or NOWHERE."""
    cdef uint64_t at, mask
    if index.slots is NULL:
        return NOWHERE
    mask = (<uint64_t>1 << index.slot_bits) - 1
    at = _home(index, key.hash)
    while index.slots[at].position != NOWHERE:
        if index.slots[at].hash == key.hash and _is_key(index, index.slots[at].position, key):
            return index.slots[at].position
        at = (at + 1) & mask
    return NOWHERE


cdef inline KeySlot *_slot_of(
    const KeyIndex *index, uint32_t hash, uint32_t position
) noexcept nogil:
    cdef uint64_t mask = (<uint64_t>1 << index.slot_bits) - 1, at = _home(index, hash)
    while index.slots[at].position != position:
        at = (at + 1) & mask
    return &index.slots[at]


cdef void _enter(KeySlot *slots, int bits, KeySlot one) noexcept nogil:
    cdef uint64_t mask = (<uint64_t>1 << bits) - 1, at = <uint64_t>one.hash >> (32 - bits)
    while slots[at].position != NOWHERE:
        at = (at + 1) & mask
    slots[at] = one


cdef int _resize(KeyIndex *index, int bits) noexcept nogil:
    """Change the number of slots to 2^`bits`. Return 0, or −1 if there is no memory."""
    cdef uint64_t count = <uint64_t>1 << bits, at
    cdef KeySlot *slots
    if bits > 32:
        return -1
    slots = <KeySlot *>bz_malloc(count * sizeof(KeySlot))
    if slots is NULL:
        return -1
    memset(slots, 0xFF, count * sizeof(KeySlot))
    if index.slots is not NULL:
        for at in range(<uint64_t>1 << index.slot_bits):
            if index.slots[at].position != NOWHERE:
                _enter(slots, bits, index.slots[at])
    free(index.slots)
    index.slots = slots
    index.slot_bits = bits
    return 0


cdef void _leave(KeyIndex *index, KeySlot *slot) noexcept nogil:
    """Empty a slot. Move up the following slots that linear probing displaced past it."""
    cdef uint64_t mask = (<uint64_t>1 << index.slot_bits) - 1, home
    cdef uint64_t hole = slot - index.slots, at = hole
    while True:
        at = (at + 1) & mask
        if index.slots[at].position == NOWHERE:
            break
        home = _home(index, index.slots[at].hash)
        if ((at - home) & mask) >= ((at - hole) & mask):
            index.slots[hole] = index.slots[at]
            hole = at
    index.slots[hole].position = NOWHERE


# Blocks.

cdef uint32_t _new_block(KeyIndex *index) noexcept nogil:
    """Return the id of a new block, not yet linked; NOWHERE if there is no memory."""
    cdef uint32_t room = index.block_room * 2, id
    cdef KeyBlock *block
    cdef void *grown
    if not index.unused_count:
        if room < FIRST_BLOCKS:
            room = FIRST_BLOCKS
        if room > MOST_BLOCKS:
            return NOWHERE
        grown = bz_realloc(index.unused, room * sizeof(uint32_t))
        if grown is NULL:
            return NOWHERE
        index.unused = <uint32_t *>grown
        grown = bz_realloc(index.blocks, room * sizeof(KeyBlock *))
        if grown is NULL:
            return NOWHERE
        index.blocks = <KeyBlock **>grown
        for id in range(room, index.block_room, -1):
            index.blocks[id - 1] = NULL
            index.unused[index.unused_count] = id - 1
            index.unused_count += 1
        index.block_room = room
    block = <KeyBlock *>bz_calloc(1, sizeof(KeyBlock))
    if block is NULL:
        return NOWHERE
    index.unused_count -= 1
    id = index.unused[index.unused_count]
    index.blocks[id] = block
    block.before = block.after = NOWHERE
    return id


cdef bint _give_bytes(KeyIndex *index, KeyBlock *block, uint64_t room) noexcept nogil:
    """Resize a block's key buffer to `room` bytes. Return False if there is no memory."""
    cdef uint8_t *keys
    if room >> 32:
        return False
    keys = <uint8_t *>bz_realloc(block.keys, room)
    if keys is NULL:
        return False
    index.key_room += room - block.room
    block.keys = keys
    block.room = <uint32_t>room
    return True


cdef void index_drop_block(KeyIndex *index, uint32_t id) noexcept nogil:
    """Unlink and free a block that has no live place."""
    cdef KeyBlock *block = index.blocks[id]
    if block.before != NOWHERE:
        index.blocks[block.before].after = block.after
    elif index.first == id:
        index.first = block.after
    if block.after != NOWHERE:
        index.blocks[block.after].before = block.before
    elif index.last == id:
        index.last = block.before
    index.key_room -= block.room
    if block.deadlines is not NULL:
        index.deadline_blocks -= 1
    free(block.deadlines)
    free(block.keys)
    free(block)
    index.blocks[id] = NULL
    index.unused[index.unused_count] = id
    index.unused_count += 1


# Changes.

cdef uint32_t index_prepare(KeyIndex *index, size_t length) noexcept nogil:
    """Allocate room for one more key of `length` bytes. Return the position for `index_add`.

    Return NOWHERE if there is no memory.
    """
    cdef KeyBlock *block = NULL
    cdef uint32_t id = index.last
    cdef uint64_t need, used
    if index.slots is NULL or 4 * (index.count + 1) > 3 * (<uint64_t>1 << index.slot_bits):
        if _resize(index, index.slot_bits + 1 if index.slot_bits else FIRST_SLOT_BITS) < 0:
            return NOWHERE
    if id != NOWHERE:
        block = index.blocks[id]
        if block.used == BLOCK:
            # The block is full: shrink its buffer to its contents.
            _give_bytes(index, block, max(<uint32_t>1, block.ends[BLOCK - 1]))
            block = NULL
    if block is NULL:
        id = _new_block(index)
        if id == NOWHERE:
            return NOWHERE
        block = index.blocks[id]
        block.before = index.last
        if index.last == NOWHERE:
            index.first = id
        else:
            index.blocks[index.last].after = id
        index.last = id
    used = key_start(block, block.used)
    need = used + length
    if need > block.room:
        if not _give_bytes(index, block, max(<uint64_t>FIRST_BYTES, need + need // 2)):
            if not block.used:
                index_drop_block(index, id)
            return NOWHERE
    return id << BLOCK_BITS | block.used


cdef void index_add(KeyIndex *index, uint32_t position, const KeyView *key) noexcept nogil:
    """Add a new key at the position that `index_prepare` returned."""
    cdef KeySlot slot
    _append(block_of(index, position), key.data, <uint32_t>key.length)
    slot.hash = key.hash
    slot.position = position
    _enter(index.slots, index.slot_bits, slot)
    index.count += 1


cdef void _append(KeyBlock *block, const uint8_t *key, uint32_t length) noexcept nogil:
    cdef uint32_t place = block.used, start = key_start(block, place)
    memcpy(block.keys + start, key, length)
    block.ends[place] = start + length
    block.live_bits[place >> 6] |= <uint64_t>1 << (place & 63)
    block.used += 1
    block.live += 1


cdef uint32_t _hash_at(const KeyIndex *index, uint32_t position) noexcept nogil:
    cdef const KeyBlock *block = block_of(index, position)
    cdef uint32_t place = position & (BLOCK - 1), start = key_start(block, place)
    cdef const uint8_t *part = NULL
    cdef size_t length = 0
    compared_part(block.keys + start, block.ends[place] - start, &part, &length)
    return index_hash(index, part, length)


cdef void _clear_place(KeyBlock *block, uint32_t place) noexcept nogil:
    block.live_bits[place >> 6] &= ~(<uint64_t>1 << (place & 63))
    block.live -= 1
    block.lengths[place] = 0


cdef void index_remove(KeyIndex *index, uint32_t position) noexcept nogil:
    """Remove a key. If its block then has no live place, the caller calls `index_drop_block`."""
    _leave(index, _slot_of(index, _hash_at(index, position), position))
    _clear_place(block_of(index, position), position & (BLOCK - 1))
    index.count -= 1
    if index.slot_bits > FIRST_SLOT_BITS and 8 * index.count < <uint64_t>1 << index.slot_bits:
        _resize(index, index.slot_bits - 1)  # without memory, the slots stay


cdef int index_set_deadline(KeyIndex *index, uint32_t position, int64_t deadline) noexcept nogil:
    """Set the deadline of a value; 0: none. Return 0, or −1 if there is no memory."""
    cdef KeyBlock *block = block_of(index, position)
    if block.deadlines is NULL:
        if not deadline:
            return 0
        block.deadlines = <int64_t *>bz_calloc(BLOCK, sizeof(int64_t))
        if block.deadlines is NULL:
            return -1
        index.deadline_blocks += 1
    block.deadlines[position & (BLOCK - 1)] = deadline
    return 0


cdef uint32_t index_merge_into(KeyIndex *index, uint32_t first) noexcept nogil:
    """Make an empty block for the values of block `first` and the next one. Return its id.

    Return NOWHERE if there is no next block, if they have too many values, or if there is no
    memory. The new block stands before the two. The caller moves all values there in order, one by
    one, and then drops the two.
    """
    cdef KeyBlock *block = index.blocks[first]
    cdef KeyBlock *next
    cdef KeyBlock *joined
    cdef uint32_t id, place
    cdef uint64_t bytes = 0
    cdef int64_t *deadlines = NULL
    if block.after == NOWHERE:
        return NOWHERE
    next = index.blocks[block.after]
    if block.live + next.live > MERGE_LIVE:
        return NOWHERE
    for place in range(BLOCK):
        if place < block.used and place_is_live(block, place):
            bytes += block.ends[place] - key_start(block, place)
        if place < next.used and place_is_live(next, place):
            bytes += next.ends[place] - key_start(next, place)
    if block.deadlines is not NULL or next.deadlines is not NULL:
        deadlines = <int64_t *>bz_calloc(BLOCK, sizeof(int64_t))
        if deadlines is NULL:
            return NOWHERE
    id = _new_block(index)
    if id == NOWHERE:
        free(deadlines)
        return NOWHERE
    joined = index.blocks[id]
    if not _give_bytes(index, joined, max(<uint64_t>1, bytes)):
        free(deadlines)
        index_drop_block(index, id)
        return NOWHERE
    joined.deadlines = deadlines
    if deadlines is not NULL:
        index.deadline_blocks += 1
    joined.before = block.before
    joined.after = first
    if block.before == NOWHERE:
        index.first = id
    else:
        index.blocks[block.before].after = id
    block.before = id
    return id


cdef void index_move(KeyIndex *index, uint32_t position, uint32_t to) noexcept nogil:
    """Move a key to position `to`, the next place of a block that `index_merge_into` made."""
    cdef KeyBlock *block = block_of(index, position)
    cdef KeyBlock *target = block_of(index, to)
    cdef uint32_t place = position & (BLOCK - 1), there = to & (BLOCK - 1)
    cdef uint32_t start = key_start(block, place)
    _slot_of(index, _hash_at(index, position), position).position = to
    _append(target, block.keys + start, block.ends[place] - start)
    target.lengths[there] = block.lengths[place]
    if block.deadlines is not NULL:
        target.deadlines[there] = block.deadlines[place]
    _clear_place(block, place)


cdef uint64_t index_bytes(const KeyIndex *index) noexcept nogil:
    """Return the memory of the index in bytes."""
    cdef uint64_t blocks = index.block_room - index.unused_count
    cdef uint64_t found = index.block_room * 12 + blocks * sizeof(KeyBlock) + index.key_room
    found += index.deadline_blocks * BLOCK * 8
    if index.slots is not NULL:
        found += sizeof(KeySlot) << index.slot_bits
    return found


# Checking.

cdef object index_fault(const KeyIndex *index):
    """Return a violated invariant as text, or None."""
    cdef uint32_t id = index.first, before = NOWHERE, place, live, position
    cdef uint64_t seen = 0, blocks = 0, room = 0, at, used = 0
    cdef const KeyBlock *block
    cdef KeyView key
    while id != NOWHERE:
        block = index.blocks[id]
        if block is NULL or block.before != before:
            return f"block {id} is missing, or does not follow {before}"
        blocks += 1
        room += block.room
        live = 0
        for place in range(BLOCK):
            if not place_is_live(block, place):
                continue
            if place >= block.used:
                return f"place {place} of block {id} is live, but beyond the places in use"
            live += 1
            position = id << BLOCK_BITS | place
            key.data = block.keys + key_start(block, place)
            key.length = block.ends[place] - key_start(block, place)
            compared_part(key.data, key.length, &key.compared, &key.compared_length)
            key.hash = index_hash(index, key.compared, key.compared_length)
            if index_find(index, &key) != position:
                return f"the key at position {position} is found at {index_find(index, &key)}"
        if live != block.live or not live:
            return f"block {id} has {live} live places, but the counter says {block.live}"
        seen += live
        before = id
        id = block.after
    if before != index.last:
        return f"the last block is {before}, not {index.last}"
    if index.slots is not NULL:
        for at in range(<uint64_t>1 << index.slot_bits):
            used += index.slots[at].position != NOWHERE
    if seen != index.count or used != seen:
        return f"{seen} keys in blocks, {used} in slots, but the counter says {index.count}"
    if blocks + index.unused_count != index.block_room or room != index.key_room:
        return f"{blocks} blocks of {room} bytes, but the counter says {index.key_room} bytes"
    return None
