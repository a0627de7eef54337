from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp

from batchzip.core.memory cimport Memory

cdef extern from "native.h" nogil:
    """
    /* Write an entry with one store, after the object it refers to: a reader in another process never
     * sees a torn entry. */
    typedef uint64_t bz_pair __attribute__((vector_size(16)));
    static inline void bz_store_entry(void *to, const void *from) {
        bz_pair whole;
        memcpy(&whole, from, 16);
        bz_order_stores();
        *(volatile bz_pair *)to = whole;
    }
    """
    void bz_store_entry(void *, const void *)

cdef enum:
    BLOCK_BITS = 9
    BLOCK = 1 << BLOCK_BITS  # indices per block: 2 MiB of 4 KiB pages

cdef enum:  # words of the header of a shared table
    CHANGES
    BLOCKS
    CODECS
    CLOSED
    HEADER_WORDS = 8

cdef enum:  # the layout of a shared table: see table.pyx
    MOST_SHARED = 1 << 20  # maximum rows: 2 TiB of 4 KiB pages
    DIRECTORY = 4096
    ENTRIES = DIRECTORY + 8 * MOST_SHARED

cpdef enum Kind:
    ABSENT
    COMPRESSED
    RAW
    SAME_FILLED
    BACKED
    RECORD  # a value of a mapping (records.pyx), in the pool
    BACKED_RECORD
    LARGE  # a value of a mapping that is stored as pages; `value` is its number
    SLICED  # a value of a mapping that lies in slices; for `value` see slices.pyx
    SLICE  # a slice in the pool
    BACKED_SLICE

cdef enum:
    KINDS = 11

cdef struct Entry:
    uint64_t value  # a handle, a position in the backing file, or the word of a same-filled page
    uint32_t checksum
    uint8_t kind
    uint8_t codec  # number of the codec that made the bytes, or 0 if they are uncompressed
    uint16_t epoch  # when the page was used last

cdef struct Slot:  # a slot of the hash table from blocks to rows
    uint64_t key  # block + 1, or 0 if unused
    uint32_t row

cdef struct TableState:
    Entry *entries
    int64_t *block_of  # by row: the block whose entries are there, or −1
    uint16_t *live  # by row: number of entries that are not ABSENT
    uint32_t *unused  # stack of rows without a block
    uint32_t unused_count
    uint32_t room  # rows that have memory
    Slot *slots
    uint32_t used_slots
    int shift  # 64 − log2 of the number of slots
    uint64_t *header
    uint64_t own_header[HEADER_WORDS]
    Memory memory  # where entries and block_of are once the table is shared


cdef inline bint is_in_pool(const Entry *entry) noexcept nogil:
    """Return whether an entry refers to an object in the pool."""
    return (
        entry.kind == COMPRESSED or entry.kind == RAW or entry.kind == RECORD
        or entry.kind == SLICE
    )


cdef inline bint is_in_file(const Entry *entry) noexcept nogil:
    """Return whether an entry refers to an object in the backing file."""
    return entry.kind == BACKED or entry.kind == BACKED_RECORD or entry.kind == BACKED_SLICE


cdef inline uint8_t kind_in_file(const Entry *entry) noexcept nogil:
    """Return the kind of an entry once its object is in the backing file."""
    if entry.kind == RECORD or entry.kind == BACKED_RECORD:
        return BACKED_RECORD
    return BACKED_SLICE if entry.kind == SLICE or entry.kind == BACKED_SLICE else BACKED


cdef inline uint64_t spread(uint64_t word) noexcept nogil:
    """Return a hash of a word whose upper bits depend on every bit of it.

    It is the product of the word and 2⁶⁴ ÷ the golden ratio.
    """
    return word * 0x9E3779B97F4A7C15u


cdef inline bint is_same_filled(const uint8_t *page, size_t size) noexcept nogil:
    """Return whether a page repeats one word: it then equals itself shifted by a word.

    The first and the last word of nearly all other pages differ. A caller's page may be unaligned.
    """
    return memcmp(page, page + size - 8, 8) == 0 and memcmp(page, page + 8, size - 8) == 0


cdef inline uint32_t check_word(uint64_t word) noexcept nogil:
    """Return the checksum of a same-filled page, which shows that an entry is not torn."""
    return <uint32_t>(spread(word) >> 32)


cdef inline int64_t table_row(const TableState *table, uint64_t block) noexcept nogil:
    """Return the row of a block, or −1."""
    cdef uint64_t at, mask
    if table.slots is NULL:
        return -1
    mask = (<uint64_t>1 << (64 - table.shift)) - 1
    at = spread(block) >> table.shift
    while table.slots[at].key:
        if table.slots[at].key == block + 1:
            return table.slots[at].row
        at = (at + 1) & mask
    return -1


cdef inline Entry *table_find(const TableState *table, uint64_t index) noexcept nogil:
    """Return the entry of an index, which may be ABSENT, or NULL if its block has no row."""
    cdef int64_t row = table_row(table, index >> BLOCK_BITS)
    return NULL if row < 0 else &table.entries[<uint64_t>row << BLOCK_BITS | index & (BLOCK - 1)]


cdef void table_open(TableState *table) noexcept nogil
cdef void table_close(TableState *table) noexcept nogil
cdef int table_prepare(TableState *table, uint64_t first, uint64_t count) noexcept nogil
cdef Entry *table_place(TableState *table, uint64_t index) noexcept nogil
cdef void table_put(TableState *table, Entry *place, const Entry *entry) noexcept nogil
cdef void table_clear(TableState *table, Entry *place) noexcept nogil
cdef uint64_t table_index(const TableState *table, uint64_t number) noexcept nogil
cdef uint64_t table_bytes(const TableState *table) noexcept nogil
cdef int table_share(TableState *table, Memory *memory) noexcept nogil
cdef int table_new_memory(Memory *memory) except -1
cdef object table_fault(const TableState *table)
