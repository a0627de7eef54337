"""Keys: a mapping's keys as bytes, without Python objects, so they are compared without the GIL.

    str      s, UTF-8; lone surrogates are kept
    bytes    b, the bytes
    int      i, the least number of bytes, little-endian, signed
    bool     as the int that it equals; a second encoding keeps the bool, see below
    None     n
    tuple    t, then the length and the encoding of each item
    Opaque   o, its number, or x, its bytes

Two keys of these types are equal, as in a dict, if and only if their encodings are equal. True
equals 1, but must be returned as True. A key that contains a bool therefore has two encodings: d,
the length of the compared encoding, the compared encoding, and the encoding that is returned to the
user.

Rejected: keeping key objects. A str of ten letters takes 59 bytes, and its slot in a dict up to 60.

Encoding runs no Python code of a key. Subclasses and other types raise NotPlain, and the caller
replaces them by plain keys.

A key that is kept as a Python object is a KeyObject, whose number stands for it in the core. `pin`,
`release` and `end` are atomic: they keep the GIL and call no Python code.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_CheckExact
from cpython.tuple cimport PyTuple_CheckExact
from cpython.unicode cimport PyUnicode_CheckExact
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object, Py_ssize_t *) except NULL

cdef enum:
    DEEPEST = 100  # nesting levels of tuples


class NotPlain(TypeError):
    """The type of a key, or of an item of a tuple, cannot be encoded."""


cdef class Opaque:
    """A key that only its mapping can decode: an object's number, or its serializer's bytes."""

    cdef readonly uint64_t number
    cdef readonly bytes data

    def __cinit__(self, uint64_t number, bytes data=None):
        self.number = number
        self.data = data

    def __repr__(self) -> str:
        return f"Opaque({self.number}, {self.data!r})"


cdef class KeyObject:
    """A key that is kept as an object, with its number.

    It equals another one with an equal key until one of them ends. A call that stores a value pins
    it first, so that it cannot end before the value is stored. Raises TypeError if the key is not
    hashable.
    """

    cdef readonly object key
    cdef readonly uint64_t number
    cdef uint64_t pins  # calls that are storing a value
    cdef readonly uint64_t uses  # pins made and pins released so far
    cdef readonly bint ended
    cdef Py_hash_t hash

    def __init__(self, key, uint64_t number):
        self.key = key
        self.number = number
        self.hash = hash(key)

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other) -> bool:
        if self is other:
            return True
        if type(other) is not KeyObject:
            return NotImplemented
        if self.ended or (<KeyObject>other).ended:
            return False
        return self.key == (<KeyObject>other).key

    def pin(self):
        """Pin it. Return the Pin, or None if it has ended."""
        cdef Pin pin = Pin.__new__(Pin)
        if self.ended:
            return None
        self.pins += 1
        self.uses += 1
        pin.held = self
        return pin

    def end(self, uint64_t uses) -> bool:
        """End it. Return False if it is pinned, or was at any time since `uses` was read."""
        if self.pins or self.uses != uses:
            return False
        self.ended = True
        return True

    cdef void unpin(self) noexcept:
        self.pins -= 1
        self.uses += 1


@cython.no_gc  # it lives within one call, and __dealloc__ needs what it refers to
cdef class Pin:
    """Keeps a KeyObject from ending until it is released or freed."""

    cdef KeyObject held

    def __dealloc__(self):
        if self.held is not None:
            self.held.unpin()

    def release(self):
        """Release the KeyObject, and return it."""
        cdef KeyObject held = self.held
        self.held = None
        held.unpin()
        return held


cdef class Key:
    """A buffer for one encoded key."""

    @property
    def stored(self) -> bytes:
        """The stored encoding of the key."""
        return (<const char *>self.data)[: self.length]


cdef int encode_key(Key out, key) except -1:
    """Encode a key. Raise NotPlain for other types than those above, and for tuples of them."""
    cdef const char *text
    cdef Py_ssize_t size = 0
    cdef int overflow = 0
    cdef int64_t number
    cdef bytes compared, shown
    out.data = out.own
    if PyUnicode_CheckExact(key):
        try:
            text = PyUnicode_AsUTF8AndSize(key, &size)
        except UnicodeEncodeError:
            return _use(out, b"s" + (<str>key).encode("utf-8", "surrogatepass"), None)
        return _copy(out, b"s", text, size)
    if PyBytes_CheckExact(key):
        return _copy(out, b"b", PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
    if PyLong_CheckExact(key):
        number = PyLong_AsLongLongAndOverflow(key, &overflow)
        if not overflow:
            return _copy(out, b"i", <const char *>&number, _width(number))
    if key is None:
        return _copy(out, b"n", NULL, 0)
    compared = _encoded(key, False, 0)
    shown = _encoded(key, True, 0) if type(key) is bool or PyTuple_CheckExact(key) else compared
    return _use(out, compared, None if shown == compared else shown)


cdef int _copy(Key out, const char *tag, const char *data, size_t size) except -1:
    if size + 1 > KEY_ROOM:
        return _use(out, tag[:1] + data[:size], None)
    out.own[0] = tag[0]
    if size:
        memcpy(&out.own[1], data, size)
    out.length = out.compared_length = size + 1
    out.compared = out.data
    return 0


cdef int _use(Key out, bytes compared, bytes shown) except -1:
    cdef bytes head = b"" if shown is None else b"d" + _varint(len(compared))
    out.longer = compared if shown is None else head + compared + shown
    out.data = <const uint8_t *>PyBytes_AS_STRING(out.longer)
    out.length = len(out.longer)
    out.compared = out.data + len(head)
    out.compared_length = len(compared)
    return 0


cdef inline size_t _width(int64_t number) noexcept:
    """Return the number of bytes of a number in two's complement."""
    cdef size_t width = 1
    while width < 8 and not (
        -(<int64_t>1 << (8 * width - 1)) <= number < <int64_t>1 << (8 * width - 1)
    ):
        width += 1
    return width


cdef bytes _varint(uint64_t number):
    cdef bytearray out = bytearray()
    while number >= 128:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


cdef bytes _encoded(key, bint shown, int depth):
    """Return a key's encoding: the compared one, or, if `shown`, the one returned to the user."""
    if type(key) is bool:
        if shown:
            return b"T" if key else b"F"
        return b"i\x01" if key else b"i\x00"
    if PyLong_CheckExact(key):
        return b"i" + (<object>key).to_bytes(
            (<object>key).bit_length() // 8 + 1, "little", signed=True
        )
    if PyUnicode_CheckExact(key):
        return b"s" + (<str>key).encode("utf-8", "surrogatepass")
    if PyBytes_CheckExact(key):
        return b"b" + <bytes>key
    if key is None:
        return b"n"
    if PyTuple_CheckExact(key) and depth < DEEPEST:
        parts = [b"t"]
        for item in <tuple>key:
            part = _encoded(item, shown, depth + 1)
            parts.append(_varint(len(part)))
            parts.append(part)
        return b"".join(parts)
    if type(key) is Opaque:
        if (<Opaque>key).data is not None:
            return b"x" + (<Opaque>key).data
        return b"o" + (<Opaque>key).number.to_bytes(8, "little")
    raise NotPlain(type(key).__name__)


# Decoding.

cdef inline size_t _read_varint(const uint8_t *data, size_t *at) noexcept nogil:
    cdef size_t number = 0
    cdef int shift = 0
    while True:
        number |= <size_t>(data[at[0]] & 127) << shift
        shift += 7
        at[0] += 1
        if not data[at[0] - 1] & 128:
            return number


cdef void compared_part(
    const uint8_t *data, size_t length, const uint8_t **part, size_t *part_length
) noexcept nogil:
    """Find the part of a stored key that is compared."""
    cdef size_t at = 1
    part[0] = data
    part_length[0] = length
    if data[0] == b"d":
        part_length[0] = _read_varint(data, &at)
        part[0] = data + at


cdef object decode_key(const uint8_t *data, size_t length):
    """Return the key of a stored encoding."""
    cdef size_t at = 1, size
    if data[0] == b"d":
        size = _read_varint(data, &at)
        return _decoded(data + at + size, length - at - size)
    return _decoded(data, length)


cdef object _decoded(const uint8_t *data, size_t length):
    cdef uint8_t tag = data[0]
    cdef size_t at = 1, size
    cdef list items
    cdef bytes rest
    if tag == b"t":
        items = []
        while at < length:
            size = _read_varint(data, &at)
            items.append(_decoded(data + at, size))
            at += size
        return tuple(items)
    rest = (<const char *>data)[1:length]
    if tag == b"s":
        return rest.decode("utf-8", "surrogatepass")
    if tag == b"b":
        return rest
    if tag == b"i":
        return int.from_bytes(rest, "little", signed=True)
    if tag == b"n":
        return None
    if tag == b"T":
        return True
    if tag == b"F":
        return False
    if tag == b"x":
        return Opaque(0, rest)
    return Opaque(int.from_bytes(rest, "little"), None)


def encode(key) -> bytes:
    """Return the stored encoding of a key; for tests."""
    cdef Key out = Key.__new__(Key)
    encode_key(out, key)
    return out.stored


def decode(bytes data not None):
    """Return the key of an encoding, or one that is equal to it; for tests."""
    return decode_key(<const uint8_t *>PyBytes_AS_STRING(data), len(data))
