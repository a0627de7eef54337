"""Folio: the pages of one call of `store`, and their entries until these are published.

Kernel counterpart: zswap_store_pages with the batched zswap_compress.

    pages ─▶ same-filled? ─▶ entry with the word
                └─▶ compress(coders): here, page by page; or lend(batch) ─▶ lanes ─▶ absorb(batch)
                        └─▶ does not shrink: the page itself
    ─▶ checksum ─▶ publish(entries): one step under the mutex (entries.pyx)

`store` compresses here and publishes without the GIL in between: taking it again can take longer
than a step, if other threads use the store.

The checksum is computed from the very bytes that are copied to the pool: an output, or a private
copy of a page that is stored raw. If the owner changes a page during the call, some version of it
is stored, but never an entry that cannot be read.

A same-filled page is one word repeated. Zeroed memory is often a quarter of a process. Only the
word is kept. The first and the last word are compared before the rest, because nearly all other
pages fail that comparison.

The outputs of `compress` follow one another in the folio's own buffer. Folios are reused, as the
per-CPU buffers of the kernel are, so their memory stays in the cache.

A folio belongs to one thread at a time.
"""

from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EBADF, ENOSPC
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from batchzip.core.batch cimport BatchState, Pointers
from batchzip.core.coder cimport (
    ABORT, COMPRESS, Coder, Coders, CoderState, Tally, compress_page, raise_callback_error,
)
from batchzip.core.gather cimport checksum_of
from batchzip.core.entries cimport Entries, entries_publish
from batchzip.core.memory cimport bz_calloc, bz_malloc, bz_realloc
from batchzip.core.pool cimport limit_of
from batchzip.core.table cimport (
    COMPRESSED, RAW, SAME_FILLED, Entry, check_word, is_same_filled,
)
from batchzip.core.zones cimport ZoneReservation

cdef extern from "native.h" nogil:
    void bz_count(uint64_t *, uint64_t)
    int64_t bz_now_ns()

cdef enum:
    MOMENT_NS = 50_000_000  # time between two checks for signals
    PENDING = 255  # the kind of an entry whose page is not yet compressed


cdef inline uint64_t first_word(const uint8_t *page) noexcept nogil:
    cdef uint64_t word
    memcpy(&word, page, 8)
    return word


cdef inline const uint8_t *_page(const FolioState *folio, uint32_t number) noexcept nogil:
    if folio.table is NULL:
        return folio.pages + number * folio.page_size
    return folio.table[number]


cdef inline void _note_word(Entry *entry, uint64_t word) noexcept nogil:
    entry.value = word
    entry.kind = SAME_FILLED
    entry.checksum = check_word(word)


cdef void _note_object(
    FolioState *folio, uint32_t page, const uint8_t *data, uint32_t length, uint8_t codec
) noexcept nogil:
    """Record the stored bytes of a page. Codec 0 is the page itself."""
    cdef Entry *entry = &folio.new.entries[page]
    cdef uint32_t number = folio.new.object_count
    entry.kind = COMPRESSED if codec else RAW
    entry.codec = codec
    entry.checksum = checksum_of(data, length, codec)
    folio.new.data[number] = data
    folio.new.lengths[number] = length
    folio.new.object_count = number + 1


cdef void _note_raw(
    FolioState *folio, uint32_t page, const uint8_t *source, uint8_t *room
) noexcept nogil:
    """Store a page raw, from a private copy in `room`."""
    memcpy(room, source, folio.page_size)
    _note_object(folio, page, room, <uint32_t>folio.page_size, 0)


cdef void _note_error(FolioState *folio, uint32_t page, int32_t code) noexcept nogil:
    folio.errors[page] = code
    folio.failed += 1


cdef int64_t _compress(
    FolioState *folio, uint32_t done, CoderState *coder, uint8_t number, bint keep_poor,
    bint keep_failed,
) noexcept nogil:
    """Compress pages from number `done` on, for up to 50 ms. Return the next number, or ABORT."""
    cdef size_t size = folio.page_size
    cdef Tally *tally = &coder.tallies[COMPRESS]
    cdef int64_t length, now = bz_now_ns(), started = now
    cdef uint64_t pages = 0, bytes_out = 0
    cdef uint8_t *room
    while done < folio.new.count:
        # A private copy: the bytes that are tested are the bytes that are stored.
        memcpy(coder.page, _page(folio, done), size)
        if is_same_filled(coder.page, size):
            _note_word(&folio.new.entries[done], first_word(coder.page))
        else:
            room = folio.outputs + folio.output_used
            length = compress_page(
                coder, coder.page, True, room, folio.output_room - folio.output_used
            )
            if length == ABORT:
                return ABORT
            pages += 1
            if 0 < length < <int64_t>size:
                bytes_out += length
                folio.output_used += length
                _note_object(folio, done, room, <uint32_t>length, number)
            elif keep_failed or (keep_poor and (length > 0 or length == -ENOSPC)):
                _note_raw(folio, done, coder.page, room)
                folio.output_used += size
            else:
                _note_error(folio, done, -ENOSPC if length > 0 else <int32_t>length)
        done += 1
        if done % 8 == 0:
            now = bz_now_ns()
            if now - started > MOMENT_NS:
                break
    bz_count(&tally.pages, pages)
    bz_count(&tally.bytes_in, pages * size)
    bz_count(&tally.bytes_out, bytes_out)
    bz_count(&tally.busy_ns, bz_now_ns() - started)
    return done


cdef void _sort_out(FolioState *folio) noexcept nogil:
    """Find the same-filled pages. Mark the others as pending."""
    cdef uint32_t number
    cdef const uint8_t *page
    cdef uint64_t word
    for number in range(folio.new.count):
        page = _page(folio, number)
        word = first_word(page)
        # The word is read once. If the owner changes the page during the test, the word is still
        # one that the page held.
        if is_same_filled(page, folio.page_size):
            _note_word(&folio.new.entries[number], word)
        else:
            folio.new.entries[number].kind = PENDING


cdef class Folio:
    """Buffers for a folio of pages of one size. They are reused for one folio after another."""

    def __init__(self, size_t page_size):
        self.state.page_size = page_size

    def __dealloc__(self):
        self.drop_pages()
        free(self.state.new.entries)
        free(self.state.new.data)
        free(self.state.new.lengths)
        free(self.state.new.values)
        free(self.state.errors)
        free(self.state.outputs)

    def __len__(self) -> int:
        return self.state.new.count

    cdef void drop_pages(self) noexcept:
        cdef Py_ssize_t at
        for at in range(self.view_count):
            PyBuffer_Release(&self.views[at])
        free(self.views)
        free(<void *>self.state.table)
        self.views = NULL
        self.view_count = 0
        self.state.table = NULL
        self.state.pages = NULL
        self.state.new.count = 0
        self.state.new.object_count = 0
        self.owner = None
        self.batches = []
        self.copies = []

    def clear(self) -> list:
        """Release the pages and their outputs. Return the batches that pages were lent to."""
        cdef list batches = self.batches
        self.drop_pages()
        return batches

    cdef int make_room(self, size_t count) except -1:
        """Allocate room for `count` pages, and drop the previous ones."""
        cdef FolioState *state = &self.state
        cdef void *grown
        if count > state.room:
            grown = bz_realloc(state.new.entries, count * sizeof(Entry))
            if grown is not NULL:
                state.new.entries = <Entry *>grown
                grown = bz_realloc(state.new.data, count * sizeof(uint8_t *))
            if grown is not NULL:
                state.new.data = <const uint8_t **>grown
                grown = bz_realloc(state.new.lengths, count * sizeof(uint32_t))
            if grown is not NULL:
                state.new.lengths = <uint32_t *>grown
                grown = bz_realloc(state.new.values, count * sizeof(uint64_t))
            if grown is not NULL:
                state.new.values = <uint64_t *>grown
                grown = bz_realloc(state.errors, count * sizeof(int32_t))
            if grown is NULL:
                raise MemoryError("no memory for a folio")
            state.errors = <int32_t *>grown
            state.room = <uint32_t>count
        memset(state.new.entries, 0, count * sizeof(Entry))
        memset(state.errors, 0, count * sizeof(int32_t))
        state.failed = 0
        state.output_used = 0
        state.new.count = <uint32_t>count
        state.new.object_count = 0
        return 0

    cdef int make_outputs(self, size_t size) except -1:
        cdef void *grown
        if size > self.state.output_room:
            free(self.state.outputs)
            self.state.output_room = 0
            grown = bz_malloc(size)
            self.state.outputs = <uint8_t *>grown
            if grown is NULL:
                raise MemoryError("no memory for the outputs of a folio")
            self.state.output_room = size
        return 0

    def take_matrix(self, pages) -> None:
        """Take the pages of a C-contiguous array (n, page_size) of bytes. The caller checked it."""
        cdef Py_buffer view
        self.drop_pages()
        PyObject_GetBuffer(pages, &view, PyBUF_C_CONTIGUOUS)
        self.owner = pages
        self.state.pages = <const uint8_t *>view.buf
        PyBuffer_Release(&view)
        self.make_room(view.len // self.state.page_size)

    def take_list(self, list pages) -> int:
        """Take a page from each buffer. Return −1, or the number of the first invalid page."""
        cdef Py_ssize_t count = len(pages), at
        self.drop_pages()
        self.make_room(count)
        self.views = <Py_buffer *>bz_calloc(count, sizeof(Py_buffer))
        self.state.table = <const uint8_t **>bz_calloc(count, sizeof(uint8_t *))
        if self.views is NULL or self.state.table is NULL:
            raise MemoryError("no memory for the addresses of a folio")
        for at in range(count):
            try:
                PyObject_GetBuffer(pages[at], &self.views[at], PyBUF_SIMPLE)
            except (TypeError, ValueError, BufferError):
                return at
            self.view_count = at + 1
            if <size_t>self.views[at].len != self.state.page_size:
                return at
            self.state.table[at] = <const uint8_t *>self.views[at].buf
        return -1

    # Compressing.

    def compress(
        self, Coders coders not None, uint8_t number, *, bint keep_poor, bint keep_failed
    ) -> int:
        """Compress the pages in this thread. Return the number of pages that cannot be stored.

        `errors` tells these pages. `number` is the number of the codec. `keep_poor` stores pages
        raw that do not shrink. `keep_failed` does so for every page that the codec fails to
        compress. Signal handlers run every 50 ms. An exception of a handler ends the call.
        """
        self.compress_all(coders, number, keep_poor, keep_failed, NULL)
        return self.state.failed

    def store(
        self, Coders coders not None, uint8_t number, Entries entries not None, uint64_t first, *,
        bint keep_poor, bint may_go_elsewhere, limit
    ) -> int:
        """Compress the pages as `compress` does, and publish them unless one cannot be stored.

        Return the number of pages that cannot be stored, or what `publish` returns.
        """
        cdef Place place
        place.entries = &entries.state
        place.first = first
        place.may_go_elsewhere = may_go_elsewhere
        place.limit = limit_of(limit)
        place.code = 0
        entries.refuse()
        self.compress_all(coders, number, keep_poor, False, &place)
        if place.code == -EBADF:
            entries.refuse()
        return place.code if place.code else <int>self.state.failed

    cdef int compress_all(
        self, Coders coders, uint8_t number, bint keep_poor, bint keep_failed, Place *place
    ) except -1:
        """Compress all pages. If none failed, publish them at a place, unless that is NULL."""
        cdef FolioState *state = &self.state
        cdef Coder coder
        cdef int64_t done = 0
        self.make_outputs((state.new.count + 1) * state.page_size + state.page_size // 128 + 1024)
        coder = coders.take()
        try:
            while done < state.new.count:
                with nogil:
                    done = _compress(
                        state, <uint32_t>done, &coder.state, number, keep_poor, keep_failed
                    )
                    if place is not NULL and done == state.new.count and not state.failed:
                        place.code = entries_publish(
                            place.entries, place.first, &state.new, False, place.may_go_elsewhere,
                            place.limit,
                        )
                if done == ABORT:
                    raise_callback_error(&coder.state)
                if done < state.new.count:
                    PyErr_CheckSignals()
        finally:
            coders.give(coder)
        if state.failed:
            coders.add_errors([code for code in self.errors() if code])
        coders.add_batch(COMPRESS)
        return 0

    def sort_out(self) -> int:
        """Find the same-filled pages. Return the number of others, which can be lent."""
        cdef uint32_t number, pending = 0
        with nogil:
            _sort_out(&self.state)
            for number in range(self.state.new.count):
                pending += self.state.new.entries[number].kind == PENDING
        return pending

    def lend(self, uint32_t first, uint32_t most, Pointers pointers not None) -> list[int]:
        """Lend up to `most` pending pages, from `first` on, to a batch. Return their numbers."""
        cdef uint32_t number, position
        pages = []
        for number in range(first, self.state.new.count):
            if len(pages) == most:
                break
            if self.state.new.entries[number].kind == PENDING:
                pages.append(number)
        pointers.make_tables(len(pages), None, False)
        for position, number in enumerate(pages):
            pointers.set_row(position, _page(&self.state, number), 0, NULL)
        return pages

    def page(self, uint32_t number) -> bytes:
        """Return a copy of one page."""
        return PyBytes_FromStringAndSize(
            <const char *>_page(&self.state, number), self.state.page_size
        )

    def absorb(
        self, list pages, batch, Pointers pointers not None, uint8_t number, *, bint keep_poor,
        bint keep_failed,
    ) -> int:
        """Take the outputs of pages that were lent. `batch` is kept until `clear`.

        Return the number of pages of this folio that cannot be stored so far.
        """
        cdef FolioState *state = &self.state
        cdef uint32_t position, raw = 0, count = len(pages)
        cdef uint32_t *which
        cdef bytes copies = b""
        cdef uint8_t *room
        for position in range(count):
            raw += (
                pointers.state.errors[position] != 0
                or pointers.state.dlens[position] >= state.page_size
            )
        if raw:
            copies = PyBytes_FromStringAndSize(NULL, raw * state.page_size)
        room = <uint8_t *>PyBytes_AS_STRING(copies)
        which = <uint32_t *>bz_calloc(count + 1, sizeof(uint32_t))
        if which is NULL:
            raise MemoryError("no memory for a folio")
        for position in range(count):
            which[position] = pages[position]
        self.batches.append(batch)
        self.copies.append(copies)
        with nogil:
            for position in range(count):
                room = _absorb(
                    state, &pointers.state, which[position], position, number, keep_poor,
                    keep_failed, room,
                )
        free(which)
        return state.failed

    def errors(self) -> list[int]:
        """Return the negative errno of each page that cannot be stored, and 0 for the others."""
        cdef uint32_t number
        return [self.state.errors[number] for number in range(self.state.new.count)]

    # Publishing.

    def objects(self) -> list[bytes]:
        """Return the objects to store in the pool or in the backing file."""
        cdef uint32_t number
        return [
            PyBytes_FromStringAndSize(
                <const char *>self.state.new.data[number], self.state.new.lengths[number]
            )
            for number in range(self.state.new.object_count)
        ]

    def publish(
        self, Entries entries not None, uint64_t first, ZoneReservation where=None, *,
        bint may_go_elsewhere=False, limit=None,
    ) -> int:
        """Publish the folio at the indices from `first` on, in place of their old pages.

        The objects go to the pool, or lie in the backing file already, at the reservation `where`.
        `limit` is the group's limit of bytes in the pool.

        Return 0, −ENOMEM, −ENOSPC (the pool's limit) or −EDQUOT (the group's limit). After an error
        the indices hold nothing. If the folio `may_go_elsewhere`, they keep what they held.
        """
        cdef uint64_t most = limit_of(limit)
        cdef uint32_t number
        cdef int code
        cdef bint in_file = where is not None
        entries.refuse()
        if where is not None:
            for number in range(self.state.new.object_count):
                self.state.new.values[number] = where.positions[number]
        with nogil:
            code = entries_publish(
                &entries.state, first, &self.state.new, in_file, may_go_elsewhere, most
            )
        if where is not None and code == 0:
            where.commit()
        elif where is not None:
            where.undo()  # at once, because a traceback may keep `where` alive
        if code == -EBADF:
            entries.refuse()
        return code


cdef uint8_t *_absorb(
    FolioState *folio, const BatchState *batch, uint32_t page, uint32_t position, uint8_t number,
    bint keep_poor, bint keep_failed, uint8_t *room,
) noexcept nogil:
    """Record the result of a page that was lent. Return the address for the next private copy."""
    cdef int32_t code = batch.errors[position]
    cdef uint32_t length = batch.dlens[position]
    if code == 0 and length < folio.page_size:
        _note_object(folio, page, batch.outputs + position * batch.output_pitch, length, number)
    elif keep_failed or (keep_poor and (code == 0 or code == -ENOSPC)):
        _note_raw(folio, page, _page(folio, page), room)
        return room + folio.page_size
    else:
        _note_error(folio, page, code if code else -ENOSPC)
    return room
