"""Allocator: a NumPy data allocator that takes the memory of large arrays elsewhere (NEP 49).

    np.empty(shape) ─▶ Handler: smaller than `threshold` ─▶ the previous handler
                                others                   ─▶ take(nbytes), a block with an address
    array is freed  ─▶ by its address: the block is dropped, or the previous handler frees it

The C functions of NumPy are taken from its table `_ARRAY_API`, so building needs no headers of
NumPy. The positions in that table and the struct belong to its stable ABI since 1.22.

Each array keeps the handler that gave it memory. NumPy calls a handler with the GIL held. The
functions here take the GIL nevertheless, so they would also work if NumPy stopped holding it.
"""

cimport cython
from cpython.exc cimport PyErr_Fetch, PyErr_Restore
from cpython.object cimport PyObject
from cpython.pycapsule cimport (
    PyCapsule_GetContext, PyCapsule_GetPointer, PyCapsule_New, PyCapsule_SetContext,
)
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint8_t, uintptr_t
from libc.string cimport memcpy, strcpy

cdef enum:  # positions in NumPy's table
    SET_HANDLER = 304
    GET_HANDLER = 305


cdef struct Functions:  # PyDataMemAllocator
    void *context
    void *(*malloc)(void *context, size_t size) noexcept
    void *(*calloc)(void *context, size_t count, size_t size) noexcept
    void *(*realloc)(void *context, void *place, size_t size) noexcept
    void (*free)(void *context, void *place, size_t size) noexcept


cdef struct Table:  # PyDataMem_Handler
    char name[127]
    uint8_t version
    Functions functions


ctypedef object (*SetHandler)(object handler)
ctypedef object (*GetHandler)()


cdef void **_numpy() except NULL:
    try:
        from numpy._core._multiarray_umath import _ARRAY_API
    except ImportError:  # NumPy 1
        from numpy.core._multiarray_umath import _ARRAY_API
    return <void **>PyCapsule_GetPointer(_ARRAY_API, NULL)


@cython.final
cdef class Handler:
    """A handler that takes the memory of large arrays from `take(nbytes)`. See the stub."""

    cdef Table table
    cdef Functions before
    cdef object kept, take
    cdef dict blocks
    cdef uintptr_t low, high
    cdef size_t threshold

    def __init__(self, take, *, size_t threshold, uintptr_t low, uintptr_t high):
        self.take = take
        self.blocks = {}
        self.threshold, self.low, self.high = threshold, low, high
        self.kept = (<GetHandler>_numpy()[GET_HANDLER])()
        self.before = (<Table *>PyCapsule_GetPointer(self.kept, "mem_handler")).functions
        strcpy(self.table.name, "batchzip")
        self.table.version = 1
        self.table.functions = Functions(<void *>self, _malloc, _calloc, _realloc, _free)

    def install(self) -> object:
        """Make NumPy use this handler in this context. Return the previous one, for `restore`."""
        capsule = PyCapsule_New(&self.table, "mem_handler", _drop)
        PyCapsule_SetContext(capsule, <void *>self)
        Py_INCREF(self)
        return (<SetHandler>_numpy()[SET_HANDLER])(capsule)


def restore(handler) -> None:
    """Make NumPy use a handler that `install` returned, in this context."""
    (<SetHandler>_numpy()[SET_HANDLER])(handler)


cdef void _drop(object capsule) noexcept:
    Py_DECREF(<Handler>PyCapsule_GetContext(capsule))


cdef bint _take(Handler self, size_t size, void **place) noexcept:
    """Take a block into `place`. Return False if `take` returned None.

    If `take` raises an exception, put NULL into `place` and return True: NumPy then raises
    MemoryError. The caller holds the GIL. An exception that is pending is preserved.
    """
    cdef PyObject *kind = NULL
    cdef PyObject *value = NULL
    cdef PyObject *traceback = NULL
    cdef bint given = True
    place[0] = NULL
    PyErr_Fetch(&kind, &value, &traceback)
    try:
        block = self.take(size)
        given = block is not None
        if given:
            self.blocks[block.address] = block
            place[0] = <void *><uintptr_t>block.address
    except BaseException:
        pass
    PyErr_Restore(kind, value, traceback)
    return given


cdef bint _give(Handler self, void *place) noexcept:
    """Drop the block at an address. Return whether there was one.

    The caller holds the GIL. An exception that is pending is preserved.
    """
    cdef PyObject *kind = NULL
    cdef PyObject *value = NULL
    cdef PyObject *traceback = NULL
    PyErr_Fetch(&kind, &value, &traceback)
    found = self.blocks.pop(<uintptr_t>place, None) is not None
    PyErr_Restore(kind, value, traceback)
    return found


cdef inline bint _is_here(Handler self, void *place) noexcept:
    return self.low <= <uintptr_t>place < self.high


cdef void *_malloc(void *context, size_t size) noexcept with gil:
    cdef Handler self = <Handler>context
    cdef void *place
    if size >= self.threshold and _take(self, size, &place):
        return place
    return self.before.malloc(self.before.context, size)


cdef void *_calloc(void *context, size_t count, size_t size) noexcept with gil:
    cdef Handler self = <Handler>context
    cdef void *place
    if size and count > (<size_t>-1) // size:
        return NULL
    if count * size >= self.threshold and _take(self, count * size, &place):
        return place  # blocks are zeros
    return self.before.calloc(self.before.context, count, size)


cdef void *_realloc(void *context, void *place, size_t size) noexcept with gil:
    cdef Handler self = <Handler>context
    cdef void *other
    if not _is_here(self, place):
        return self.before.realloc(self.before.context, place, size)
    other = _malloc(context, size)
    if other is not NULL:
        memcpy(other, place, min(size, <size_t>self.blocks[<uintptr_t>place].nbytes))
        _give(self, place)
    return other


cdef void _free(void *context, void *place, size_t size) noexcept with gil:
    cdef Handler self = <Handler>context
    if not _is_here(self, place):
        self.before.free(self.before.context, place, size)
    else:
        _give(self, place)
