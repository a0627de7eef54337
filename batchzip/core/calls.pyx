"""Calls: who uses a thing right now, so that it is closed by the last one out.

    with calls.enter() as thing: …         counted; refused once it is closed
    calls.close()                          refuses further ones; closes the thing now, or when the last call ends

A Call that is dropped has ended, whatever Python was doing: an interrupt before its `with` statement
began leaves nothing behind. Counting is done under the GIL, in steps that no Python code comes between.
"""

cimport cython
from libc.stdint cimport uint32_t

from batchzip.core.ring cimport forks

from batchzip.errors import ClosedError, ForkedProcess


@cython.final
cdef class Call:
    """One call under way."""

    cdef Calls calls

    def __enter__(self):
        return self.calls.thing

    def __exit__(self, *_) -> None:
        self._end()

    def __del__(self):
        self._end()

    cdef int _end(self) except -1:
        cdef Calls calls = self.calls
        self.calls = None
        if calls is not None:
            calls.under_way -= 1
            calls._close_if_unused()
        return 0


@cython.final
cdef class Calls:
    """The calls that use `thing`, which has a close(). `name` is what messages call it."""

    cdef object thing
    cdef str name
    cdef uint32_t under_way
    cdef uint32_t made_in
    cdef bint closed
    cdef bint closing

    def __cinit__(self, thing, str name not None):
        self.thing = thing
        self.name = name
        self.made_in = forks()

    def enter(self) -> Call:
        """Count a call. Raise ClosedError after `close`, and ForkedProcess in a child."""
        cdef Call call
        if self.made_in != forks():
            raise ForkedProcess(f"this {self.name} belongs to the process that made it")
        if self.closed:
            raise ClosedError(f"this {self.name} is closed")
        call = Call.__new__(Call)
        call.calls = self
        self.under_way += 1
        return call

    def close(self) -> None:
        """Have the thing closed as soon as no call uses it.

        In a child of the process that made it nothing is closed: it is the parent's. If closing it was
        cut short, a further call goes on with it.
        """
        if self.made_in != forks():
            return
        self.closed = True
        self._close_if_unused()

    cdef int _close_if_unused(self) except -1:
        if self.closed and not self.under_way and not self.closing and self.made_in == forks():
            self.closing = True
            try:
                self.thing.close()
            finally:
                self.closing = False
        return 0
