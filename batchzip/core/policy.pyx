"""Policy: when and how a batch is divided between the caller and the lanes.

    alone     the batch has one page, or so little work that a hand-over costs more than it gains,
              or more callers are at work than there are lanes
    divided   each lane that pays gets a share, and the caller keeps one; later, whoever is done
              gets more: the caller takes pages back from the ends of the lanes' shares, and gives
              an idle lane half of its own remainder

Shares are even at first. Nothing more is planned: taking pages back costs one compare-and-swap, so
a share that is too large does no harm, and a lane that never wakes up costs nothing. Pages staged
in a worker's slot are different, because a page taken back was copied in vain. Such shares are
smaller.

Sleeping lanes. One small batch does not pay for a wake-up. A stream of them does, because the lanes
stay awake from one batch to the next. The policy adds up the time that the batches of a stream lose
because the caller does them alone. When the sum reaches the price of a wake-up, it wakes the lanes.
That costs at most twice as much as knowing the future would (the ski rental problem).

Busy machines. A lane that loses its CPU in the middle of a page delays the whole batch. A divided
batch is a loss if it took longer than the caller would have taken alone. After a loss, some batches
are done alone: twice as many with each further loss. Gains make up for losses.

The time per page is measured in the caller's own share. Rejected: measuring both ways of doing a
batch repeatedly. It needed figures for each batch size, and trials that cost time.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef extern from "native.h" nogil:
    uint64_t bz_read_figure(const uint64_t *)
    void bz_set_figure(uint64_t *, uint64_t)

cdef enum:
    UNKNOWN_PAGE_NS = 2_000
    HAND_OVER_NS = 1_000  # to a lane that polls: the caller's part and the latency
    WAKE_NS = 20_000  # the caller's system call and the delay it causes
    STREAM_NS = 300_000  # batches that follow each other within this time are a stream
    PIECE_NS = 12_000  # the caller's work between two looks at the lanes
    MOST_PIECE = 64
    MOST_LOSSES = 20  # in halves: at most 2^10 batches are done alone


cdef uint32_t lanes_worth(
    Policy *policy, int operation, uint32_t count, uint32_t awake, uint32_t asleep, int64_t now
) noexcept nogil:
    """Return the number of lanes, awake or asleep, that share a batch of `count` pages."""
    cdef int64_t page_ns = bz_read_figure(&policy.page_ns[operation]) or UNKNOWN_PAGE_NS
    cdef int64_t work_ns = page_ns * count
    cdef uint64_t lost_ns
    cdef uint32_t lanes, most
    if count < 2:
        return 0
    if policy.skipped:
        policy.skipped -= 1
        return 0
    # Each lane needs at least one page, and enough work to pay for its hand-over.
    most = <uint32_t>min(<int64_t>(count - 1), work_ns // (2 * HAND_OVER_NS))
    lanes = min(awake, most)
    if asleep and lanes < most:
        lost_ns = bz_read_figure(&policy.lost_ns)
        if now - <int64_t>bz_read_figure(&policy.last_ns) > STREAM_NS:
            lost_ns = 0
        lost_ns += work_ns // (lanes + 1) - work_ns // (lanes + 2)
        bz_set_figure(&policy.lost_ns, lost_ns if lost_ns < WAKE_NS else 0)
        if lost_ns >= WAKE_NS:
            most = min(most, lanes + asleep)
            lanes += 1
            # Each further lane has to save this batch as much time as waking it costs.
            while lanes < most and work_ns // (lanes * (lanes + 1)) > WAKE_NS // 4:
                lanes += 1
    return lanes


cdef uint32_t first_share(
    uint32_t count, uint32_t lanes, uint32_t most, bint staged
) noexcept nogil:
    """Return the number of pages, at most `most`, in each lane's first share of a batch."""
    cdef uint32_t even = count // (lanes + 1)
    if staged and even > 8:
        even = max(8, even // 2)
    return max(1, min(even, most))


cdef uint32_t piece(const Policy *policy, int operation, uint32_t left) noexcept nogil:
    """Return the number of pages that the caller does before it looks at the lanes again."""
    cdef uint64_t page_ns = bz_read_figure(&policy.page_ns[operation]) or UNKNOWN_PAGE_NS
    return min(left, max(1, min(MOST_PIECE, PIECE_NS // page_ns)))


cdef uint32_t spare(
    const Policy *policy, int operation, uint32_t mine, uint32_t most
) noexcept nogil:
    """Return the number of pages that the caller, with `mine` left, gives to an idle lane."""
    cdef uint64_t page_ns = bz_read_figure(&policy.page_ns[operation]) or UNKNOWN_PAGE_NS
    if mine < 2 or mine * page_ns < 4 * HAND_OVER_NS:
        return 0
    return min(mine // 2, most)


cdef void note_divided(
    Policy *policy, int operation, uint32_t count, int64_t took_ns
) noexcept nogil:
    """Record the time that a divided batch took, and update the losses."""
    if took_ns <= <int64_t>(policy.page_ns[operation] * count):
        policy.losses -= policy.losses > 0
    else:
        policy.losses = min(policy.losses + 2, <uint32_t>MOST_LOSSES)
        policy.skipped = (1 << policy.losses // 2) - 1


cdef void note_pages(
    Policy *policy, int operation, uint64_t pages, uint64_t busy_ns, int64_t now
) noexcept nogil:
    """Record the time per page of the caller's own share, averaged over about eight batches."""
    cdef uint64_t known = bz_read_figure(&policy.page_ns[operation]), seen
    bz_set_figure(&policy.last_ns, now)
    if not pages:
        return
    seen = busy_ns // pages
    if known:
        # Limit outliers: a caller that lost its CPU for a while says nothing about pages.
        seen = (7 * known + min(seen, 3 * known)) // 8
    bz_set_figure(&policy.page_ns[operation], max(<uint64_t>1, seen))
