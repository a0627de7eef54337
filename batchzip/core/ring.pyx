"""Ring: how a share of a batch reaches a lane.

A lane is one consumer: a thread of the core in the owner's process, or a worker process. Each lane
has its own ring with one producer, the owner. Both kinds of lane run the same loop (lane.pyx) over
the same layout. They differ in where a share's memory is.

    owner: post ─▶ slot: descriptor, claim ─▶ POSTED ─▶ lane: take a page, do it, take the next …
                              ▲                                    │ nothing left
           cut: takes back ───┘                                    ▼
           pages from the end                                   DONE ─▶ owner: collects

The claim word of a slot says which pages of the share have not been begun: [next, end). A lane
takes them from the front, one at a time, and the owner takes them back from the end. Each does so
with one compare-and-swap. So no thread waits for pages that are not begun, each page is done once, and a
process that dies at any instruction leaves a word that says which page it was processing.

    thread lane   the descriptor holds the address of the owner's BatchState; nothing is copied
    worker        the descriptor holds offsets into the engine's arena; other inputs are staged in
                  the slot; lengths, errors and outputs outside the arena are returned in the slot

Memory of a ring, in the order of addresses. Each field except the claim has one writer.

    control, one cache line per word                           written by
        ready      1 once the lane takes descriptors           lane
        posted     shares ever posted                          owner
        done       shares ever finished; a futex               lane
        asleep     1 while the lane needs the bell             lane
        bell       a futex: changes when the lane is woken     owner
        waiters    the owner's threads that sleep on `done`    owner
        stop       1 when the lane must end                    owner
        owner_cpu  1 + the CPU that a waking owner posts from  owner, before `posted`
        figures    the lane's counters                         lane
    slot 0 … SLOTS − 1; share n is in slot n % SLOTS
        claim      next u32, end u32                           owner at post; then both, by CAS
        descriptor sequence, operation, … and a check          owner, before `posted` covers it
        finished   sequence + 1 once all of it is done         lane, before `done` covers it
        results    a checksum of the results below so far      owner at post; then worker, per page
        lengths    u32 per page: bytes of each staged input    owner, before `posted` covers it
        rows       u32 per page: where its output goes         owner, before `posted` covers it
        dlens, errors, hashes   results of each page           worker, as soon as it is done
        inputs     staged pages or sources                     owner, before `posted` covers it
        outputs    packed, or one page each                    worker, before `done` covers it

Invariants
* done ≤ posted ≤ done + SLOTS. The owner reuses a slot only after `done` covers it and its job has
  released it.
* 0 ≤ next ≤ end ≤ count. A page before `next` belongs to the lane, one at or after `end` to the
  owner.
* A side copies once what the other side wrote, checks the copy, and uses only the copy. The
  descriptor's check covers lengths and rows. A worker also keeps the checksum of its results in
  private memory, so that `results` describes what it did and not what the shared memory holds
  later. Inputs and outputs have no checksum here: with `verify`, hashes serve that purpose.
* The owner accepts what a dead worker has published. `results` tells how many of the pages that the
  worker took are complete. At most one page can have killed it, wherever in a share it died.
* `done` never decreases, and pages are taken in order. Otherwise a word is damaged.

A lane that goes to sleep announces it, checks for work once more, and sleeps. The owner posts, then
checks whether the lane sleeps. Each side stores and then loads what the other stored, so each needs
a full fence in between.

Rejected:

* One queue for all lanes. A process that dies in it holds it or leaves an operation half done.
* A lock per slot. A dead process holds it forever.
* Taking back whole shares only. The caller then waits for the last share.

Locks: `lock`, among the owner's threads, held while one share is staged. A thread takes it only if
it is free, so no thread waits for it.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from batchzip.core.batch cimport BatchState
from batchzip.core.coder cimport COMPRESS, check_page_size
from batchzip.core.memory cimport bz_calloc

from batchzip.errors import BadArgument

cdef extern from "native.h" nogil:
    """
    /* The number of forks that led to this process. A child owns neither threads nor workers. */
    static uint32_t bz_forks;
    static void bz_count_fork(void) { bz_forks++; }
    static void bz_watch_forks(void) { pthread_atfork(NULL, NULL, bz_count_fork); }
    """
    uint64_t bz_fold(uint64_t, uint64_t)
    uint32_t bz_forks
    void bz_watch_forks()
    uint32_t bz_load32(const uint32_t *)
    void bz_store32(uint32_t *, uint32_t)
    uint32_t bz_add32(uint32_t *, uint32_t)
    uint32_t bz_exchange32(uint32_t *, uint32_t)
    uint64_t bz_load64(const uint64_t *)
    void bz_store64(uint64_t *, uint64_t)
    bint bz_cas64(uint64_t *, uint64_t *, uint64_t)
    void bz_fence()
    uint64_t bz_read_figure(const uint64_t *)
    int64_t bz_now_ns()
    void bz_pause()
    void bz_futex_wait(uint32_t *, uint32_t, int64_t)
    void bz_futex_wake(uint32_t *)
    int64_t BZ_LOOK_NS
    int sched_getcpu()
    int sched_yield()

bz_watch_forks()

cdef enum:
    CONTROL_BYTES = 4096
    SLOT_HEAD_BYTES = 320  # cache lines: claim 1, descriptor 3, finished 1
    STAGED_BYTES = 128 << 10  # maximum bytes of pages in a staged share
    SHARE_BYTES = 1 << 20  # maximum bytes of pages in any share
    MOST_SHARE_PAGES = 256

FIGURES = (
    "shares", "sleeps", "busy_ns", "begun_ns",
    "compressed_pages", "restored_pages",
    "compressed_bytes_in", "restored_bytes_in",
    "compressed_bytes_out", "restored_bytes_out",
)

LOOK_NS = BZ_LOOK_NS
"""How long either side polls before it sleeps, in nanoseconds.

It is about the cost of a wake-up in a virtual machine. Longer polling takes CPU time from other
programs.
"""

cdef int64_t _look_ns = LOOK_NS

# Layout.

cdef uint32_t _share_pages(size_t page_size) noexcept:
    return max(1, min(MOST_SHARE_PAGES, SHARE_BYTES // page_size))


cdef size_t _input_room(size_t page_size) noexcept:
    return max(2 * page_size, STAGED_BYTES)  # a source may have two pages


cdef size_t _output_room(size_t page_size) noexcept:
    return 2 * max(page_size, STAGED_BYTES)


cdef size_t _data_offset(size_t page_size) noexcept:
    cdef size_t pages = _share_pages(page_size)
    cdef size_t bytes = SLOT_HEAD_BYTES + pages * (4 * sizeof(uint32_t) + sizeof(uint64_t))
    return (bytes + 4095) // 4096 * 4096


def ring_bytes(size_t page_size, *, bint staged=True) -> int:
    """Return the size of a ring in bytes, with space for staged pages if `staged`."""
    cdef size_t slot = SLOT_HEAD_BYTES
    check_page_size(page_size)
    if staged:
        slot = _data_offset(page_size) + _input_room(page_size) + _output_room(page_size)
    return CONTROL_BYTES + SLOTS * slot


def share_pages(size_t page_size) -> int:
    """Return the maximum number of pages in a worker's share."""
    return _share_pages(check_page_size(page_size))


cdef void _find_slots(uint8_t *memory, RingSlot *slots, size_t page_size, bint staged) noexcept:
    cdef size_t pages = _share_pages(page_size)
    cdef size_t slot_bytes = (ring_bytes(page_size, staged=staged) - CONTROL_BYTES) // SLOTS
    cdef uint8_t *at
    cdef int number
    for number in range(SLOTS):
        at = memory + CONTROL_BYTES + number * slot_bytes
        memset(&slots[number], 0, sizeof(RingSlot))
        slots[number].head = <SlotHead *>at
        if not staged:
            continue
        slots[number].hashes = <uint64_t *>(at + SLOT_HEAD_BYTES)
        slots[number].lengths = <uint32_t *>(slots[number].hashes + pages)
        slots[number].rows = slots[number].lengths + pages
        slots[number].dlens = slots[number].rows + pages
        slots[number].errors = <int32_t *>(slots[number].dlens + pages)
        slots[number].inputs = at + _data_offset(page_size)
        slots[number].outputs = slots[number].inputs + _input_room(page_size)


# The claim.

cdef uint32_t take(uint64_t *claim) noexcept nogil:
    """Take the next page of a share for the lane. Return its position, or NOBODYS if none."""
    cdef uint64_t seen = bz_load64(claim)
    while <uint32_t>seen < <uint32_t>(seen >> 32):
        if bz_cas64(claim, &seen, seen + 1):
            return <uint32_t>seen
    return NOBODYS


cdef uint32_t cut(uint64_t *claim, uint32_t most) noexcept nogil:
    """Take back up to `most` pages from the end of a share for the owner. Return their number."""
    cdef uint64_t seen = bz_load64(claim)
    cdef uint32_t left
    while <uint32_t>seen < <uint32_t>(seen >> 32):
        left = min(most, <uint32_t>(seen >> 32) - <uint32_t>seen)
        if bz_cas64(claim, &seen, seen - (<uint64_t>left << 32)):
            return left
    return 0


# The owner's side.

cdef uint32_t forks() noexcept nogil:
    """Return the number of forks that led to this process."""
    return bz_forks


cdef bint is_honest(RingState *ring) noexcept nogil:
    """Return whether `done` is valid: it never decreases and never exceeds `posted`."""
    cdef uint32_t seen = bz_load32(&ring.seen_done)
    cdef uint32_t done = bz_load32(&ring.control.done)
    if done - seen > bz_load32(&ring.posted) - seen:
        return False
    bz_store32(&ring.seen_done, done)
    return True


cdef uint64_t first_sum(uint32_t sequence) noexcept nogil:
    """Return the initial value of the checksum of a share's results."""
    return bz_fold(sequence, 1)


cdef int64_t finished_pages(
    const RingState *ring, uint32_t sequence, uint32_t count
) noexcept nogil:
    """Return how many of the first `count` pages of a worker's share have results.

    Return −1 if a word is damaged.
    """
    cdef RingSlot slot = ring.slots[sequence % SLOTS]
    cdef uint64_t sum = first_sum(sequence), results = bz_load64(&slot.head.results)
    cdef uint32_t number = 0
    while sum != results:
        if number == count:
            return -1
        sum = add_result(sum, slot.dlens[number], slot.errors[number])
        number += 1
    return number


cdef bint is_done(const RingState *ring, uint32_t sequence) noexcept nogil:
    """Return whether a share is finished."""
    return <int32_t>(bz_load32(&ring.control.done) - sequence - 1) >= 0


cdef bint is_finished(const RingState *ring, uint32_t sequence, uint32_t count) noexcept nogil:
    """Return whether every page of a share of `count` pages, reported as done, was taken."""
    cdef SlotHead *head = ring.slots[sequence % SLOTS].head
    cdef uint64_t claim = bz_load64(&head.claim)
    # Read `done` first, then `posted`: other threads post meanwhile, and the lane continues.
    cdef uint32_t done = bz_load32(&ring.control.done)
    return (
        head.finished == sequence + 1
        and <uint32_t>claim == count
        and <uint32_t>(claim >> 32) == count
        and <int32_t>(bz_load32(&ring.posted) - done) >= 0
    )


cdef bint is_ready(RingState *ring) noexcept nogil:
    """Return whether the lane is or was ready to take descriptors."""
    if not bz_load32(&ring.seen_ready) and bz_load32(&ring.control.ready) == 1:
        bz_store32(&ring.seen_ready, 1)
    return bz_load32(&ring.seen_ready)


cdef bint may_take(RingState *ring, uint32_t backlog) noexcept nogil:
    """Return whether a lane has fewer than `backlog` unfinished shares and a free slot."""
    cdef uint32_t posted = bz_load32(&ring.posted)
    cdef uint32_t under_way = posted - bz_load32(&ring.control.done)
    if bz_load32(&ring.dead) or bz_load32(&ring.held[posted % SLOTS]):
        return False
    if not is_ready(ring):
        return False  # shares posted to a lane that is starting are mostly taken back
    return under_way < min(backlog, <uint32_t>SLOTS)


cdef uint32_t fitting(const RingState *ring, const Share *share) noexcept nogil:
    """Return how many pages of a share fit into a slot, counted from its first page."""
    cdef BatchState *batch = share.batch
    cdef uint32_t count, index, number
    cdef size_t used = 0
    if ring.is_thread:
        return share.count
    count = min(share.count, ring.share_pages)
    if not share.outputs_shared:
        used = batch.page_size
        if batch.operation == COMPRESS:
            used = min(batch.capacity, 2 * batch.page_size)
        count = min(count, <uint32_t>(ring.output_room // used))
    if batch.operation == COMPRESS:
        if not share.inputs_shared:
            count = min(count, <uint32_t>(ring.input_room // batch.page_size))
        return count
    used = 0
    for number in range(count):
        index = share.first + number if batch.order is NULL else batch.order[share.first + number]
        used += _staged_length(batch, index)
        if used > ring.input_room:
            return number
    return count


cdef inline size_t _staged_length(const BatchState *batch, uint32_t index) noexcept nogil:
    """Return the number of bytes of an input to stage, or 0 if its length is invalid."""
    cdef size_t length = batch.page_size
    if batch.input_lengths is not NULL:
        length = batch.input_lengths[index]
    if batch.operation == COMPRESS:
        return length if length == batch.page_size else 0
    return length if length <= 2 * batch.page_size else 0


cdef int post(RingState *ring, const Share *share, uint32_t *sequence) noexcept nogil:
    """Post a share that fits to a lane, if the lane can take one. Set `sequence` to its number."""
    cdef uint32_t number, under_way, outcome = NOT_POSTED
    if bz_exchange32(&ring.lock, 1):
        return NOT_POSTED  # another thread is posting; the caller has work of its own
    number = ring.posted
    under_way = number - bz_load32(&ring.control.done)
    if (
        not bz_load32(&ring.dead)
        and under_way < SLOTS
        and not bz_load32(&ring.held[number % SLOTS])
    ):
        _write_slot(ring, &ring.slots[number % SLOTS], share, number)
        bz_store32(&ring.held[number % SLOTS], 1)
        sequence[0] = number
        outcome = _announce(ring, number + 1)
    bz_store32(&ring.lock, 0)
    return outcome


cdef int _announce(RingState *ring, uint32_t posted) noexcept nogil:
    """Publish the shares below `posted`, and wake the lane if it sleeps."""
    cdef bint sleeps = bz_load32(&ring.control.asleep)
    bz_store32(&ring.control.owner_cpu, <uint32_t>sched_getcpu() + 1 if sleeps else 0)
    bz_store32(&ring.posted, posted)
    bz_store32(&ring.control.posted, posted)
    bz_fence()
    if not bz_load32(&ring.control.asleep):
        return POSTED
    bz_add32(&ring.control.bell, 1)
    bz_futex_wake(&ring.control.bell)
    return POSTED_AND_WOKE


cdef void _write_slot(
    RingState *ring, RingSlot *slot, const Share *share, uint32_t sequence
) noexcept nogil:
    cdef BatchState *batch = share.batch
    cdef Descriptor *descriptor = &slot.head.descriptor
    memset(descriptor, 0, sizeof(Descriptor))
    descriptor.sequence = sequence
    descriptor.operation = batch.operation
    descriptor.count = share.count
    descriptor.first = share.first
    descriptor.capacity = <uint32_t>min(batch.capacity, 2 * batch.page_size)
    if ring.is_thread:
        descriptor.batch = <uint64_t><size_t>batch
    else:
        if share.hashed:
            descriptor.flags = HASHES
        if share.inputs_shared:
            descriptor.flags |= INPUTS_SHARED
            descriptor.inputs = share.inputs + share.first * batch.input_pitch
            descriptor.input_pitch = batch.input_pitch
        else:
            descriptor.input_bytes = <uint32_t>_stage(slot, share)
        if share.outputs_shared:
            descriptor.flags |= OUTPUTS_SHARED
            descriptor.outputs = share.outputs
            descriptor.output_pitch = batch.output_pitch
            _write_rows(slot, share)
        descriptor.tables = sum_of_tables(descriptor, slot.lengths, slot.rows)
        bz_store64(&slot.head.results, first_sum(sequence))
    descriptor.check = bz_check(descriptor)
    bz_store64(&slot.head.claim, <uint64_t>share.count << 32)


cdef uint32_t sum_of_tables(
    const Descriptor *descriptor, const uint32_t *lengths, const uint32_t *rows
) noexcept nogil:
    """Return a checksum of a share's lengths and rows."""
    cdef uint64_t sum = 0
    cdef uint32_t number
    if not descriptor.flags & INPUTS_SHARED:
        for number in range(descriptor.count):
            sum = bz_fold(sum, lengths[number])
    if descriptor.flags & OUTPUTS_SHARED:
        for number in range(descriptor.count):
            sum = bz_fold(sum, rows[number])
    return <uint32_t>sum


cdef size_t _stage(RingSlot *slot, const Share *share) noexcept nogil:
    """Copy a share's inputs into its slot, contiguously. Return their total size in bytes."""
    cdef BatchState *batch = share.batch
    cdef uint32_t number, index
    cdef size_t at = 0, length
    cdef const uint8_t *source
    for number in range(share.count):
        index = share.first + number if batch.order is NULL else batch.order[share.first + number]
        length = _staged_length(batch, index)
        slot.lengths[number] = <uint32_t>length
        if batch.input_table is NULL:
            source = batch.inputs + index * batch.input_pitch
        else:
            source = batch.input_table[index]
        memcpy(slot.inputs + at, source, length)
        at += length
    return at


cdef void _write_rows(RingSlot *slot, const Share *share) noexcept nogil:
    cdef uint32_t number
    for number in range(share.count):
        slot.rows[number] = share.first + number
        if share.batch.order is not NULL:
            slot.rows[number] = share.batch.order[share.first + number]


cdef void await_done(
    RingState *ring, uint32_t sequence, int64_t look_ns, int64_t until_ns
) noexcept nogil:
    """Wait until a share is finished, `until_ns` has passed or a signal arrives.

    Poll for `look_ns`, then sleep.
    """
    cdef int64_t now, look_until = bz_now_ns() + look_ns
    cdef uint32_t seen, turns = 0
    cdef int spin
    while look_ns:
        for spin in range(32):
            if is_done(ring, sequence):
                return
            bz_pause()
        if bz_now_ns() >= look_until:
            break
        turns += 1
        if turns & 7 == 0:
            sched_yield()
    bz_add32(&ring.control.waiters, 1)
    bz_fence()
    seen = bz_load32(&ring.control.done)
    now = bz_now_ns()
    if <int32_t>(seen - sequence - 1) < 0 and not bz_load32(&ring.gone) and now < until_ns:
        bz_futex_wait(&ring.control.done, seen, until_ns - now)
    bz_add32(&ring.control.waiters, <uint32_t>-1)


cdef void let_go(RingState *ring, uint32_t sequence) noexcept nogil:
    """Release the slot of a share. It is free once the share is finished."""
    bz_store32(&ring.held[sequence % SLOTS], 0)


cdef inline uint32_t _now_ms() noexcept nogil:
    return <uint32_t>(bz_now_ns() // 1_000_000)


cdef void give_up(RingState *ring, uint32_t sequence) noexcept nogil:
    """Release the slot of a share that may still be under way, and record the oldest such share."""
    cdef uint64_t noted = bz_load64(&ring.abandoned)
    if not is_done(ring, sequence) and (not noted or is_done(ring, <uint32_t>(noted >> 32))):
        bz_store64(&ring.abandoned, (<uint64_t>sequence << 32) | _now_ms() | 1)
    let_go(ring, sequence)


cdef bint is_hung(RingState *ring, double patience_s) noexcept nogil:
    """Return whether a share given up at least `patience_s` seconds ago is still under way."""
    cdef uint64_t noted = bz_load64(&ring.abandoned)
    if not noted or not is_ready(ring) or is_done(ring, <uint32_t>(noted >> 32)):
        return False
    return <int32_t>(_now_ms() - <uint32_t>noted) >= patience_s * 1e3


cdef class Ring:
    """The owner's side of one lane's ring. Thread-safe.

    `memory`  a writable buffer of `ring_bytes(page_size)` zero bytes, shared with a worker. Without
              it, the lane is a thread.
    """

    def __cinit__(self, size_t page_size, int number, memory=None):
        cdef uint8_t *start
        cdef RingState *state = &self.state
        check_page_size(page_size)
        self.number = number
        state.number = number
        state.is_thread = memory is None
        state.page_size = page_size
        state.share_pages = _share_pages(page_size)
        state.input_room = _input_room(page_size)
        state.output_room = _output_room(page_size)
        if memory is None:
            self.own_memory = bz_calloc(1, ring_bytes(page_size, staged=False) + 64)
            if self.own_memory is NULL:
                raise MemoryError("no memory for a ring")
            start = <uint8_t *>((<size_t>self.own_memory + 63) // 64 * 64)
        else:
            # Hold it as long as the ring, so that memory in use by a batch cannot be unmapped.
            PyObject_GetBuffer(memory, &self.memory, PyBUF_SIMPLE | PyBUF_WRITABLE)
            start = <uint8_t *>self.memory.buf
            if self.memory.len < ring_bytes(page_size):
                raise BadArgument(
                    f"a ring needs {ring_bytes(page_size)} bytes, not {self.memory.len}"
                )
        state.control = <Control *>start
        _find_slots(start, state.slots, page_size, not state.is_thread)

    def __dealloc__(self):
        free(self.own_memory)
        PyBuffer_Release(&self.memory)  # does nothing if there is no buffer

    @property
    def ready(self) -> bool:
        """Whether the lane has ever been ready to take descriptors."""
        return is_ready(&self.state)

    @property
    def posted(self) -> int:
        """Number of shares posted so far, modulo 2³²."""
        return bz_load32(&self.state.posted)

    @property
    def done(self) -> int:
        """Number of shares finished so far, modulo 2³², as reported by the lane."""
        return bz_load32(&self.state.control.done)

    @property
    def asleep(self) -> bool:
        """Whether the lane sleeps and has to be woken."""
        return bz_load32(&self.state.control.asleep) != 0

    @property
    def dead(self) -> bool:
        """Whether the lane has ended or is no longer trusted."""
        return bz_load32(&self.state.dead) != 0

    @property
    def is_unused(self) -> bool:
        """Whether every share is finished and no batch uses a slot."""
        cdef uint32_t slot, held = 0
        for slot in range(SLOTS):
            held += bz_load32(&self.state.held[slot])
        return not held and bz_load32(&self.state.control.done) == bz_load32(&self.state.posted)

    def mark_gone(self) -> None:
        """Record that the lane has ended. Post no more shares, and wake all waiting threads."""
        bz_store32(&self.state.dead, 1)
        bz_store32(&self.state.gone, 1)
        bz_futex_wake(&self.state.control.done)

    def stop(self) -> None:
        """Tell the lane to end once it has finished all posted shares."""
        bz_store32(&self.state.control.stop, 1)
        bz_fence()
        bz_add32(&self.state.control.bell, 1)
        bz_futex_wake(&self.state.control.bell)

    def is_neglected(self, double patience_s) -> bool:
        """Return whether a share given up at least `patience_s` seconds ago is still under way."""
        return is_hung(&self.state, patience_s)

    def figures(self) -> dict[str, int]:
        """Return the lane's counters, with the keys in FIGURES."""
        cdef int at
        return {
            name: bz_read_figure(&self.state.control.figures[at])
            for at, name in enumerate(FIGURES)
        }

    def check_invariants(self) -> None:
        """Raise AssertionError if an invariant in the module's header does not hold."""
        cdef Control *control = self.state.control
        cdef uint64_t claim
        cdef uint32_t done = bz_load32(&control.done), number, count
        assert bz_load32(&control.posted) == self.state.posted
        assert self.state.posted - done <= SLOTS, (done, self.state.posted)
        for number in range(done, self.state.posted):
            claim = bz_load64(&self.state.slots[number % SLOTS].head.claim)
            count = self.state.slots[number % SLOTS].head.descriptor.count
            assert <uint32_t>claim <= <uint32_t>(claim >> 32) <= count, (number, claim, count)
