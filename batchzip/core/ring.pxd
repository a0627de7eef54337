from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from batchzip.core.batch cimport BatchState

cdef enum:
    SLOTS = 4
    NOBODYS = 0xFFFFFFFF  # no page is left

cdef enum:  # flags of a descriptor
    INPUTS_SHARED = 1  # inputs lie in the arena
    OUTPUTS_SHARED = 2  # outputs go to the arena
    HASHES = 4  # each output is hashed

cdef enum:  # figures of a lane; the names are in FIGURES
    SHARES, SLEEPS, BUSY_NS, BEGUN_NS, PAGES, BYTES_IN = 6, BYTES_OUT = 8

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    #include "native.h"
    typedef struct {
        _Alignas(64) uint32_t ready;
        _Alignas(64) uint32_t posted;
        _Alignas(64) uint32_t done;
        _Alignas(64) uint32_t asleep;
        _Alignas(64) uint32_t bell;
        _Alignas(64) uint32_t waiters;
        _Alignas(64) uint32_t stop;
        _Alignas(64) uint32_t owner_cpu;
        _Alignas(64) uint64_t figures[16];
    } bz_control;

    typedef struct {
        uint32_t sequence, operation, count, capacity;
        uint32_t first, input_bytes, flags, tables;
        uint64_t batch, inputs, input_pitch, outputs, output_pitch;
        uint64_t check;
    } bz_descriptor;

    typedef struct {
        _Alignas(64) uint64_t claim;
        _Alignas(64) bz_descriptor descriptor;
        _Alignas(64) uint32_t finished;
        uint64_t results;
    } bz_slot_head;

    static uint64_t bz_check(const bz_descriptor *descriptor) {
        const uint64_t *words = (const uint64_t *)descriptor;
        uint64_t sum = 0x9e3779b97f4a7c15u;
        for (size_t at = 0; at < offsetof(bz_descriptor, check) / 8; at++)
            sum = bz_fold(sum, words[at]);
        return sum;
    }
    """
    ctypedef struct Descriptor "bz_descriptor":
        uint32_t sequence
        uint32_t operation
        uint32_t count
        uint32_t capacity
        uint32_t first
        uint32_t input_bytes
        uint32_t flags
        uint32_t tables
        uint64_t batch
        uint64_t inputs
        uint64_t input_pitch
        uint64_t outputs
        uint64_t output_pitch
        uint64_t check

    uint64_t bz_check(const Descriptor *) noexcept nogil
    uint64_t bz_fold(uint64_t, uint64_t) noexcept nogil

    ctypedef struct Control "bz_control":
        uint32_t ready
        uint32_t posted
        uint32_t done
        uint32_t asleep
        uint32_t bell
        uint32_t waiters
        uint32_t stop
        uint32_t owner_cpu
        uint64_t figures[16]

    ctypedef struct SlotHead "bz_slot_head":
        uint64_t claim
        Descriptor descriptor
        uint32_t finished
        uint64_t results

cdef struct RingSlot:  # the addresses of the parts of one slot
    SlotHead *head
    uint32_t *lengths
    uint32_t *rows
    uint32_t *dlens
    int32_t *errors
    uint64_t *hashes
    uint8_t *inputs
    uint8_t *outputs

cdef struct RingState:  # the owner's side of one ring
    Control *control
    RingSlot slots[SLOTS]
    size_t page_size
    uint32_t share_pages
    size_t input_room
    size_t output_room
    bint is_thread
    uint32_t number
    uint32_t lock  # 1 while one of the owner's threads posts
    uint32_t posted  # the owner's private copy
    uint32_t seen_ready  # 1 once the lane was ready, whatever its word says later
    uint32_t seen_done  # the last valid `done`
    uint32_t held[SLOTS]  # 1 while a job will still look at the slot
    uint32_t dead  # no share is posted any more
    uint32_t gone  # the lane has ended and writes nothing any more
    # The oldest share that was given up and may still be under way: its number in the upper half,
    # the time in milliseconds in the lower half; or 0. It is one word, so that no thread sees the
    # number of one share with the time of another.
    uint64_t abandoned

cdef struct Share:  # what is posted: a range of a batch's pages, and where its memory is
    BatchState *batch
    uint32_t first
    uint32_t count
    bint inputs_shared  # workers read inputs in place, `inputs` bytes into the arena
    bint outputs_shared
    bint hashed  # the worker hashes each output
    uint64_t inputs
    uint64_t outputs

cdef enum PostOutcome:
    NOT_POSTED = 0
    POSTED = 1
    POSTED_AND_WOKE = 2

cdef uint32_t fitting(const RingState *ring, const Share *share) noexcept nogil
cdef int post(RingState *ring, const Share *share, uint32_t *sequence) noexcept nogil
cdef void give_up(RingState *ring, uint32_t sequence) noexcept nogil
cdef void let_go(RingState *ring, uint32_t sequence) noexcept nogil
cdef uint32_t sum_of_tables(
    const Descriptor *descriptor, const uint32_t *lengths, const uint32_t *rows
) noexcept nogil
cdef uint64_t first_sum(uint32_t sequence) noexcept nogil
cdef inline uint64_t add_result(uint64_t sum, uint32_t length, int32_t error) noexcept nogil:
    """Return a checksum of results, extended by one more result."""
    return bz_fold(sum, <uint64_t>length << 32 | <uint32_t>error)
cdef int64_t finished_pages(const RingState *ring, uint32_t sequence, uint32_t count) noexcept nogil
cdef uint32_t take(uint64_t *claim) noexcept nogil
cdef uint32_t cut(uint64_t *claim, uint32_t most) noexcept nogil
cdef bint is_finished(const RingState *ring, uint32_t sequence, uint32_t count) noexcept nogil
cdef bint is_ready(RingState *ring) noexcept nogil
cdef bint is_hung(RingState *ring, double patience_s) noexcept nogil
cdef bint is_honest(RingState *ring) noexcept nogil
cdef bint is_done(const RingState *ring, uint32_t sequence) noexcept nogil
cdef bint may_take(RingState *ring, uint32_t backlog) noexcept nogil
cdef void await_done(
    RingState *ring, uint32_t sequence, int64_t look_ns, int64_t until_ns
) noexcept nogil
cdef uint32_t forks() noexcept nogil


cdef class Ring:
    cdef RingState state
    cdef Py_buffer memory
    cdef void *own_memory
    cdef readonly int number
