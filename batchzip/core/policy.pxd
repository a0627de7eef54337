from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef struct Policy:  # hints; concurrent threads of the owner may lose each other's updates
    uint64_t page_ns[2]  # time per page in one lane, by operation; 0 if not known yet
    uint64_t lost_ns  # time that a stream of batches lost because the caller did them alone
    uint64_t last_ns  # when the last batch ended
    uint32_t losses  # recent excess of divided batches that lost time over those that gained
    uint32_t skipped  # batches still to be done alone because of losses

cdef uint32_t lanes_worth(
    Policy *policy, int operation, uint32_t count, uint32_t awake, uint32_t asleep, int64_t now
) noexcept nogil
cdef uint32_t first_share(
    uint32_t count, uint32_t lanes, uint32_t most, bint staged
) noexcept nogil
cdef uint32_t piece(const Policy *policy, int operation, uint32_t left) noexcept nogil
cdef uint32_t spare(
    const Policy *policy, int operation, uint32_t mine, uint32_t most
) noexcept nogil
cdef void note_divided(
    Policy *policy, int operation, uint32_t count, int64_t took_ns
) noexcept nogil
cdef void note_pages(
    Policy *policy, int operation, uint64_t pages, uint64_t busy_ns, int64_t now
) noexcept nogil
