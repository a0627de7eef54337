"""Division: run a batch on the caller and the lanes together.

    positions of the batch ──▶ mine: the caller's own ──▶ done here, a piece at a time
                 │                  │ an idle lane gets up to half      ▲
                 └────────────▶ posted: a lane's share ── cut from its end, once nothing is mine
                                    │ done: collected
                                    └ its lane is gone: pages it had not begun become mine; the page
                                      it had begun goes to lanes only: it may have killed the lane

If two lanes die while they do the same page, the page gets -EOWNERDEAD (four deaths if it is
uncertain that they were at this page). It is never run in the owner. The claim word tells which
page a dead lane had begun (ring.pyx), so other pages are soon cleared of suspicion. The suspect is
then posted to another lane as a share of its own.

With `isolate`, lanes do all pages.

`run` advances a job. It returns to Python when only waiting is left, so that Ctrl-C works, and
slower code in Python can kill hung workers and enforce deadlines. Python code between two calls
cannot leave a job half changed, because each step is one call. When a job is dropped, it takes back
pages that no lane has begun, and waits for the rest: thread lanes, and workers that write to the
arena, still write to the caller's memory.

Invariant: each position is in exactly one of: mine, only_lanes, a posted share, done.

A job belongs to one thread at a time.
"""

cimport cython
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free

from batchzip.core.batch cimport (
    BatchState, Blocks, Packer, Pointers, accept_pages, fail_pages, run_pages,
)
from batchzip.core.coder cimport (
    ABORT, COMPRESS, DECOMPRESS, Coder, Coders, CoderState, Tally, raise_callback_error,
)
from batchzip.core.libraries cimport find_xxh3
from batchzip.core.memory cimport bz_calloc, bz_realloc
from batchzip.core.policy cimport (
    Policy, first_share, lanes_worth, note_divided, note_pages, piece, spare,
)
from batchzip.core.ring cimport (
    NOT_POSTED, POSTED_AND_WOKE, SLOTS, Ring, RingState, Share, RingSlot, await_done, cut,
    finished_pages, first_sum, fitting, forks, give_up, is_done, is_finished, is_honest, is_hung,
    is_ready, let_go, may_take, post,
)

from batchzip.core.ring import LOOK_NS
from batchzip.errors import ForkedProcess

cdef extern from "native.h" nogil:
    int EOWNERDEAD
    void bz_sleep_ns(int64_t)
    uint32_t bz_load32(const uint32_t *)
    void bz_store32(uint32_t *, uint32_t)
    uint64_t bz_load64(const uint64_t *)
    void bz_count(uint64_t *, uint64_t)
    int64_t bz_now_ns()

cpdef enum:  # results of Job.run
    DONE  # every page has a result
    WAITING  # only waiting is left, or the time is up
    LATE  # the deadline has passed
    GAVE_UP  # a codec raised an exception that ends the batch

cdef enum:
    MOMENT_NS = 20_000_000  # a shorter batch runs in one call, without supervision
    WAIT_NS = 2_000_000  # wait for a free lane, while pages must not be done here
    DROP_NS = 1_000_000_000  # wait for a worker that writes to the arena, when a job is dropped
    CERTAIN = 4  # weight of a death: the lane was at this page
    UNCERTAIN = 2  # weight of a death: the lane may have been at this page
    FATAL = 2 * CERTAIN  # total weight at which a page fails
    BACKLOG = 2  # shares that a worker has at a time

cdef double MOMENT_S = 0.05
"""Seconds after which `execute` returns an unfinished batch; an interrupt waits up to that long."""

NEGLECT_S = 30.0
"""Seconds that a lane may work on a share that was given up before the lane counts as hung."""

cdef int64_t _look_ns = LOOK_NS

cdef struct Span:
    uint32_t first
    uint32_t end

cdef struct Spans:
    Span *items
    uint32_t count
    uint32_t room

cdef struct Posted:
    RingState *ring
    uint32_t sequence
    uint32_t first
    uint32_t end  # positions from here on were taken back
    bint in_slot  # outputs are collected from the slot
    bint only_lanes
    uint64_t seen  # progress of the lane, when it was last checked
    int64_t since_ns  # time of its last progress

cdef struct JobState:
    BatchState *batch
    CoderState *coder  # NULL: the caller does no pages
    const CoderState *hasher
    Policy *policy
    RingState **rings  # of the lanes that the batch is shared with
    uint32_t ring_count
    Posted *posted
    uint32_t posted_count
    uint32_t posted_room
    Spans mine
    Spans only_lanes
    uint8_t *deaths  # by position: sum of CERTAIN and UNCERTAIN; NULL: no lane died
    Packer packer
    Share share  # the fields that all shares of the batch have in common
    bint generous  # for tests; see Divider
    uint32_t most  # pages per share
    int64_t deadline
    bint divided  # a share was posted
    bint woke  # a lane had to be woken
    bint distrusts  # a lane reported an impossible result
    bint gave_up  # a codec raised an exception that ends the batch
    uint64_t waits
    uint64_t wait_ns
    uint64_t fallbacks


# Spans.

cdef bint _push(JobState *job, Spans *spans, uint32_t first, uint32_t end) noexcept nogil:
    """Add positions [first, end). If there is no memory, fail these pages with -ENOMEM."""
    cdef Span *grown
    if first >= end:
        return True
    if spans.count == spans.room:
        grown = <Span *>bz_realloc(spans.items, (2 * spans.room + 8) * sizeof(Span))
        if grown is NULL:
            fail_pages(job.batch, first, end, -ENOMEM)
            return False
        spans.items = grown
        spans.room = 2 * spans.room + 8
    spans.items[spans.count].first = first
    spans.items[spans.count].end = end
    spans.count += 1
    return True


cdef uint32_t _total(const Spans *spans) noexcept nogil:
    cdef uint32_t at, total = 0
    for at in range(spans.count):
        total += spans.items[at].end - spans.items[at].first
    return total


# Lanes.

cdef bint _post(
    JobState *job, RingState *ring, uint32_t first, uint32_t *end, bint only_lanes
) noexcept nogil:
    """Post positions [first, end) to a lane, or as many as fit. Set `end` to the end of the share.

    Return whether a share was posted.
    """
    cdef Share share = job.share
    cdef Posted *posted
    cdef uint32_t sequence
    cdef int outcome
    share.first = first
    share.count = end[0] - first
    share.count = fitting(ring, &share)
    if job.posted_count == job.posted_room or not share.count:
        return False
    outcome = post(ring, &share, &sequence)
    if outcome == NOT_POSTED:
        return False
    job.woke |= outcome == POSTED_AND_WOKE
    end[0] = first + share.count
    posted = &job.posted[job.posted_count]
    job.posted_count += 1
    posted.ring = ring
    posted.sequence = sequence
    posted.first = first
    posted.end = end[0]
    posted.in_slot = not ring.is_thread and not share.outputs_shared
    posted.only_lanes = only_lanes
    posted.seen = 0
    posted.since_ns = bz_now_ns()
    job.divided = True
    return True


cdef void _feed(JobState *job) noexcept nogil:
    """Post shares to the lanes that can take more work."""
    cdef uint32_t at, mine
    cdef RingState *ring
    if not job.mine.count and not job.only_lanes.count:
        return
    for at in range(job.ring_count):
        ring = job.rings[at]
        if job.only_lanes.count and may_take(ring, 1 if job.deaths is not NULL else BACKLOG):
            _feed_only_lanes(job, ring)
        elif job.mine.count and may_take(ring, 1 if ring.is_thread else BACKLOG):
            mine = _total(&job.mine)
            _feed_spare(job, ring, spare(job.policy, job.batch.operation, mine, job.most))


cdef void _feed_spare(JobState *job, RingState *ring, uint32_t pages) noexcept nogil:
    """Post the caller's next pages to a lane. The caller keeps those behind, which are shorter."""
    cdef Span *span = &job.mine.items[job.mine.count - 1]
    cdef uint32_t end = span.first + min(pages, span.end - span.first)
    if end == span.first or not _post(job, ring, span.first, &end, False):
        return
    span.first = end
    if span.first == span.end:
        job.mine.count -= 1


cdef void _feed_only_lanes(JobState *job, RingState *ring) noexcept nogil:
    """Post pages to a lane that the caller must not do."""
    cdef Span *span = &job.only_lanes.items[job.only_lanes.count - 1]
    cdef uint32_t end = min(span.end, span.first + job.most)
    if not _post(job, ring, span.first, &end, True):
        return
    span.first = end
    if span.first == span.end:
        job.only_lanes.count -= 1


cdef void _collect(JobState *job) noexcept nogil:
    """Collect the shares that are done, and recover the shares of lanes that are gone."""
    cdef uint32_t at = 0
    cdef Posted *posted
    while at < job.posted_count:
        posted = &job.posted[at]
        if is_done(posted.ring, posted.sequence):
            _accept(job, posted)
        elif bz_load32(&posted.ring.gone):
            # Check again: the lane may have finished the share just before it ended.
            if is_done(posted.ring, posted.sequence):
                _accept(job, posted)
            else:
                _recover(job, posted)
        else:
            at += 1
            continue
        let_go(posted.ring, posted.sequence)
        job.posted_count -= 1
        job.posted[at] = job.posted[job.posted_count]


cdef void _accept(JobState *job, Posted *posted) noexcept nogil:
    """Take the results of a share that is done."""
    cdef uint32_t count = posted.end - posted.first
    if posted.ring.is_thread or not count:
        return
    if is_finished(posted.ring, posted.sequence, count) and _take_results(job, posted, count):
        return
    # A lane that reports an impossible result is replaced, and its pages are done again.
    bz_store32(&posted.ring.dead, 1)
    job.distrusts = True
    if job.coder is NULL:
        _suspect(job, posted.first, posted.end, CERTAIN)
    else:
        job.fallbacks += count
        _push(job, &job.mine, posted.first, posted.end)


cdef bint _take_results(JobState *job, const Posted *posted, uint32_t count) noexcept nogil:
    """Take the results of a share's first pages. Return whether all of them are possible.

    If one is impossible, take none.
    """
    cdef RingState *ring = posted.ring
    cdef RingSlot *slot = &ring.slots[posted.sequence % SLOTS]
    cdef size_t pitch = job.batch.page_size if job.batch.operation == DECOMPRESS else 0
    cdef uint64_t sum = first_sum(posted.sequence)
    if accept_pages(
        job.batch, &job.packer, posted.first, count,
        slot.outputs if posted.in_slot else NULL, ring.output_room, pitch, slot.dlens, slot.errors,
        slot.hashes if job.share.hashed else NULL, job.hasher, &sum,
    ) and sum == bz_load64(&slot.head.results):
        return True
    # The next outputs must not be packed after these, whose lengths are wrong.
    job.packer.position = 0
    fail_pages(job.batch, posted.first, posted.first + count, 0)
    return False


cdef void _recover(JobState *job, Posted *posted) noexcept nogil:
    """Recover the share of a lane that is gone: finished pages, the page it was at, and the rest.

    The claim word tells the number of pages it had begun, and the results the number of pages it
    had finished. One of the two is enough.
    """
    cdef uint32_t count = posted.end - posted.first
    cdef uint64_t claim = bz_load64(&posted.ring.slots[posted.sequence % SLOTS].head.claim)
    cdef uint32_t begun = <uint32_t>claim
    cdef int64_t finished = -1
    cdef bint told = begun <= count and claim >> 32 == count
    cdef int weight = CERTAIN
    if not posted.ring.is_thread:
        finished = finished_pages(posted.ring, posted.sequence, count)
    if not told or finished != begun and finished + 1 != begun:
        weight = UNCERTAIN
        if told:  # the results are damaged, or the lane had not opened the share yet
            finished = -1
        elif finished >= 0:
            begun = min(<uint32_t>finished + 1, count)
    if finished > 0 and not _take_results(job, posted, <uint32_t>finished):
        finished = -1
        weight = UNCERTAIN
    if not told and finished < 0:
        _suspect(job, posted.first, posted.end, weight)
        return
    if job.coder is NULL or posted.only_lanes:
        _push(job, &job.only_lanes, posted.first + begun, posted.end)
    else:
        job.fallbacks += count - begun
        _push(job, &job.mine, posted.first + begun, posted.end)
    if finished < 0 and begun:
        finished = begun - 1
        _push(job, &job.only_lanes, posted.first, posted.first + begun - 1)
    if finished >= 0:
        _suspect(job, posted.first + <uint32_t>finished, posted.first + begun, weight)


cdef void _suspect(JobState *job, uint32_t first, uint32_t end, int weight) noexcept nogil:
    """Record that each of these pages may have killed a lane, and queue each as a share of its own.

    `weight` is CERTAIN if the lane was at that page, otherwise UNCERTAIN. Pages that reach FATAL
    get -EOWNERDEAD.
    """
    cdef uint32_t position
    if first == end:
        return
    if job.deaths is NULL:
        job.deaths = <uint8_t *>bz_calloc(job.batch.count, 1)
        if job.deaths is NULL:
            fail_pages(job.batch, first, end, -ENOMEM)
            return
    for position in range(first, end):
        job.deaths[position] += weight
        if job.deaths[position] >= FATAL:
            fail_pages(job.batch, position, position + 1, -EOWNERDEAD)
        else:
            _push(job, &job.only_lanes, position, position + 1)


# The caller.

cdef bint _take_own(JobState *job, uint32_t *first, uint32_t *end) noexcept nogil:
    """Take the caller's next pages. Return False if only waiting is left."""
    cdef Span *span
    if job.mine.count:
        span = &job.mine.items[job.mine.count - 1]
        first[0] = span.first
        end[0] = span.first + piece(job.policy, job.batch.operation, span.end - span.first)
        span.first = end[0]
        if span.first == span.end:
            job.mine.count -= 1
        return True
    return not job.generous and _take_back(job, first, end)


cdef bint _take_back(JobState *job, uint32_t *first, uint32_t *end) noexcept nogil:
    """Take back pages from the posted share with the most pages left. Return whether any were."""
    cdef uint32_t at, left, most = 0, best = 0, taken
    cdef uint64_t claim
    cdef Posted *posted
    while True:
        most = 0
        for at in range(job.posted_count):
            posted = &job.posted[at]
            if posted.only_lanes:
                continue
            claim = bz_load64(&posted.ring.slots[posted.sequence % SLOTS].head.claim)
            left = <uint32_t>(claim >> 32) - <uint32_t>claim
            # Nothing is taken back on the word of a damaged claim.
            if <uint32_t>(claim >> 32) != posted.end - posted.first:
                continue
            if <uint32_t>claim > (claim >> 32):
                continue
            if left > most:
                most = left
                best = at
        if not most:
            return False
        posted = &job.posted[best]
        taken = cut(
            &posted.ring.slots[posted.sequence % SLOTS].head.claim,
            piece(job.policy, job.batch.operation, max(<uint32_t>1, most // 2)),
        )
        if not taken or taken > posted.end - posted.first:
            continue
        posted.end -= taken
        first[0] = posted.end
        end[0] = posted.end + taken
        if posted.first == posted.end:  # the lane never began it, and will find no pages in it
            give_up(posted.ring, posted.sequence)
            job.posted_count -= 1
            job.posted[best] = job.posted[job.posted_count]
        return True


cdef int _run(JobState *job, int64_t until, bint may_wait) noexcept nogil:
    """Work until a time. When only waiting is left, wait until then if `may_wait` is set."""
    cdef uint32_t first = 0, end = 0
    cdef int64_t now, limit
    if job.coder is not NULL and job.coder.gave_up:
        return GAVE_UP
    while True:
        if job.gave_up:
            return GAVE_UP
        now = bz_now_ns()
        if job.deadline >= 0 and now >= job.deadline:
            return LATE
        if job.posted_count:
            _collect(job)
        if job.distrusts:
            return WAITING
        if job.ring_count:
            _feed(job)
        if job.coder is not NULL and now < until and _take_own(job, &first, &end):
            job.gave_up = run_pages(job.batch, job.coder, &job.packer, first, end) == ABORT
            continue
        if not job.posted_count and not job.only_lanes.count:
            return WAITING if job.mine.count else DONE
        now = bz_now_ns()
        if now >= until or not may_wait:
            return WAITING
        limit = until if job.deadline < 0 else min(until, job.deadline)
        if job.posted_count:
            await_done(job.posted[0].ring, job.posted[0].sequence, _look_ns, limit)
        else:
            bz_sleep_ns(min(<int64_t>WAIT_NS, limit - now))
        job.waits += 1
        job.wait_ns += bz_now_ns() - now


cdef void _withdraw(JobState *job) noexcept nogil:
    """Take back every page that no lane has begun, and drop these pages."""
    cdef uint32_t at = 0, taken
    cdef Posted *posted
    job.mine.count = 0
    job.only_lanes.count = 0
    while at < job.posted_count:
        posted = &job.posted[at]
        taken = cut(
            &posted.ring.slots[posted.sequence % SLOTS].head.claim, posted.end - posted.first
        )
        posted.end -= min(taken, posted.end - posted.first)
        # A worker that writes to its slot does no harm. A lane that writes to the caller's memory
        # must be waited for.
        if posted.first < posted.end and not posted.in_slot:
            at += 1
            continue
        give_up(posted.ring, posted.sequence)
        job.posted_count -= 1
        job.posted[at] = job.posted[job.posted_count]


cdef void _await_rest(JobState *job, int64_t until) noexcept nogil:
    """Wait until no lane writes to the caller's memory any more, or until a time."""
    while job.posted_count:
        _collect(job)
        if not job.posted_count or bz_now_ns() >= until:
            break
        await_done(job.posted[0].ring, job.posted[0].sequence, 0, until)
    job.mine.count = 0
    job.only_lanes.count = 0


cdef void _leave_rest(JobState *job) noexcept nogil:
    """Give up the shares still under way. A lane that never finishes one counts as hung."""
    cdef uint32_t at
    for at in range(job.posted_count):
        give_up(job.posted[at].ring, job.posted[at].sequence)
    job.posted_count = 0


cdef bint _is_to_be_killed(RingState *ring, double patience_s) noexcept nogil:
    """Return whether a lane reported an impossible result, or hangs at an abandoned share."""
    if bz_load32(&ring.dead):
        return not bz_load32(&ring.gone)
    return is_hung(ring, patience_s)


cdef class Job


cdef class Divider:
    """The state that the batches of one engine share. Thread-safe.

    `coders`    the coders of the engine's codec.
    `blocks`    the arrays of this process that lie in memory shared with workers.
    `isolate`   whether callers do no pages.
    `eager`     whether lanes get all pages of a started batch, because its caller has other work
                before it calls `run`.
    `generous`  for tests: divide every batch between all lanes, and let callers take nothing back.
    `verify`    whether workers hash verified outputs. The owner compares the hash of what arrives.
    """

    cdef Coders coders
    cdef Blocks blocks
    cdef Policy policy
    cdef CoderState hasher
    cdef bint isolate
    cdef bint eager
    cdef bint verify
    cdef public bint generous
    cdef bint neglected  # a lane has worked too long on a share that was given up
    cdef uint32_t made_in

    def __init__(
        self, Coders coders not None, Blocks blocks=None, *, bint isolate=False, bint eager=False,
        bint verify=False,
    ):
        self.coders = coders
        self.blocks = blocks
        self.isolate = isolate
        self.eager = eager
        self.verify = verify
        self.hasher.xxh3 = find_xxh3()
        self.made_in = forks()

    def execute(self, Pointers batch not None, tuple rings not None) -> Job | None:
        """Run a batch, with the lanes of these rings if that pays.

        Return None if it is done, or the job if it takes longer than 50 ms.
        """
        self.refuse_in_child()
        cdef int64_t now = bz_now_ns()
        cdef uint32_t lanes = self.lanes_for(batch, rings, now)
        if not lanes and not self.isolate and not self.neglected and self.is_short(batch):
            self.run_alone(batch, now)
            return None
        cdef Job job = Job.__new__(Job)
        job.begin(self, batch, rings, lanes, -1)
        return None if job.run(MOMENT_S) == DONE else job

    def start(self, Pointers batch not None, tuple rings not None, int64_t deadline=-1) -> Job:
        """Begin a batch as `execute` does. The caller does no page before `Job.run`.

        `deadline` is in nanoseconds of the monotonic clock; −1: there is none.
        """
        self.refuse_in_child()
        cdef Job job = Job.__new__(Job)
        job.begin(self, batch, rings, self.lanes_for(batch, rings, bz_now_ns()), deadline)
        return job

    cdef refuse_in_child(self):
        if self.made_in != forks():
            raise ForkedProcess("this engine belongs to the process that forked this one")

    cpdef bint is_crowded(self, uint32_t lanes) noexcept:
        """Return whether more calls are at work than there are lanes: no CPU is idle then."""
        return not self.generous and self.coders.count_used() > lanes

    cdef bint is_short(self, Pointers batch) noexcept:
        """Return whether a batch is too short to need supervision while it runs."""
        cdef uint64_t page_ns = self.policy.page_ns[batch.state.operation]
        return page_ns and page_ns * batch.state.count < MOMENT_NS

    cdef uint32_t lanes_for(self, Pointers batch, tuple rings, int64_t now) noexcept:
        """Return the number of lanes to share a batch with."""
        cdef uint32_t awake = 0, asleep = 0
        cdef double patience_s = NEGLECT_S
        cdef Ring ring
        self.neglected = False
        if self.isolate:
            return len(rings)
        if batch.state.count < 2:
            return 0
        if self.eager and not self.generous and not self.policy.page_ns[batch.state.operation]:
            return 0  # the caller measures the time of a page first
        if self.generous:
            return min(<uint32_t>len(rings), batch.state.count - 1)
        if self.is_crowded(len(rings)):
            return 0
        for ring in rings:
            self.neglected |= is_hung(&ring.state, patience_s)
            if may_take(&ring.state, SLOTS):
                if bz_load32(&ring.state.control.asleep):
                    asleep += 1
                else:
                    awake += 1
        return lanes_worth(
            &self.policy, batch.state.operation, batch.state.count, awake, asleep, now
        )

    cdef run_alone(self, Pointers batch, int64_t now):
        """Run a batch in the calling thread alone."""
        batch.run(self.coders)
        cdef int64_t end = bz_now_ns()
        note_pages(&self.policy, batch.state.operation, batch.state.count, end - now, end)


@cython.no_gc_clear
cdef class Job:
    """One batch under way, made by `Divider.execute` or `Divider.start`."""

    cdef JobState state
    cdef Divider divider
    cdef Pointers batch
    cdef Coder coder
    cdef list rings
    cdef bint ended
    cdef object error  # the exception of a codec that ended the batch
    cdef int64_t begun_ns
    cdef int64_t ran_ns  # time that the caller spent in `run`
    cdef uint64_t pages_before
    cdef uint64_t busy_before

    cdef begin(
        self, Divider divider, Pointers batch, tuple rings, uint32_t lanes, int64_t deadline
    ):
        cdef JobState *state = &self.state
        cdef Tally *tally
        cdef int64_t place
        batch.begin()
        self.divider = divider
        self.batch = batch
        self.rings = []
        state.batch = &batch.state
        state.policy = &divider.policy
        state.hasher = &divider.hasher
        state.deadline = deadline
        state.share.batch = state.batch
        if divider.blocks is not None:
            place = divider.blocks.inputs_of(batch)
            state.share.inputs_shared = place >= 0
            state.share.inputs = max(<int64_t>0, place)
            place = divider.blocks.outputs_of(batch)
            state.share.outputs_shared = place >= 0
            state.share.outputs = max(<int64_t>0, place)
        state.share.hashed = divider.verify and batch.state.operation == COMPRESS
        state.packer.position = 0
        self.begun_ns = bz_now_ns()
        if not divider.isolate:
            self.coder = divider.coders.take()
            state.coder = &self.coder.state
            tally = &self.coder.state.tallies[batch.state.operation]
            self.pages_before = tally.pages
            self.busy_before = tally.busy_ns
        self._divide(rings, lanes)

    cdef _divide(self, tuple rings, uint32_t lanes):
        cdef JobState *state = &self.state
        cdef uint32_t count = state.batch.count, at, end, first
        cdef double patience_s = NEGLECT_S
        cdef bint staged
        cdef Ring ring
        for ring in rings:
            if not is_honest(&ring.state):
                bz_store32(&ring.state.dead, 1)
            if _is_to_be_killed(&ring.state, patience_s):
                self.rings.append(ring)
                state.distrusts = True
        state.generous = self.divider.generous
        if self.divider.isolate:
            # Lanes may still be starting. `set_rings` adds them later.
            self.batch.sort()
            self.use(rings, lanes)
            state.most = max(1, count // max(<uint32_t>1, lanes))
            _push(state, &state.only_lanes, 0, count)
            return
        if not lanes:
            _push(state, &state.mine, 0, count)
            return
        self.batch.sort()
        self.use(rings, lanes)
        staged = not state.share.outputs_shared or not (
            state.share.inputs_shared or state.batch.operation == DECOMPRESS
        )
        ring = self.rings[0]
        staged = staged and not ring.state.is_thread
        state.most = first_share(count, lanes, count, staged)
        if self.divider.eager:
            state.most = (count + lanes - 1) // lanes
        first = 0
        for at in range(state.ring_count):
            end = min(first + state.most, count)
            if end > first and _post(state, state.rings[at], first, &end, False):
                first = end
        _push(state, &state.mine, first, count)

    cdef use(self, tuple rings, uint32_t lanes):
        """Replace the rings from now on. Rings of lanes that are awake come first."""
        cdef JobState *state = &self.state
        cdef Ring ring
        cdef bint sleepers
        cdef RingState **found = <RingState **>bz_realloc(
            state.rings, len(rings) * sizeof(void *) + 1
        )
        cdef Posted *posted = <Posted *>bz_realloc(
            state.posted, (state.posted_count + len(rings) * SLOTS + 1) * sizeof(Posted)
        )
        if found is not NULL:
            state.rings = found
        if posted is not NULL:
            state.posted = posted
        if found is NULL or posted is NULL:
            raise MemoryError("no memory to divide a batch")
        state.posted_room = state.posted_count + len(rings) * SLOTS
        # Keep the old rings, whose memory posted shares still use.
        if self.rings:
            self.rings.extend(ring for ring in rings if ring not in self.rings)
        else:
            self.rings = list(rings)
        state.ring_count = 0
        for sleepers in range(2):
            for ring in rings:
                if state.ring_count == lanes or not is_ready(&ring.state):
                    continue
                if bz_load32(&ring.state.dead):
                    continue
                if (bz_load32(&ring.state.control.asleep) != 0) == sleepers:
                    state.rings[state.ring_count] = &ring.state
                    state.ring_count += 1

    def run(self, double seconds=0.05, *, bint may_wait=True) -> int:
        """Work for at most `seconds`. Return DONE, WAITING, LATE or GAVE_UP.

        When only waiting for lanes is left, wait if `may_wait` is set.
        """
        cdef int64_t begun, until
        cdef int status
        if self.ended:
            return DONE
        with nogil:
            begun = bz_now_ns()
            until = begun + <int64_t>(seconds * 1e9)
            status = _run(&self.state, until, may_wait)
            self.ran_ns += bz_now_ns() - begun
        if status == DONE:
            self.end()
        return status

    @property
    def only_lanes(self) -> int:
        """The number of pages that wait for a lane, because the caller must not do them."""
        return _total(&self.state.only_lanes)

    @property
    def mine(self) -> int:
        """The number of pages left to the caller."""
        return _total(&self.state.mine)

    def set_rings(self, tuple rings) -> None:
        """Replace the rings from now on."""
        if self.state.ring_count == len(rings) and all(ring in self.rings for ring in rings):
            return
        self.use(rings, len(rings))

    def untrusted(self, double patience_s) -> list[Ring]:
        """Return the rings whose lanes must be killed.

        These lanes reported impossible results. Or they have had pages of this batch, or a share
        that was given up, for `patience_s` seconds without finishing a page.
        """
        cdef int64_t now = bz_now_ns(), patience = <int64_t>(patience_s * 1e9)
        cdef uint32_t at
        cdef Posted *posted
        cdef Ring ring
        cdef uint64_t claim
        self.state.distrusts = False
        for ring in self.rings:
            if not is_honest(&ring.state):
                bz_store32(&ring.state.dead, 1)
        found = [
            ring for ring in self.rings if _is_to_be_killed(&(<Ring>ring).state, patience_s)
        ]
        for at in range(self.state.posted_count):
            posted = &self.state.posted[at]
            if not is_ready(posted.ring):
                posted.since_ns = now  # the lane's starter watches its start
                continue
            claim = bz_load64(&posted.ring.slots[posted.sequence % SLOTS].head.claim)
            claim = <uint32_t>claim + (<uint64_t>bz_load32(&posted.ring.control.done) << 32) + 1
            if claim != posted.seen:
                posted.seen = claim
                posted.since_ns = now
            elif now - posted.since_ns >= patience:
                found.append(self.ring_of(posted))
        return list(dict.fromkeys(found))

    def holders(self) -> list[Ring]:
        """Return the rings of the lanes that have pages of this batch."""
        cdef uint32_t at
        found = []
        for at in range(self.state.posted_count):
            found.append(self.ring_of(&self.state.posted[at]))
        return list(dict.fromkeys(found))

    cdef Ring ring_of(self, const Posted *posted):
        cdef Ring ring
        for ring in self.rings:
            if &ring.state == posted.ring:
                return ring

    def fail_only_lanes(self, int code) -> None:
        """Fail the pages that wait for a lane with the negative errno `code`."""
        cdef uint32_t at
        for at in range(self.state.only_lanes.count):
            fail_pages(
                self.state.batch, self.state.only_lanes.items[at].first,
                self.state.only_lanes.items[at].end, code,
            )
        self.state.only_lanes.count = 0

    def withdraw(self, double wait_s, code=None) -> bool:
        """Take back pages that no lane has begun, and wait for lanes that write to caller's memory.

        Pages without a result get the negative errno `code`. Return whether the job has ended.
        After `wait_s` seconds, return False.
        """
        cdef JobState *state = &self.state
        cdef int64_t until
        if self.ended:
            return True
        with nogil:
            _withdraw(state)
            until = bz_now_ns() + <int64_t>(wait_s * 1e9)
            _await_rest(state, until)
        if state.posted_count:
            return False
        if code is not None:
            self.batch.fail_undone(code)
        self.end()
        return True

    def raise_error(self) -> None:
        """Raise the exception of a codec that ended the batch, once the job has ended."""
        if self.error is not None:
            raise self.error

    cdef void end(self):
        """Count the batch and give the coder back."""
        cdef JobState *state = &self.state
        cdef int operation = self.batch.state.operation
        cdef Coders coders = self.divider.coders
        cdef Tally *tally
        cdef int64_t now, took_ns
        if self.ended:
            return
        self.ended = True
        if self.coder is not None:
            tally = &self.coder.state.tallies[operation]
            now = bz_now_ns()
            note_pages(
                state.policy, operation, tally.pages - self.pages_before,
                tally.busy_ns - self.busy_before, now,
            )
            # The policy knows the cost of waking a lane. Such a batch says nothing about lanes that
            # are awake.
            if state.divided and not state.woke and not state.generous:
                took_ns = self.ran_ns if self.divider.eager else now - self.begun_ns
                note_divided(state.policy, operation, state.batch.count, took_ns)
            try:
                raise_callback_error(state.coder)
            except BaseException as error:
                self.error = error
            state.coder = NULL
            coders.give(self.coder)
        coders.tallies[operation].batches += 1
        coders.tallies[operation].divided += state.divided
        coders.tallies[operation].waits += state.waits
        coders.tallies[operation].wait_ns += state.wait_ns
        coders.tallies[operation].fallbacks += state.fallbacks
        self.batch.finish()
        if self.batch.failed:
            coders.count_errors(
                operation, self.batch.state.errors, self.batch.state.count
            )

    def __dealloc__(self):
        cdef JobState *state = &self.state
        if self.divider is not None and not self.ended and self.divider.made_in == forks():
            with nogil:
                _withdraw(state)
                while state.posted_count and state.posted[0].ring.is_thread:
                    _await_rest(state, bz_now_ns() + DROP_NS)
                _await_rest(state, bz_now_ns() + DROP_NS)
                _leave_rest(state)
            self.end()
        free(state.rings)
        free(state.posted)
        free(state.mine.items)
        free(state.only_lanes.items)
        free(state.deaths)
