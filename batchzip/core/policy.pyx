"""How a batch is divided between the caller and the lanes, and when it is not.

    alone     one page, or so little work that a hand-over costs more than it brings, or as many callers
              at work as there are lanes and CPUs for
    divided   every lane that pays gets a share, the caller keeps one, and from then on whoever is done
              gets more: the caller takes pages back from the ends of the lanes' shares, and gives an
              idle lane half of what it still has

Shares are even at first. Nothing more is planned: taking pages back costs a compare-and-swap, so a
share that turns out too large is no harm, and a lane that never wakes up costs nothing. What is staged
in a worker's slot is different, as a page taken back was copied in vain: such shares are smaller.

Sleeping lanes. One small batch does not pay for a wake-up; a stream of them does, as the lanes stay
awake from one to the next. What the batches of a stream lose by being done alone is added up, and
when it has reached the price of a wake-up, the lanes are woken. That costs at most twice what knowing
the future would (renting until the rent has paid for buying).

Busy machines. A lane that loses its CPU in the middle of a page keeps the whole batch waiting. A divided
batch that took longer than its pages would have taken alone is a loss; after losses, some batches are
done alone, twice as many with each loss, and wins make up for losses.

What a page takes is measured where the caller does its own share. Rejected: timing both ways of doing
a batch, again and again. It needed figures for each size of batch, and trials that cost time.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef extern from "native.h" nogil:
    uint64_t bz_read_figure(const uint64_t *)
    void bz_set_figure(uint64_t *, uint64_t)

cdef enum:
    UNKNOWN_PAGE_NS = 2_000
    HAND_OVER_NS = 1_000  # to a lane that looks: the caller's part and the way there
    WAKE_NS = 20_000  # the caller's system call, and what it is delayed by
    STREAM_NS = 300_000  # batches that follow within this time are a stream
    PIECE_NS = 12_000  # of the caller's work between two looks at the lanes
    MOST_PIECE = 64
    MOST_LOSSES = 20  # in halves: 2^10 batches are done alone at most


cdef uint32_t lanes_worth(
    Policy *policy, int operation, uint32_t count, uint32_t awake, uint32_t asleep, int64_t now
) noexcept nogil:
    """Return how many lanes, of those awake and asleep, a batch of `count` pages is shared with."""
    cdef int64_t page_ns = bz_read_figure(&policy.page_ns[operation]) or UNKNOWN_PAGE_NS
    cdef int64_t work_ns = page_ns * count
    cdef uint64_t lost_ns
    cdef uint32_t lanes, most
    if count < 2:
        return 0
    if policy.skipped:
        policy.skipped -= 1
        return 0
    # Each lane needs a page, and enough work to be worth its hand-over.
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
            # Each further one has to save this batch what waking it costs.
            while lanes < most and work_ns // (lanes * (lanes + 1)) > WAKE_NS // 4:
                lanes += 1
    return lanes


cdef uint32_t first_share(uint32_t count, uint32_t lanes, uint32_t most, bint staged) noexcept nogil:
    """Return the pages of each lane's first share of a batch, of at most `most`."""
    cdef uint32_t even = count // (lanes + 1)
    if staged and even > 8:
        even = max(8, even // 2)
    return max(1, min(even, most))


cdef uint32_t piece(const Policy *policy, int operation, uint32_t left) noexcept nogil:
    """Return the pages that the caller does before it looks at the lanes again."""
    cdef uint64_t page_ns = bz_read_figure(&policy.page_ns[operation]) or UNKNOWN_PAGE_NS
    return min(left, max(1, min(MOST_PIECE, PIECE_NS // page_ns)))


cdef uint32_t spare(const Policy *policy, int operation, uint32_t mine, uint32_t most) noexcept nogil:
    """Return the pages that the caller, who has `mine` left, gives to an idle lane."""
    cdef uint64_t page_ns = bz_read_figure(&policy.page_ns[operation]) or UNKNOWN_PAGE_NS
    if mine < 2 or mine * page_ns < 4 * HAND_OVER_NS:
        return 0
    return min(mine // 2, most)


cdef void note_divided(Policy *policy, int operation, uint32_t count, int64_t took_ns) noexcept nogil:
    """Note what a batch took that was divided, and draw conclusions for the next ones."""
    if took_ns <= <int64_t>(policy.page_ns[operation] * count):
        policy.losses -= policy.losses > 0
    else:
        policy.losses = min(policy.losses + 2, <uint32_t>MOST_LOSSES)
        policy.skipped = (1 << policy.losses // 2) - 1


cdef void note_pages(
    Policy *policy, int operation, uint64_t pages, uint64_t busy_ns, int64_t now
) noexcept nogil:
    """Note what the caller's own pages took; about the last eight batches count."""
    cdef uint64_t known = bz_read_figure(&policy.page_ns[operation]), seen
    bz_set_figure(&policy.last_ns, now)
    if not pages:
        return
    seen = busy_ns // pages
    if known:
        # A caller that lost its CPU for a while says nothing about pages.
        seen = (7 * known + min(seen, 3 * known)) // 8
    bz_set_figure(&policy.page_ns[operation], max(<uint64_t>1, seen))
