"""Calls: count the calls that use an object, so that the last of them closes it.

    with calls.enter() as thing: …    counts a call; refused after close()
    calls.close()                     refuses further calls; closes the thing now, or when the
                                      last call ends

A Call also ends when it is dropped. An interrupt before its `with` statement begins therefore
leaves nothing behind. The GIL protects the list of calls: no Python code runs in the middle of a
change.
"""

cimport cython
from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport uint32_t

from batchzip.core.ring cimport forks

from batchzip.errors import ClosedError, ForkedProcess


cdef struct Node:  # of the doubly linked list of calls under way
    Node *before
    Node *after
    long thread


@cython.final
@cython.no_gc_clear  # a call in a garbage cycle must still find `calls` when it ends
cdef class Call:
    """One call under way."""

    cdef Calls calls
    cdef Node node
    cdef readonly bint nested

    def __enter__(self):
        return self.calls.thing

    def __exit__(self, *_) -> None:
        self._end()

    def __del__(self):
        self._end()

    cdef int _end(self) except -1:
        cdef Calls calls = self.calls
        if calls is not None:
            self.calls = None
            self.node.before.after = self.node.after
            self.node.after.before = self.node.before
            calls._close_if_unused()
        return 0


@cython.final
cdef class Calls:
    """The calls that use `thing`, which has a close(). Messages call it `name`."""

    cdef object thing
    cdef str name
    cdef Node under_way  # the anchor of the circular list
    cdef uint32_t made_in
    cdef bint closed
    cdef bint closing

    def __cinit__(self, thing, str name not None):
        self.thing = thing
        self.name = name
        self.made_in = forks()
        self.under_way.before = self.under_way.after = &self.under_way

    def enter(self) -> Call:
        """Begin a call. Raise ClosedError after `close`, and ForkedProcess in a forked child."""
        cdef Call call = Call.__new__(Call)
        if self.made_in != forks():
            raise ForkedProcess(f"this {self.name} belongs to the process that made it")
        if self.closed:
            raise ClosedError(f"this {self.name} is closed")
        call.node.thread = PyThread_get_thread_ident()
        call.nested = self._is_used_by(call.node.thread)
        call.node.before, call.node.after = &self.under_way, self.under_way.after
        call.node.after.before = self.under_way.after = &call.node
        call.calls = self
        return call

    @property
    def used_here(self) -> bool:
        """Whether the calling thread is inside a call."""
        return self._is_used_by(PyThread_get_thread_ident())

    cdef bint _is_used_by(self, long thread) noexcept:
        cdef Node *node = self.under_way.after
        while node is not &self.under_way and node.thread != thread:
            node = node.after
        return node is not &self.under_way

    def close(self) -> None:
        """Refuse further calls. Call `thing.close()` now, or when the last call ends.

        Do nothing in a forked child, because the thing belongs to the parent. If an exception
        interrupts `thing.close()`, the next `close` calls it again.
        """
        if self.made_in != forks():
            return
        self.closed = True
        self._close_if_unused()

    cdef int _close_if_unused(self) except -1:
        if not self.closed or self.closing or self.under_way.after is not &self.under_way:
            return 0
        if self.made_in == forks():
            self.closing = True
            try:
                self.thing.close()
            finally:
                self.closing = False
        return 0
