"""Table: the entries of a group by index, 16 bytes per page.

Kernel counterpart: zswap's xarray of zswap_entry. Rejected: one array indexed by the page number.
An index may be an address >> 12, and there is no memory for 2⁵² entries.

    index ─▶ block = index >> 9 ─▶ hash table ─▶ row ─▶ entries[row << 9 | index & 511]

A block gets a row when an index in it is first stored, and loses it with its last page. Dense
indices thus cost 16.1 bytes per page. An index alone in its block costs 8 KiB.

A shared table has its entries and `block_of` in a segment, for readers in other processes:

    bytes of the segment   contents                                            writer
    0 … 7                  changes: how often a block got or lost a row        owner
    8 … 15                 rows that have memory                               owner
    16 … 23                codecs: how many numbers were given out             owner
    24 … 31                1 once the group is closed                          owner
    4096 …                 directory: the block of each row, or −1             owner
    4096 + 8 MiB …         entries                                             owner

A reader (view.pyx) detects these changes as follows:

* A block loses its row while its entry is read: `changes` is incremented before anything else.
* An object is freed: its handle is never reused.
* The copied bytes belong to two objects: they do not match the entry's checksum.

Rejected: a sequence lock. A reader would wait for an owner that was stopped during a change.

Invariants
* Every entry of a row without a block, and of an index that is not stored, is all zero.
* live[row] is the number of its entries that are not ABSENT. It is never 0 for a row with a block.

Locks: the caller holds the pool's mutex in every call. Addresses of entries are valid until the
mutex is released or `table_prepare` is called, because the array moves when it grows.
"""

from libc.stdlib cimport free
from libc.string cimport memcpy, memset

cdef extern from "native.h" nogil:
    void bz_order_stores()

from batchzip.core.memory cimport (
    Memory, bz_calloc, bz_realloc, memory_close, memory_create, memory_grow, memory_reserve,
)

cdef enum:
    PAGE = 4096
    FIRST_SLOTS_BITS = 3
    FIRST_SHARED_BYTES = 1 << 30  # initial address space for entries

IN_POOL = (Kind.COMPRESSED, Kind.RAW, Kind.RECORD, Kind.SLICE)
IN_FILE = (Kind.BACKED, Kind.BACKED_RECORD, Kind.BACKED_SLICE)

cdef uint64_t BLOCK_BYTES = BLOCK * sizeof(Entry)


cdef void table_open(TableState *table) noexcept nogil:
    """Initialise `table`, which is zeroed memory, as an empty table."""
    table.header = table.own_header
    table.memory.fd = -1


cdef void table_close(TableState *table) noexcept nogil:
    """Tell readers that the group is closed, and free the memory."""
    table.header[CLOSED] = 1
    table.header = table.own_header
    table.header[CLOSED] = 1
    if table.memory.fd >= 0:
        memory_close(&table.memory)
    else:
        free(table.entries)
        free(table.block_of)
    free(table.live)
    free(table.unused)
    free(table.slots)
    table.entries = NULL
    table.block_of = NULL
    table.live = NULL
    table.unused = NULL
    table.slots = NULL
    table.room = table.unused_count = table.used_slots = 0


# Room.

cdef int table_prepare(TableState *table, uint64_t first, uint64_t count) noexcept nogil:
    """Make room for the entries of these indices, as `table_place` requires.

    Return 0, or −1 if memory is short.
    """
    cdef uint64_t block, missing = 0
    for block in range(first >> BLOCK_BITS, ((first + count - 1) >> BLOCK_BITS) + 1):
        if table_row(table, block) < 0:
            missing += 1
    if missing > table.unused_count and _add_rows(table, missing - table.unused_count) < 0:
        return -1
    return _add_slots(table, table.used_slots + missing)


cdef int _add_rows(TableState *table, uint64_t least) noexcept nogil:
    """Allocate memory for an eighth more rows. A table that doubled would often be half empty."""
    cdef uint64_t room = table.room + max(least, <uint64_t>table.room // 8), row
    cdef void *grown
    if room >> 32:
        return -1
    grown = bz_realloc(table.live, room * sizeof(uint16_t))
    if grown is NULL:
        return -1
    table.live = <uint16_t *>grown
    grown = bz_realloc(table.unused, room * sizeof(uint32_t))
    if grown is NULL:
        return -1
    table.unused = <uint32_t *>grown
    if table.memory.fd >= 0:
        if _reserve_shared(table, room) < 0:
            return -1
    else:
        grown = bz_realloc(table.block_of, room * sizeof(int64_t))
        if grown is NULL:
            return -1
        table.block_of = <int64_t *>grown
        grown = bz_realloc(table.entries, room * BLOCK_BYTES)
        if grown is NULL:
            return -1
        table.entries = <Entry *>grown
    memset(&table.entries[<uint64_t>table.room << BLOCK_BITS], 0, (room - table.room) * BLOCK_BYTES)
    memset(&table.live[table.room], 0, (room - table.room) * sizeof(uint16_t))
    for row in range(room, table.room, -1):
        table.block_of[row - 1] = -1
        table.unused[table.unused_count] = <uint32_t>(row - 1)
        table.unused_count += 1
    table.room = <uint32_t>room
    bz_order_stores()
    table.header[BLOCKS] = room
    return 0


cdef int _add_slots(TableState *table, uint64_t blocks) noexcept nogil:
    """Keep the hash table at most two thirds full."""
    cdef int bits = FIRST_SLOTS_BITS, old_bits = 64 - table.shift
    cdef uint64_t old, mask, at
    cdef Slot *grown
    while (<uint64_t>2 << bits) < 3 * blocks:
        bits += 1
    if table.slots is not NULL and bits <= old_bits:
        return 0
    grown = <Slot *>bz_calloc(<uint64_t>1 << bits, sizeof(Slot))
    if grown is NULL:
        return -1
    mask = (<uint64_t>1 << bits) - 1
    if table.slots is not NULL:
        for old in range(<uint64_t>1 << old_bits):
            if table.slots[old].key:
                at = spread(table.slots[old].key - 1) >> (64 - bits)
                while grown[at].key:
                    at = (at + 1) & mask
                grown[at] = table.slots[old]
    free(table.slots)
    table.slots = grown
    table.shift = 64 - bits
    return 0


# Entries.

cdef Entry *table_place(TableState *table, uint64_t index) noexcept nogil:
    """Return the entry of an index that `table_prepare` has made room for."""
    cdef uint64_t block = index >> BLOCK_BITS, mask, at
    cdef int64_t row = table_row(table, block)
    if row < 0:
        table.unused_count -= 1
        row = table.unused[table.unused_count]
        mask = (<uint64_t>1 << (64 - table.shift)) - 1
        at = spread(block) >> table.shift
        while table.slots[at].key:
            at = (at + 1) & mask
        table.header[CHANGES] += 1  # before anything else; see the module's header
        bz_order_stores()
        table.block_of[row] = block
        table.slots[at].key = block + 1
        table.slots[at].row = <uint32_t>row
        table.used_slots += 1
    return &table.entries[<uint64_t>row << BLOCK_BITS | index & (BLOCK - 1)]


cdef void table_put(TableState *table, Entry *place, const Entry *entry) noexcept nogil:
    """Write an entry that is not ABSENT, replacing any previous one."""
    if place.kind == ABSENT:
        table.live[(place - table.entries) >> BLOCK_BITS] += 1
    bz_store_entry(place, entry)


cdef void table_clear(TableState *table, Entry *place) noexcept nogil:
    """Make a present entry ABSENT."""
    cdef uint64_t row = (place - table.entries) >> BLOCK_BITS
    cdef Entry absent
    memset(&absent, 0, sizeof(absent))
    bz_store_entry(place, &absent)
    table.live[row] -= 1
    if not table.live[row]:
        bz_order_stores()
        table.header[CHANGES] += 1
        bz_order_stores()
        _forget_block(table, table.block_of[row])
        table.block_of[row] = -1
        table.unused[table.unused_count] = <uint32_t>row
        table.unused_count += 1


cdef void _forget_block(TableState *table, uint64_t block) noexcept nogil:
    """Remove a block from the hash table, and move up the blocks that collided with it."""
    cdef uint64_t mask = (<uint64_t>1 << (64 - table.shift)) - 1, home
    cdef uint64_t at = spread(block) >> table.shift, hole
    while table.slots[at].key != block + 1:
        at = (at + 1) & mask
    hole = at
    while True:
        at = (at + 1) & mask
        if not table.slots[at].key:
            break
        home = spread(table.slots[at].key - 1) >> table.shift
        if ((at - home) & mask) >= ((at - hole) & mask):
            table.slots[hole] = table.slots[at]
            hole = at
    table.slots[hole].key = 0
    table.used_slots -= 1


cdef uint64_t table_index(const TableState *table, uint64_t number) noexcept nogil:
    """Return the index of an entry, given its number: its row << 9 | its position in the row."""
    return <uint64_t>table.block_of[number >> BLOCK_BITS] << BLOCK_BITS | number & (BLOCK - 1)


cdef uint64_t table_bytes(const TableState *table) noexcept nogil:
    """Return the memory of a table in bytes."""
    cdef uint64_t found = <uint64_t>table.room * (BLOCK_BYTES + 14)
    if table.slots is not NULL:
        found += sizeof(Slot) << (64 - table.shift)
    return found


# Sharing.

cdef int _reserve_shared(TableState *table, uint64_t room) noexcept nogil:
    """Allocate memory for `room` rows of a shared table, and update their addresses."""
    cdef uint64_t size = ENTRIES + room * BLOCK_BYTES, have = table.room
    if room > MOST_SHARED:
        return -1
    if (
        size > table.memory.size
        and memory_grow(&table.memory, ENTRIES + 2 * room * BLOCK_BYTES) < 0
    ):
        return -1
    table.header = <uint64_t *>table.memory.base
    table.block_of = <int64_t *>(table.memory.base + DIRECTORY)
    table.entries = <Entry *>(table.memory.base + ENTRIES)
    if memory_reserve(&table.memory, DIRECTORY + 8 * have, 8 * (room - have)) < 0:
        return -1
    return memory_reserve(
        &table.memory, ENTRIES + have * BLOCK_BYTES, (room - have) * BLOCK_BYTES
    )


cdef int table_new_memory(Memory *memory) except -1:
    """Create memory for `table_share`. Raise LimitReached if the system grants too little."""
    return memory_create(
        memory, "batchzip-table", ENTRIES + FIRST_SHARED_BYTES, ENTRIES + PAGE, keeps=True
    )


cdef int table_share(TableState *table, Memory *memory) noexcept nogil:
    """Move the table to shared memory.

    Return 0; the table then owns the memory. Return −1 if memory is short; the caller keeps it.
    """
    cdef TableState moved = table[0]
    cdef uint64_t rows = table.room
    moved.memory = memory[0]
    moved.room = 0
    if memory_reserve(memory, 0, PAGE) < 0 or _reserve_shared(&moved, max(<uint64_t>1, rows)) < 0:
        memory[0] = moved.memory  # it may have grown and moved
        return -1
    if rows:
        memcpy(moved.block_of, table.block_of, rows * sizeof(int64_t))
        memcpy(moved.entries, table.entries, rows * BLOCK_BYTES)
    memcpy(moved.header, table.header, sizeof(table.own_header))
    free(table.block_of)
    free(table.entries)
    table.memory = moved.memory
    table.header = moved.header
    table.block_of = moved.block_of
    table.entries = moved.entries
    return 0


# Checking.

cdef object table_fault(const TableState *table):
    """Return what is wrong with a table, or None."""
    cdef uint64_t row, number, live, used = 0
    cdef const uint64_t *words
    for row in range(table.room):
        live = 0
        for number in range(row << BLOCK_BITS, (row + 1) << BLOCK_BITS):
            words = <const uint64_t *>&table.entries[number]
            if table.entries[number].kind != ABSENT:
                live += 1
            elif words[0] or words[1]:
                return f"the absent entry {number} is not all zero"
        if live != table.live[row]:
            return f"row {row} has {live} entries, but the gauge says {table.live[row]}"
        if (live > 0) != (table.block_of[row] >= 0):
            return f"row {row} has {live} entries, but block {table.block_of[row]}"
        if live:
            used += 1
            if table_row(table, table.block_of[row]) != <int64_t>row:
                return f"the hash table does not lead to row {row}"
    if used != table.used_slots:
        return f"{used} rows are in use, but {table.used_slots} slots of the hash table"
    if used + table.unused_count != table.room:
        return f"{used} used and {table.unused_count} unused rows do not add up to {table.room}"
    found = {table.unused[number] for number in range(table.unused_count)}
    if len(found) != table.unused_count or any(table.live[row] for row in found):
        return "an unused row is in use, or listed twice"
    if table.header[BLOCKS] != table.room:
        return f"the header says {table.header[BLOCKS]} rows, but there are {table.room}"
    return None
