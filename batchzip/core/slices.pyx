"""Slices: values that take more than a page when compressed, as objects of up to a page each.

    the value's entry, SLICED: length << 32 | number ─▶ slice ─▶ next ─▶ slice ─▶ … ─▶ NO_SLICE
    a slice            an entry at the index SLICES | number ─▶ an object, in the pool or the file

Such a value is compressed in one call, or in chunks that are longer than a page (chunks.pyx), so
that the codec finds repetitions beyond a page. Objects of the pool, however, have at most a page.
Each slice has an entry of its own. LRU, writeback, cleaning and checks therefore treat it like
every other entry, and a value may be partly in the backing file. All slices of a value except the
last have the size of a page.

A slice's checksum shows that the slice is unchanged. The checksum of the value's own entry shows
that these are the value's slices, in the right order. That of a value in chunks covers the head,
which has the checksums of the chunks.

Rejected:

* One entry with the handles of all slices in a separate object. With that object in the backing
  file, it would be unknown what else to free.
* The number of the next slice in front of its bytes. It has the same problem.
* Consecutive numbers. Free ranges would have to be kept by length, to save four bytes.

Invariants (`slices_fault`)
* A number below `used` either belongs to exactly one value, and its entry is a SLICE or a
  BACKED_SLICE, or it is in the list of unused numbers and has no entry.

Locks: the caller holds the pool's mutex in every call.
"""

from libc.errno cimport ENOMEM
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy

from batchzip.core.gather cimport checksum_of
from batchzip.core.entries cimport EntriesState, entries_count, entries_remove
from batchzip.core.lru cimport lru_use
from batchzip.core.memory cimport bz_realloc
from batchzip.core.pool cimport pool_allocate, pool_bytes, pool_free
from batchzip.core.table cimport (
    BACKED_SLICE, SLICE, Entry, is_in_pool, table_find, table_place, table_prepare, table_put,
)

cdef enum:
    TOGETHER = 128  # slices whose objects are allocated in one step
    NO_SLICE = 0xFFFFFFFF
    LEAST_ROOM = 64


cdef void slices_open(Slices *slices) noexcept nogil:
    """Initialise `slices`, which is zeroed memory, without slices."""
    slices.unused = NO_SLICE


cdef void slices_close(Slices *slices) noexcept nogil:
    """Drop all slices. The group frees their entries itself."""
    free(slices.next)
    slices.next = NULL
    slices.room = slices.used = 0
    slices.unused = NO_SLICE


cdef inline Entry *_entry_of(EntriesState *entries, uint32_t number) noexcept nogil:
    return table_find(&entries.table, SLICES | number)


cdef int _reserve(Slices *slices, uint32_t count) noexcept nogil:
    """Make room in the table for `count` new slices. Return 0, or −1 if memory is short."""
    cdef uint64_t room = <uint64_t>slices.room + max(slices.room // 8, <uint32_t>LEAST_ROOM)
    cdef void *grown
    if <uint64_t>slices.used + count <= slices.room:
        return 0
    room = max(room, <uint64_t>slices.used + count)
    if room >= NO_SLICE:
        return -1
    grown = bz_realloc(slices.next, room * sizeof(uint32_t))
    if grown is NULL:
        return -1
    slices.next = <uint32_t *>grown
    slices.room = <uint32_t>room
    return 0


cdef int slices_store(
    EntriesState *entries, Slices *slices, const uint8_t *data, uint32_t length, uint64_t *value
) noexcept nogil:
    """Store the bytes of a value, and set its entry's `value`.

    Return 0, or a negative errno with nothing stored.
    """
    cdef uint32_t page = entries.objects.pool.page_size
    cdef uint32_t left = (length - 1) // page + 1, first = NO_SLICE
    cdef uint64_t start
    cdef uint16_t stamp
    cdef int code
    if _reserve(slices, left) < 0:
        return -ENOMEM
    stamp = lru_use(&entries.lru, &entries.table, left, entries.pages + left)
    while left:  # backwards, as each slice refers to its successor
        start = <uint64_t>((left - 1) // TOGETHER * TOGETHER) * page
        code = _store_some(
            entries, slices, data + start, <uint32_t>min(length - start, <uint64_t>TOGETHER * page),
            stamp, &first,
        )
        if code:
            slices_free(entries, slices, first)
            return code
        left = <uint32_t>(start // page)
    value[0] = <uint64_t>length << 32 | first
    return 0


cdef int _store_some(
    EntriesState *entries, Slices *slices, const uint8_t *data, uint32_t length, uint16_t stamp,
    uint32_t *first,
) noexcept nogil:
    """Store up to TOGETHER slices in front of `first`, and set `first` to the first of them.

    Return 0, or a negative errno. `first` has the slices that are stored even then.
    """
    cdef uint32_t page = entries.objects.pool.page_size
    cdef uint32_t count = (length - 1) // page + 1, at, number, held = 0
    cdef uint32_t lengths[TOGETHER]
    cdef uint64_t handles[TOGETHER]
    cdef Entry entry
    cdef int code
    lengths[0] = min(page, length)
    for at in range(1, count):
        lengths[at] = min(page, length - at * page)
    code = pool_allocate(entries.objects.pool, count, lengths, handles)
    if code:
        return code
    entry.kind = SLICE
    entry.codec = 0
    entry.epoch = stamp
    for at in range(count, 0, -1):
        number = slices.used if slices.unused == NO_SLICE else slices.unused
        if table_prepare(&entries.table, SLICES | number, 1) < 0:
            for number in range(at):
                pool_free(entries.objects.pool, handles[number])
            return -ENOMEM
        if number == slices.unused:
            slices.unused = slices.next[number]
        else:
            slices.used += 1
        slices.next[number] = first[0]
        first[0] = number
        memcpy(
            pool_bytes(entries.objects.pool, handles[at - 1], &held), data + (at - 1) * page,
            lengths[at - 1],
        )
        entry.value = handles[at - 1]
        entry.checksum = checksum_of(data + (at - 1) * page, lengths[at - 1], 0)
        table_put(&entries.table, table_place(&entries.table, SLICES | number), &entry)
        entries_count(entries, &entry, lengths[at - 1])
        entries.pages += 1
    return 0


cdef void slices_free(EntriesState *entries, Slices *slices, uint64_t value) noexcept nogil:
    """Remove all slices of a value."""
    cdef uint32_t number = <uint32_t>value, after
    while number != NO_SLICE:
        entries_remove(entries, _entry_of(entries, number))
        after = slices.next[number]
        slices.next[number] = slices.unused
        slices.unused = number
        number = after


cdef void slices_use(EntriesState *entries, Slices *slices, uint64_t value) noexcept nogil:
    """Record a use of a value."""
    cdef uint32_t number = <uint32_t>value, count = 0
    cdef uint16_t stamp
    while number != NO_SLICE:
        count += 1
        number = slices.next[number]
    stamp = lru_use(&entries.lru, &entries.table, count, entries.pages)
    number = <uint32_t>value
    while number != NO_SLICE:
        _entry_of(entries, number).epoch = stamp
        number = slices.next[number]


cdef bint slices_copy(
    EntriesState *entries, const Slices *slices, uint64_t value, uint8_t *to
) noexcept nogil:
    """Copy the bytes of a value. Return whether all of them are in the pool."""
    cdef uint32_t number = <uint32_t>value, length = 0
    cdef const Entry *entry
    cdef const uint8_t *data
    while number != NO_SLICE:
        entry = _entry_of(entries, number)
        if not is_in_pool(entry):
            return False
        data = pool_bytes(entries.objects.pool, entry.value, &length)
        memcpy(to, data, length)
        to += length
        number = slices.next[number]
    return True


cdef uint32_t slices_list(const Slices *slices, uint64_t value, uint64_t *indices) noexcept nogil:
    """Write the indices of a value's slices to `indices`, in order. Return their number."""
    cdef uint32_t number = <uint32_t>value, count = 0
    while number != NO_SLICE:
        indices[count] = SLICES | number
        count += 1
        number = slices.next[number]
    return count


cdef bint slices_are(
    const Slices *slices, uint64_t value, const uint64_t *indices, uint32_t count
) noexcept nogil:
    """Return whether a value's slices have these indices, in this order."""
    cdef uint32_t number = <uint32_t>value, at = 0
    while number != NO_SLICE and at < count and indices[at] == SLICES | number:
        at += 1
        number = slices.next[number]
    return number == NO_SLICE and at == count


cdef uint64_t slices_pool_bytes(
    EntriesState *entries, const Slices *slices, uint64_t value
) noexcept nogil:
    """Return the bytes of a value that are in the pool."""
    cdef uint32_t number = <uint32_t>value, length = 0
    cdef uint64_t found = 0
    cdef const Entry *entry
    while number != NO_SLICE:
        entry = _entry_of(entries, number)
        if is_in_pool(entry):
            pool_bytes(entries.objects.pool, entry.value, &length)
            found += length
        number = slices.next[number]
    return found


cdef object slices_fault(EntriesState *entries, const Slices *slices, list values):
    """Return what is wrong with the slices of these values, or None."""
    cdef set numbers = set()
    cdef uint64_t value, left
    cdef uint32_t number, length = 0, page = entries.objects.pool.page_size
    cdef const Entry *entry
    for value in values:
        left, number = value >> 32, <uint32_t>value
        while left:
            entry = NULL
            if number < slices.used and number not in numbers:
                entry = _entry_of(entries, number)
            if entry is NULL or entry.kind not in (SLICE, BACKED_SLICE):
                return f"slice {number} does not exist, or belongs to several values"
            numbers.add(number)
            length = <uint32_t>min(left, <uint64_t>page)
            if entry.kind == SLICE:
                pool_bytes(entries.objects.pool, entry.value, &length)
            if length != min(left, <uint64_t>page):
                return f"slice {number} has {length} bytes, but {left} bytes of its value are left"
            left -= length
            number = slices.next[number]
        if number != NO_SLICE:
            return f"slice {number} lies beyond the end of its value"
    if len(numbers) != entries.gauges[<int>SLICE] + entries.gauges[<int>BACKED_SLICE]:
        return f"the values have {len(numbers)} slices, but the table has others"
    number = slices.unused
    while number != NO_SLICE:
        if number >= slices.used or number in numbers or (
            _entry_of(entries, number) is not NULL and _entry_of(entries, number).kind
        ):
            return f"unused slice {number} is in use, or listed twice"
        numbers.add(number)
        number = slices.next[number]
    if len(numbers) != slices.used:
        return f"{slices.used} slice numbers were given out, but {len(numbers)} are known"
    return None
