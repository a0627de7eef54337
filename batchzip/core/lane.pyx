"""Lane: do the shares that arrive on a ring, page by page.

    poll `posted` ─▶ open the share ─▶ take a page, do it ─▶ … ─▶ none left: DONE, wake the owner
         ▲  nothing posted: poll for LOOK_NS, then set `asleep`, poll again, sleep on `bell`   │
         └─────────────────────────────────────────────────────────────────────────────────────┘

A thread of the core (ThreadLanes) and a worker process (`serve`) run the same loop. A thread never
takes the GIL; a worker takes it only for codecs in Python. ring.pyx describes the layout, the
writer of each field, and the invariants.

A worker does not trust its ring. It copies descriptors, lengths and rows once and checks the
copies. A value that is out of range ends the process. The owner then starts another one with a new
ring.

Failpoints: tests can make a lane fail at each step of the loop. Each costs one predictable branch.
"""

cimport cython
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from batchzip.core.batch cimport BatchState, Done, Packer, count_done, run_page
from batchzip.core.coder cimport (
    ABORT, COMPRESS, DECOMPRESS, Coder, CoderState, check_page_size, raise_callback_error,
)
from batchzip.core.memory cimport bz_calloc
from batchzip.core.ring cimport (
    BEGUN_NS, BUSY_NS, BYTES_IN, BYTES_OUT, HASHES, INPUTS_SHARED, NOBODYS, OUTPUTS_SHARED, PAGES,
    SHARES, SLEEPS, SLOTS, Control, Descriptor, Ring, RingSlot, add_result, bz_check, first_sum,
    forks, sum_of_tables, take,
)

from batchzip.core.ring import LOOK_NS
from batchzip.errors import BadArgument
from batchzip.system.limits import named

cdef extern from "native.h" nogil:
    """
    static int64_t bz_file_size(int fd) {
        struct stat status;
        return fstat(fd, &status) ? -1 : (int64_t)status.st_size;
    }
    """
    ctypedef struct pthread_t:
        pass
    uint32_t bz_load32(const uint32_t *)
    uint32_t bz_peek32(const uint32_t *)
    void bz_store32(uint32_t *, uint32_t)
    uint64_t bz_load64(const uint64_t *)
    void bz_store64(uint64_t *, uint64_t)
    void bz_fence()
    void bz_point()
    void bz_count(uint64_t *, uint64_t)
    void bz_set_figure(uint64_t *, uint64_t)
    int64_t bz_now_ns()
    void bz_sleep_ns(int64_t)
    void bz_pause()
    void bz_futex_wait(uint32_t *, uint32_t, int64_t)
    void bz_futex_wake(uint32_t *)
    int bz_start_thread(pthread_t *, void *(*)(void *) noexcept nogil, void *)
    void bz_join_thread(pthread_t)
    void bz_step_aside(int, int)
    bint bz_unlikely(bint)
    int sched_yield()
    void *mmap(void *, size_t, int, int, int, long)
    int munmap(void *, size_t)
    int64_t bz_file_size(int)
    int kill(int, int)
    int getpid()
    enum: PROT_READ, PROT_WRITE, MAP_SHARED
    enum: SIGKILL, SIGSTOP

cdef int64_t _look_ns = LOOK_NS

STEPS = (
    "ready", "posted", "began", "opened", "took", "coded", "noted", "done", "rung", "asleep",
    "awake",
)
"""The steps of a lane's loop at which a failpoint can be set, in the order of a share's way."""

ACTIONS = ("kill", "stop", "raise", "pause")
"""The actions of a failpoint: SIGKILL, SIGSTOP, end the loop, or pause for 20 ms."""

cdef enum:
    AT_READY = 1, AT_POSTED, AT_BEGAN, AT_OPENED, AT_TOOK, AT_CODED, AT_NOTED, AT_DONE, AT_RUNG
    AT_ASLEEP, AT_AWAKE

cdef enum:
    NAP_NS = 50_000  # between two checks whether the owner sleeps
    MOST_NAPS = 40

cdef enum:
    DO_KILL, DO_STOP, DO_RAISE, DO_PAUSE

cpdef enum:  # reasons why a lane's loop ends
    ENDED = 0  # the owner stopped the lane
    BAD_DESCRIPTOR = 65  # a descriptor failed its check (EX_DATAERR)
    FAILED = 70  # a failpoint, or an exception of a codec (EX_SOFTWARE)

cdef struct Lane:  # the lane's side of one ring; private to the lane
    Control *control
    RingSlot slots[SLOTS]
    CoderState *coder
    size_t page_size
    uint32_t share_pages
    size_t input_room
    size_t output_room
    bint is_thread
    int number
    int arena_fd
    uint8_t *arena
    size_t arena_bytes
    const uint8_t **sources  # of the share's pages
    uint32_t *lengths
    uint32_t *rows
    uint32_t *dlens
    int32_t *errors
    uint64_t *hashes
    uint64_t *offsets
    uint32_t failpoint  # AT_…, or 0
    uint32_t passes
    int action
    int outcome
    pthread_t thread


# The loop.

cdef int _hit(Lane *lane, int step) noexcept nogil:
    """Handle a step at which a failpoint is set. Return whether the loop ends."""
    lane.passes -= 1
    if lane.passes:
        return False
    lane.failpoint = 0
    if lane.action == DO_RAISE:
        lane.outcome = FAILED
        return True
    if lane.action == DO_PAUSE:
        bz_futex_wait(&lane.passes, 0, 20_000_000)
        return False
    kill(getpid(), SIGKILL if lane.action == DO_KILL else SIGSTOP)
    return False


cdef inline bint _fails(Lane *lane, int step) noexcept nogil:
    return bz_unlikely(bz_peek32(&lane.failpoint) == <uint32_t>step) and _hit(lane, step)


cdef void _await_owner(Lane *lane) noexcept nogil:
    """Wait up to 2 ms until the owner sleeps. It may be waiting for another lane instead.

    The failpoint `rung` needs this, because a lane wakes only an owner that sleeps.
    """
    cdef int turn
    for turn in range(MOST_NAPS):
        if bz_load32(&lane.control.waiters):
            break
        bz_sleep_ns(NAP_NS)


cdef void _loop(Lane *lane) noexcept nogil:
    """Do shares in the order in which they were posted, until the owner stops the lane."""
    cdef Control *control = lane.control
    cdef uint32_t done = 0, cpu
    cdef int64_t begun
    lane.outcome = ENDED
    bz_store32(&control.ready, 1)
    if _fails(lane, AT_READY):
        return
    while True:
        if bz_load32(&control.posted) == done and not _await_post(lane, done):
            return
        cpu = bz_load32(&control.owner_cpu)
        if cpu:
            bz_step_aside(cpu - 1, lane.number)
        if _fails(lane, AT_POSTED):
            return
        begun = bz_now_ns()
        bz_set_figure(&control.figures[BEGUN_NS], begun)
        if _fails(lane, AT_BEGAN):
            return
        if not _do_share(lane, done):
            return
        done += 1
        bz_set_figure(&control.figures[SHARES], done)
        bz_count(&control.figures[BUSY_NS], bz_now_ns() - begun)
        if _fails(lane, AT_NOTED):
            return
        if bz_unlikely(bz_peek32(&lane.failpoint) == <uint32_t>AT_RUNG):
            _await_owner(lane)
        bz_store32(&control.done, done)
        if _fails(lane, AT_DONE):
            return
        bz_fence()
        if bz_load32(&control.waiters):
            bz_futex_wake(&control.done)
            if _fails(lane, AT_RUNG):
                return


cdef bint _await_post(Lane *lane, uint32_t done) noexcept nogil:
    """Wait for a share: poll for LOOK_NS, then sleep. Return False if the loop ends."""
    cdef Control *control = lane.control
    cdef int64_t look_until = bz_now_ns() + _look_ns
    cdef uint32_t bell, turns = 0
    cdef int spin
    while _look_ns:
        for spin in range(32):
            if bz_load32(&control.posted) != done:
                return True
            bz_pause()
        if bz_now_ns() >= look_until:
            break
        turns += 1
        if turns & 7 == 0:
            sched_yield()
    bz_count(&control.figures[SLEEPS], 1)
    while True:
        bell = bz_load32(&control.bell)
        bz_store32(&control.asleep, 1)
        bz_fence()
        if _fails(lane, AT_ASLEEP):
            return False
        if bz_load32(&control.posted) == done and not bz_load32(&control.stop):
            bz_futex_wait(&control.bell, bell, -1)
        bz_store32(&control.asleep, 0)
        if _fails(lane, AT_AWAKE):
            return False
        if bz_load32(&control.posted) != done:
            return True
        if bz_load32(&control.stop):
            return False


cdef bint _do_share(Lane *lane, uint32_t sequence) noexcept nogil:
    """Do the pages that are left of a share. Return False if the loop ends."""
    cdef RingSlot *slot = &lane.slots[sequence % SLOTS]
    cdef Descriptor descriptor = slot.head.descriptor  # copied once; only the copy is used
    cdef BatchState own
    cdef BatchState *batch
    cdef uint32_t first = 0, number
    cdef Packer packer
    cdef Done before, done
    cdef CoderState *coder = lane.coder
    cdef int64_t started
    cdef uint64_t sum = first_sum(sequence)
    packer.position = 0
    packer.offset = 0
    if descriptor.check != bz_check(&descriptor) or descriptor.sequence != sequence:
        lane.outcome = BAD_DESCRIPTOR
        return False
    if lane.is_thread:
        batch = <BatchState *><size_t>descriptor.batch
        first = descriptor.first
    else:
        batch = &own
        if not _open_share(lane, slot, &descriptor, batch):
            lane.outcome = BAD_DESCRIPTOR
            return False
    if _fails(lane, AT_OPENED):
        return False
    started = bz_now_ns()
    memset(&done, 0, sizeof(done))
    while True:
        number = take(&slot.head.claim)
        # The owner may have freed its memory by now, unless this lane took a page.
        if number >= descriptor.count:
            break
        if number != done.pages:  # the claim word is damaged
            lane.outcome = BAD_DESCRIPTOR
            return False
        if _fails(lane, AT_TOOK):
            return False
        bz_point()
        if batch.coders is not NULL:
            coder = batch.coders[lane.number]
        before = done
        if run_page(batch, coder, &packer, first + number, &done) == ABORT:
            lane.outcome = FAILED
            return False
        done.pages += 1
        if coder == lane.coder:
            _count_page(lane.control.figures, descriptor.operation, &before, &done)
        if not lane.is_thread:
            sum = _publish_result(lane, slot, &descriptor, number, sum)
        if _fails(lane, AT_CODED):
            return False
    slot.head.finished = sequence + 1
    count_done(coder, descriptor.operation, &done, started)
    return True


cdef inline void _count_page(
    uint64_t *figures, uint32_t operation, const Done *before, const Done *done
) noexcept nogil:
    """Count a page in shared memory, so that the count is not lost if the lane dies."""
    bz_count(&figures[PAGES + operation], 1)
    bz_count(&figures[BYTES_IN + operation], done.bytes_in - before.bytes_in)
    bz_count(&figures[BYTES_OUT + operation], done.bytes_out - before.bytes_out)


cdef inline uint64_t _publish_result(
    const Lane *lane, RingSlot *slot, const Descriptor *descriptor, uint32_t number, uint64_t sum
) noexcept nogil:
    """Write the result of a page to the slot. Return the checksum of all results so far."""
    sum = add_result(sum, lane.dlens[number], lane.errors[number])
    slot.dlens[number] = lane.dlens[number]
    slot.errors[number] = lane.errors[number]
    if descriptor.flags & HASHES:
        slot.hashes[number] = lane.hashes[number]
    bz_store64(&slot.head.results, sum)
    return sum


cdef bint _open_share(
    Lane *lane, RingSlot *slot, const Descriptor *descriptor, BatchState *batch
) noexcept nogil:
    """Build a BatchState from a worker's share. Return False if the descriptor is invalid."""
    cdef size_t page_size = lane.page_size, at = 0, length
    cdef uint32_t number, most = 0
    cdef uint8_t *base
    if descriptor.operation > DECOMPRESS or not 1 <= descriptor.count <= lane.share_pages:
        return False
    if descriptor.capacity > 2 * page_size or descriptor.input_bytes > lane.input_room:
        return False
    memset(batch, 0, sizeof(BatchState))
    batch.operation = descriptor.operation
    batch.count = descriptor.count
    batch.page_size = page_size
    batch.capacity = descriptor.capacity
    memcpy(lane.lengths, slot.lengths, descriptor.count * sizeof(uint32_t))
    memcpy(lane.rows, slot.rows, descriptor.count * sizeof(uint32_t))
    if descriptor.tables != sum_of_tables(descriptor, lane.lengths, lane.rows):
        return False
    batch.dlens = lane.dlens
    batch.errors = lane.errors
    if descriptor.flags & HASHES:
        batch.hashes = lane.hashes
    if descriptor.flags & INPUTS_SHARED:
        if descriptor.operation != COMPRESS:
            return False
        base = _arena(
            lane, descriptor.inputs, descriptor.count - 1, descriptor.input_pitch, page_size
        )
        if base is NULL:
            return False
        batch.inputs = base
        batch.input_pitch = descriptor.input_pitch
    else:
        batch.is_private = True
        batch.input_table = lane.sources
        batch.input_lengths = lane.lengths
        for number in range(descriptor.count):
            length = lane.lengths[number]
            if length > 2 * page_size or at + length > descriptor.input_bytes:
                return False
            lane.sources[number] = slot.inputs + at
            at += length
    if not descriptor.flags & OUTPUTS_SHARED:
        length = descriptor.capacity if descriptor.operation == COMPRESS else page_size
        if length * descriptor.count > lane.output_room:
            return False
        batch.outputs = slot.outputs
        batch.output_pitch = page_size
        batch.packed = descriptor.operation == COMPRESS
        batch.offsets = lane.offsets
        batch.may_spoil = True
        return True
    for number in range(descriptor.count):
        most = max(most, lane.rows[number])
    length = descriptor.capacity if descriptor.operation == COMPRESS else page_size
    base = _arena(lane, descriptor.outputs, most, descriptor.output_pitch, length)
    if base is NULL:
        return False
    if descriptor.flags & INPUTS_SHARED:
        batch.inputs = lane.arena + descriptor.inputs  # `_arena` may have moved the mapping
    # Outputs go to rows of the owner's batch. Results go to rows of the lane, by position.
    batch.row_table = lane.rows
    batch.row_limit = most
    batch.outputs = base
    batch.output_pitch = descriptor.output_pitch
    return True


cdef uint8_t *_arena(
    Lane *lane, uint64_t offset, uint64_t rows, uint64_t pitch, uint64_t last
) noexcept nogil:
    """Return the address of an offset in the arena, or NULL if its rows exceed the arena.

    The last row begins `rows` × `pitch` bytes further, and has `last` bytes. Map the arena again if
    it has grown.
    """
    cdef int64_t size
    cdef void *mapping
    cdef uint64_t limit = <uint64_t>1 << 46
    if offset > limit or pitch > limit or rows > limit or (pitch and rows > limit // pitch):
        return NULL
    if offset + rows * pitch + last > lane.arena_bytes:
        size = bz_file_size(lane.arena_fd)
        if size < 0 or offset + rows * pitch + last > <uint64_t>size:
            return NULL
        mapping = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, lane.arena_fd, 0)
        if mapping == <void *>-1:
            return NULL
        if lane.arena is not NULL:
            munmap(lane.arena, lane.arena_bytes)
        lane.arena = <uint8_t *>mapping
        lane.arena_bytes = size
    return lane.arena + offset


cdef void *_thread_main(void *lane) noexcept nogil:
    _loop(<Lane *>lane)
    return NULL


@cython.no_gc_clear
cdef class ThreadLanes:
    """Lanes that are threads of this process and never take the GIL.

    `codec`  a codec that is a C function, or its plan.

    Raises BadArgument for a codec in Python, MemoryError, and LimitReached or another OSError if a
    thread cannot be started. No thread is left then.
    """

    def __cinit__(self, codec, size_t page_size, uint32_t count):
        cdef Lane *lane
        cdef Coder coder, first = None
        cdef Ring ring
        cdef int failed
        self.made_in = forks()
        self.coders = []
        self.rings = ()
        self.lanes = bz_calloc(count, sizeof(Lane))
        if self.lanes is NULL:
            raise MemoryError("no memory for lanes")
        for number in range(count):
            ring = Ring(page_size, number)
            coder = Coder(codec, page_size, first)
            if not coder.native:
                raise BadArgument("lanes that are threads need a native codec")
            first = first or coder
            lane = &(<Lane *>self.lanes)[number]
            lane.control = ring.state.control
            memcpy(lane.slots, ring.state.slots, sizeof(lane.slots))
            lane.coder = &coder.state
            lane.is_thread = True
            lane.number = number
            self.coders.append(coder)
            failed = bz_start_thread(&lane.thread, _thread_main, lane)
            if failed:
                self.close()
                raise named(OSError(failed, ""), "a thread of the core cannot be started")
            self.rings += (ring,)
            self.count = number + 1

    def close(self) -> None:
        """End the threads after they have done all posted shares. Do nothing in a forked child."""
        cdef Lane *lanes = <Lane *>self.lanes
        cdef uint32_t number, count = self.count
        self.count = 0
        if self.made_in != forks():
            return
        for ring in self.rings:
            ring.stop()
        with nogil:
            for number in range(count):
                bz_join_thread(lanes[number].thread)
        for ring in self.rings:
            ring.mark_gone()

    def set_failpoint(self, int number, str step, uint32_t passes, str action) -> None:
        """Make a lane pause the `passes`-th time it reaches a step. For tests, before it has work.

        Raise BadArgument for other actions: they would kill the process or leave pages undone.
        """
        cdef Lane *lane = &(<Lane *>self.lanes)[number]
        if action != "pause":
            raise BadArgument(f"a thread's failpoint can only pause, not {action}")
        lane.passes = passes
        lane.action = ACTIONS.index(action)
        bz_store32(&lane.failpoint, STEPS.index(step) + 1)

    def __dealloc__(self):
        if self.count:
            self.close()
        if self.made_in == forks():
            free(self.lanes)


def serve(memory, codec, size_t page_size, int number, int arena_fd, failpoint=None) -> int:
    """Run the loop of a worker process over a ring. Return ENDED, BAD_DESCRIPTOR or FAILED.

    `memory`     the ring's memory, which is shared with the owner.
    `codec`      a codec or a plan.
    `arena_fd`   the memfd of the engine's arena.
    `failpoint`  (step, passes, action), for tests.
    """
    cdef Lane lane
    cdef void *tables
    cdef Coder coder = Coder(codec, page_size)
    cdef Ring ring = Ring(page_size, number, memory)
    memset(&lane, 0, sizeof(lane))
    lane.control = ring.state.control
    memcpy(lane.slots, ring.state.slots, sizeof(lane.slots))
    lane.coder = &coder.state
    lane.page_size = page_size
    lane.share_pages = ring.state.share_pages
    lane.input_room = ring.state.input_room
    lane.output_room = ring.state.output_room
    lane.number = number
    lane.arena_fd = arena_fd
    tables = bz_calloc(lane.share_pages, 3 * sizeof(uint64_t) + 4 * sizeof(uint32_t))
    if tables is NULL:
        raise MemoryError("no memory for a worker's lane")
    lane.sources = <const uint8_t **>tables
    lane.offsets = <uint64_t *>(lane.sources + lane.share_pages)
    lane.hashes = lane.offsets + lane.share_pages
    lane.lengths = <uint32_t *>(lane.hashes + lane.share_pages)
    lane.rows = lane.lengths + lane.share_pages
    lane.dlens = lane.rows + lane.share_pages
    lane.errors = <int32_t *>(lane.dlens + lane.share_pages)
    if failpoint is not None:
        step, lane.passes, action = failpoint
        lane.failpoint = STEPS.index(step) + 1
        lane.action = ACTIONS.index(action)
    with nogil:
        _loop(&lane)
    if lane.arena is not NULL:
        munmap(lane.arena, lane.arena_bytes)
    free(tables)
    raise_callback_error(&coder.state)
    return lane.outcome
