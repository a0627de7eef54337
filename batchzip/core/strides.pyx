"""Strides: predict the pages that a program will touch next from its faults so far.

    fault at 8, 9           the next ones are 10, 11, …       stride 1
    fault at 8, 24, 40      56, 72, …                         stride 16: a column of a matrix
    fault at 8, 7           6, 5, …                           stride −1

A stream is a sequence of faults at equal distances. Its window is the set of pages restored at one
fault. The window doubles each time the program reaches its end. Two adjacent faults make a stream
at once; any other distance has to occur twice. Kernel counterpart: ondemand_readahead() and swap's
VMA readahead, which support stride 1 only.

The caller serialises calls.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef enum:
    FIRST_WINDOW = 4
    NEAR = 64  # in pages; a fault further away belongs to another stream


cdef inline bint _is_ahead(const Stream *stream, uint64_t page) noexcept nogil:
    """Return whether a page is among those being restored ahead."""
    cdef int64_t distance = <int64_t>(page - stream.last)
    if not stream.stride or distance % stream.stride:
        return False
    return 0 < distance // stream.stride < stream.window


cdef uint32_t strides_fault(
    StridesState *strides, uint64_t page, uint32_t most, int64_t *stride
) noexcept nogil:
    """Record a fault. Return the number of pages to restore from this one on, `stride` apart.

    1 means this page alone.
    """
    cdef Stream *stream
    cdef Stream *found = NULL
    cdef Stream *oldest = &strides.streams[0]
    cdef int64_t delta, nearest = NEAR + 1
    cdef uint32_t number
    strides.faults += 1
    stride[0] = 1
    for number in range(STREAMS):
        stream = &strides.streams[number]
        if stream.used < oldest.used:
            oldest = stream
        if not stream.used:
            continue
        if stream.stride and page == stream.next:
            strides.hits += stream.window - 1
            stream.used = strides.faults
            stream.window = min(most, max(2 * stream.window, <uint32_t>FIRST_WINDOW))
            stream.last = page
            stream.next = page + stream.stride * <int64_t>stream.window
            stride[0] = stream.stride
            return stream.window
        if _is_ahead(stream, page):  # the program is faster than readahead
            stream.used = strides.faults
            stride[0] = stream.stride
            return <uint32_t>(<int64_t>(stream.next - page) // stream.stride)
        delta = <int64_t>(page - stream.last)
        if -nearest < delta < nearest and delta:
            nearest = delta if delta > 0 else -delta
            found = stream
    if found is NULL:
        oldest.last = page
        oldest.stride = oldest.delta = 0
        oldest.window = 1
        oldest.used = strides.faults
        return 1
    delta = <int64_t>(page - found.last)
    found.used = strides.faults
    found.last = page
    found.window = 1
    found.stride = delta if delta == found.delta or delta == 1 or delta == -1 else 0
    found.delta = delta
    if not found.stride:
        return 1
    found.window = min(most, <uint32_t>FIRST_WINDOW)
    found.next = page + delta * <int64_t>found.window
    stride[0] = delta
    return found.window


cdef class Strides:
    """An interface to strides_fault() for tests."""

    cdef StridesState state

    def fault(self, uint64_t page, uint32_t most) -> tuple:
        """Record a fault at a page. Return the number of pages to restore and their stride.

        The number is at most `most`.
        """
        cdef int64_t stride
        count = strides_fault(&self.state, page, most, &stride)
        return count, stride
