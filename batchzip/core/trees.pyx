"""Trees of lists and dicts: whether JSON and MessagePack can give them back as they are.

    str, int, bool, None   yes
    float                  in JSON, if it is finite
    bytes                  in MessagePack
    list                   if its items are
    dict                   if its values are; keys are str in JSON, all of the above in MessagePack

Every other type, subclasses of these included, comes back as something else, or not at all.

Rejected: encoding, decoding and comparing (1 == True, and an OrderedDict is equal to a dict); the
same look in Python (14 µs for 1.2 KB of JSON that msgspec encodes in 4; here 0.4).

No Python code runs during the look, so nothing changes meanwhile.
"""

from cpython.bool cimport PyBool_Check
from cpython.bytes cimport PyBytes_CheckExact
from cpython.dict cimport PyDict_CheckExact, PyDict_Next
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from cpython.list cimport PyList_CheckExact
from cpython.long cimport PyLong_CheckExact
from cpython.ref cimport PyObject
from cpython.unicode cimport PyUnicode_CheckExact
from libc.math cimport isfinite

cdef enum:
    DEEPEST = 200  # levels: Python's limit may leave the reader less room than the writer had


def misfit(value, *, bint binary):
    """Name what in a tree would not come back as it is, or None. `binary`: MessagePack."""
    return _misfit(value, binary, DEEPEST)


cdef bint _is_leaf(value, bint binary):
    if PyUnicode_CheckExact(value) or PyLong_CheckExact(value) or PyBool_Check(value):
        return True
    if value is None:
        return True
    if PyFloat_CheckExact(value):
        return binary or isfinite(PyFloat_AS_DOUBLE(value))
    return binary and PyBytes_CheckExact(value)


cdef object _misfit(value, bint binary, int levels):
    cdef Py_ssize_t at = 0
    cdef PyObject *key
    cdef PyObject *item
    if _is_leaf(value, binary):
        return None
    if not levels:
        return f"more than {DEEPEST} lists and dicts in one another"
    if PyList_CheckExact(value):
        for each in <list>value:
            found = _misfit(each, binary, levels - 1)
            if found is not None:
                return found
        return None
    if PyDict_CheckExact(value):
        while PyDict_Next(value, &at, &key, &item):
            if not (_is_leaf(<object>key, True) if binary else PyUnicode_CheckExact(<object>key)):
                return f"a key of {type(<object>key).__name__}"
            found = _misfit(<object>item, binary, levels - 1)
            if found is not None:
                return found
        return None
    return repr(value) if PyFloat_CheckExact(value) else f"a value of {type(value).__name__}"
