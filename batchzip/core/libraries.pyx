# cython: language_level=3, binding=True
"""C functions of lz4, zstd and xxh3, found in extension modules of the packages that contain them.

The wheels `lz4`, `zstandard` and `xxhash` contain the C libraries and export their functions.
Debian's packages link the system's libraries instead, and the same look-up finds those. Calling
the functions by address needs no GIL and no Python object. The extension module is opened with
dlopen and never imported, so a process that only compresses loads neither the package nor cffi.

Rejected:

* Linking the C libraries ourselves. That is a second copy, in another version than Python's.
* Loading the system's libraries. They are not installed everywhere.

A library is used only if it is whole on disk, exports every function, has a version with a known
interface, and passes a test. In the test, sample data must survive a round trip, and a call with
too little space must fail without writing beyond its buffer. Otherwise the Python codec is used,
and `libraries()` says why.

Outputs equal those of python-lz4 and python-zstandard, byte for byte. This determines which
functions are used:

* python-lz4 compresses with LZ4_compress_fast_continue on a new stream. LZ4_compress_fast_extState
  uses other tables for pages below 64 KiB. For high compression there is only one function.
* python-zstandard prepares dictionaries with ZSTD_createCDict_advanced and ZSTD_getCParams, and so
  does `zstd_make_cdict`. They are not part of the stable API. Their signatures have been the same
  since zstd 1.3, and they are tested like the others. The stable ZSTD_createCDict makes its tables
  for small sources and keeps its level, so that large pages compress to different bytes.
"""

import os
from collections import namedtuple

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint64_t
from libc.stdlib cimport free
from libc.string cimport memcmp, memcpy, memset

from batchzip.core.memory cimport bz_malloc


cdef extern from "<dlfcn.h>" nogil:
    ctypedef struct Dl_info:
        const char *dli_fname

    int RTLD_NOW
    int RTLD_LOCAL
    void *dlopen(const char *path, int mode)
    void *dlsym(void *handle, const char *name)
    char *dlerror()
    int dladdr(const void *address, Dl_info *info)


class Library(namedtuple("Library", ("name", "version", "path", "problem"), module=__name__)):
    """A C library ("lz4", "zstd" or "xxh3") and the result of the search for it.

    `path` is that of the shared object that has the functions. `version` and `path` are None if the
    library was not found. `problem` says why the library is not used, or is None if it is used.
    """

    __slots__ = ()


class _UnusableError(Exception):
    """A shared object lacks a function that the core needs, or its functions fail the test."""


# The package, and the modules that may export the functions, in the order of the search.
_PLACES = {
    "lz4": ("lz4", ("block/_block",)),
    "zstd": ("zstandard", ("_cffi", "backend_c")),
    "xxh3": ("xxhash", ("_xxhash",)),
}

# The function that returns the version, the first supported version, and the first version that may
# have a different interface. Before 0.8, XXH3 returned other values.
_VERSIONS = {
    "lz4": ("LZ4_versionNumber", (1, 9), (2,)),
    "zstd": ("ZSTD_versionNumber", (1, 5), (2,)),
    "xxh3": ("XXH_versionNumber", (0, 8), (1,)),
}

cdef dict _libraries = {}
cdef Lz4 _lz4
cdef Zstd _zstd
cdef Xxh3 _xxh3


cdef const Lz4 *find_lz4() except? NULL:
    return &_lz4 if _settle("lz4").problem is None else NULL


cdef const Zstd *find_zstd() except? NULL:
    return &_zstd if _settle("zstd").problem is None else NULL


cdef const Xxh3 *find_xxh3() except? NULL:
    return &_xxh3 if _settle("xxh3").problem is None else NULL


cdef void *zstd_make_cdict(
    const Zstd *zstd, const void *dictionary, size_t size, int level
) noexcept nogil:
    cdef ZstdMemory memory
    memset(&memory, 0, sizeof(memory))
    # Level 0 gives the parameters of level 3. The two zeros are ZSTD_dlm_byCopy and ZSTD_dct_auto:
    # copy the dictionary, and recognise its type by its first bytes.
    return zstd.create_cdict(dictionary, size, 0, 0, zstd.get_cparams(level, 0, size), memory)


cdef size_t zstd_compress_parts(
    const Zstd *zstd, void *cctx, void *dst, size_t dst_capacity, const void *src, size_t src_size,
    size_t parts,
) noexcept nogil:
    cdef ZstdOutput output
    cdef ZstdInput part
    cdef size_t number, waiting
    output.dst, output.size, output.pos = dst, dst_capacity, 0
    # The sequence of calls is that of python-zstandard's compressobj; the output depends on it.
    if zstd.is_error(zstd.reset(cctx, ZSTD_SESSION)) or zstd.is_error(zstd.pledge(cctx, src_size)):
        return 0
    for number in range(parts):
        part.src = <const char *> src + number * (src_size // parts)
        part.size = src_size // parts + (src_size % parts if number == parts - 1 else 0)
        part.pos = 0
        if zstd.is_error(zstd.stream(cctx, &output, &part, ZSTD_CONTINUE)):
            return 0
        waiting = zstd.stream(cctx, &output, &part, ZSTD_FLUSH if number < parts - 1 else ZSTD_END)
        if waiting or part.pos < part.size:  # an error, or too little space
            zstd.reset(cctx, ZSTD_SESSION)
            return 0
    return output.pos


def libraries():
    """Return the state of each C library. Search for those that were not needed yet."""
    return tuple([_settle(name) for name in _PLACES])


def xxh3_64(data):
    """Return XXH3 (64 bits, seed 0) of a contiguous buffer."""
    cdef const Xxh3 *xxh3 = find_xxh3()
    cdef Py_buffer view
    cdef uint64_t value
    if xxh3 is NULL:
        import xxhash

        return xxhash.xxh3_64_intdigest(data)
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    value = xxh3.hash64(view.buf, view.len)
    PyBuffer_Release(&view)
    return value


# The look-up


cdef object _settle(str name):
    """Return the Library of that name. Search for it in the first call."""
    known = _libraries.get(name)
    return _look_for(name) if known is None else known


cdef object _look_for(str name):
    """Find a library, test it and record the result, unless it failed for a temporary reason."""
    package, modules = _PLACES[name]
    failed = None  # if several fail: the first of those that came furthest
    passing = False
    try:
        paths = _paths(package, modules)
        problem = f"{package} has no {' or '.join(modules)} for this Python"
    except ModuleNotFoundError:
        paths, problem = (), f"{package} is not installed"
    except Exception as error:  # a finder of another package may raise anything
        paths, problem = (), f"looking for {package} failed: {error!r}"
        passing = _may_pass(error)
    for path in paths:
        version, place = None, path
        try:
            handle = _open(path)
            version, place = _version(name, handle)
            return _try(name, handle, version, place)
        except Exception as error:  # unusable, unreadable, not a path, no memory
            problem = str(error) if isinstance(error, _UnusableError) else repr(error)
            passing = passing or _may_pass(error)
        if failed is None or failed.version is None is not version:
            failed = Library(name, version, place, problem)
    failed = failed or Library(name, None, None, problem)
    return failed if passing else _libraries.setdefault(name, failed)


def _may_pass(error) -> bool:
    """Return whether an error is temporary: no memory or no descriptors were left.

    dlopen reports these by text only.
    """
    import errno
    import os

    numbers = errno.EMFILE, errno.ENFILE, errno.ENOMEM
    words = *map(os.strerror, numbers), "failed to map segment", NO_MEMORY.decode()
    return (
        isinstance(error, MemoryError)
        or getattr(error, "errno", None) in numbers
        or (isinstance(error, _UnusableError) and any([word in str(error) for word in words]))
    )


def _paths(package, modules):
    """Return the files from which Python would import these modules of a package."""
    from importlib.machinery import EXTENSION_SUFFIXES
    from importlib.util import find_spec

    spec = find_spec(package)  # for a top-level name, this runs no code of the package
    if spec is None:
        raise ModuleNotFoundError(package)
    candidates = [
        os.path.join(folder, module + suffix)
        for module in modules
        for folder in spec.submodule_search_locations or ()
        for suffix in EXTENSION_SUFFIXES
    ]
    return [path for path in candidates if os.path.isfile(path)]


cdef object _open(str path):
    """Open a shared object. It stays open until the process ends."""
    cdef void *handle
    _check_whole(path)
    encoded = os.fsencode(path)
    handle = dlopen(encoded, RTLD_NOW | RTLD_LOCAL)
    if handle is NULL:
        raise _UnusableError((<bytes> dlerror()).decode("utf-8", "replace"))
    return <size_t> handle


def _check_whole(path):
    """Raise _UnusableError if a 64-bit ELF file ends before its segments do.

    Opening it would cause SIGBUS.
    """
    with open(path, "rb") as file:
        header = file.read(64)
        if len(header) < 64 or header[:6] != b"\x7fELF\x02\x01":
            return  # not such a file: dlopen reports what is wrong
        file.seek(int.from_bytes(header[32:40], "little"))
        size = int.from_bytes(header[54:56], "little")
        count = int.from_bytes(header[56:58], "little")
        table = file.read(size * count)
        need = len(header)
        for at in range(0, len(table), size):
            offset = int.from_bytes(table[at + 8 : at + 16], "little")
            need = max(need, offset + int.from_bytes(table[at + 32 : at + 40], "little"))
        if len(table) < size * count or file.seek(0, 2) < need:
            raise _UnusableError(f"{path} is truncated")


cdef void *_symbol(size_t handle, const char *name) except NULL:
    cdef void *address = dlsym(<void *> handle, name)
    if address is NULL:
        raise _UnusableError(f"it exports no {(<bytes> name).decode()}")
    return address


ctypedef unsigned int (*_number_fn)() noexcept nogil


cdef tuple _version(str name, size_t handle):
    """Return the version and the file of the library behind a handle."""
    cdef Dl_info info
    symbol = _VERSIONS[name][0].encode()
    cdef void *address = _symbol(handle, symbol)
    cdef unsigned int number = (<_number_fn> address)()
    place = None
    if dladdr(address, &info) and info.dli_fname is not NULL:
        place = os.fsdecode(<bytes> info.dli_fname)
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}", place


cdef object _try(str name, size_t handle, str version, str place):
    """Collect a library's functions, test them and record the library. Raise if a step fails."""
    cdef Lz4 lz4
    cdef Zstd zstd
    cdef Xxh3 xxh3
    cdef const char *problem
    _, first, end = _VERSIONS[name]
    if not first <= tuple([int(part) for part in version.split(".")]) < end:
        known = f"{first[0]}.{first[1]} or later, below {end[0]}"
        raise _UnusableError(f"version {version} is not supported; supported is {known}")
    if name == "lz4":
        _collect_lz4(handle, &lz4)
        problem = _try_lz4(&lz4)
    elif name == "zstd":
        _collect_zstd(handle, &zstd)
        problem = _try_zstd(&zstd)
    else:
        _collect_xxh3(handle, &xxh3)
        problem = _try_xxh3(&xxh3)
    if problem is not NULL:
        raise _UnusableError((<bytes> problem).decode())
    library = Library(name, version, place, None)
    # Another thread may have recorded it meanwhile. From here on, no other thread can run.
    if name not in _libraries:
        if name == "lz4":
            memcpy(&_lz4, &lz4, sizeof(lz4))
        elif name == "zstd":
            memcpy(&_zstd, &zstd, sizeof(zstd))
        else:
            memcpy(&_xxh3, &xxh3, sizeof(xxh3))
        _libraries[name] = library
    return _libraries[name]


ctypedef void *(*_init_stream_fn)(void *state, size_t size) noexcept nogil

cdef _init_stream_fn _init_stream
cdef lz4_compress_fn _compress_continue
cdef size_t _stream_bytes


cdef int _compress_fresh(
    void *state, const char *src, char *dst, int src_size, int dst_capacity, int effort
) noexcept nogil:
    """Compress as the only block of a new stream."""
    # Reusing the tables with LZ4_resetStream_fast gives different bytes and is slower.
    if _init_stream(state, _stream_bytes) is NULL:
        return 0
    return _compress_continue(state, src, dst, src_size, dst_capacity, effort)


cdef int _collect_lz4(size_t handle, Lz4 *lz4) except -1:
    global _init_stream, _compress_continue, _stream_bytes
    _init_stream = <_init_stream_fn> _symbol(handle, "LZ4_initStream")
    _compress_continue = <lz4_compress_fn> _symbol(handle, "LZ4_compress_fast_continue")
    _stream_bytes = (<_number_fn> _symbol(handle, "LZ4_sizeofState"))()
    lz4.compress_fast = _compress_fresh
    lz4.fast_state_bytes = _stream_bytes
    lz4.compress_hc = <lz4_compress_fn> _symbol(handle, "LZ4_compress_HC_extStateHC")
    lz4.decompress = <lz4_decompress_fn> _symbol(handle, "LZ4_decompress_safe")
    lz4.hc_state_bytes = (<_number_fn> _symbol(handle, "LZ4_sizeofStateHC"))()
    return 0


cdef int _collect_zstd(size_t handle, Zstd *zstd) except -1:
    zstd.create_cctx = <zstd_create_context_fn> _symbol(handle, "ZSTD_createCCtx")
    zstd.free_cctx = <zstd_free_fn> _symbol(handle, "ZSTD_freeCCtx")
    zstd.set_parameter = <zstd_set_parameter_fn> _symbol(handle, "ZSTD_CCtx_setParameter")
    zstd.compress2 = <zstd_compress2_fn> _symbol(handle, "ZSTD_compress2")
    zstd.reset = <zstd_reset_fn> _symbol(handle, "ZSTD_CCtx_reset")
    zstd.pledge = <zstd_pledge_fn> _symbol(handle, "ZSTD_CCtx_setPledgedSrcSize")
    zstd.stream = <zstd_stream_fn> _symbol(handle, "ZSTD_compressStream2")
    zstd.ref_cdict = <zstd_ref_cdict_fn> _symbol(handle, "ZSTD_CCtx_refCDict")
    zstd.create_dctx = <zstd_create_context_fn> _symbol(handle, "ZSTD_createDCtx")
    zstd.free_dctx = <zstd_free_fn> _symbol(handle, "ZSTD_freeDCtx")
    zstd.decompress_dctx = <zstd_decompress_dctx_fn> _symbol(handle, "ZSTD_decompressDCtx")
    zstd.decompress_with_ddict = <zstd_decompress_with_ddict_fn> _symbol(
        handle, "ZSTD_decompress_usingDDict"
    )
    zstd.free_cdict = <zstd_free_fn> _symbol(handle, "ZSTD_freeCDict")
    zstd.create_ddict = <zstd_create_ddict_fn> _symbol(handle, "ZSTD_createDDict")
    zstd.free_ddict = <zstd_free_fn> _symbol(handle, "ZSTD_freeDDict")
    zstd.size_of_cctx = <zstd_size_fn> _symbol(handle, "ZSTD_sizeof_CCtx")
    zstd.size_of_dctx = <zstd_size_fn> _symbol(handle, "ZSTD_sizeof_DCtx")
    zstd.size_of_cdict = <zstd_size_fn> _symbol(handle, "ZSTD_sizeof_CDict")
    zstd.size_of_ddict = <zstd_size_fn> _symbol(handle, "ZSTD_sizeof_DDict")
    zstd.is_error = <zstd_is_error_fn> _symbol(handle, "ZSTD_isError")
    zstd.content_size = <zstd_content_size_fn> _symbol(handle, "ZSTD_getFrameContentSize")
    zstd.compressed_size = <zstd_compressed_size_fn> _symbol(
        handle, "ZSTD_findFrameCompressedSize"
    )
    zstd.compress_bound = <zstd_compress_bound_fn> _symbol(handle, "ZSTD_compressBound")
    zstd.get_cparams = <zstd_get_cparams_fn> _symbol(handle, "ZSTD_getCParams")
    zstd.create_cdict = <zstd_create_cdict_fn> _symbol(handle, "ZSTD_createCDict_advanced")
    return 0


cdef int _collect_xxh3(size_t handle, Xxh3 *xxh3) except -1:
    cdef void *dispatching = dlsym(<void *> handle, "XXH3_64bits_dispatch")
    if dispatching is NULL:
        dispatching = _symbol(handle, "XXH3_64bits")
    xxh3.hash64 = <xxh3_hash64_fn> dispatching
    return 0


# The tests: each returns what is wrong, or NULL


cdef enum:
    SAMPLE = 2048
    ROOM = 2048
    GUARD = 64
    GUARD_BYTE = 0xA5
    MAX_STATE = 1048576  # bytes; lz4's states take 16 and 256 KiB

cdef const char *WRONG = "it does not restore what it compressed"
cdef const char *NO_FAILURE = "it does not fail when its output buffer is too small"
cdef const char *OVERRUN = "it writes beyond its output buffer"
cdef const char *NO_MEMORY = "not enough memory to test it"


cdef struct Trial:
    char page[SAMPLE]
    char packed[ROOM + GUARD]
    char restored[SAMPLE + GUARD]


cdef void _prepare(Trial *trial) noexcept nogil:
    """Fill a page with half noise and half a pattern, and the outputs with guard bytes."""
    cdef unsigned int i, noise = 1
    for i in range(SAMPLE):
        noise = noise * 1103515245 + 12345
        trial.page[i] = <char> (noise >> 16 if i & 512 else i % 61)
    memset(trial.packed, GUARD_BYTE, sizeof(trial.packed))
    memset(trial.restored, GUARD_BYTE, sizeof(trial.restored))


cdef bint _untouched(const char *output, size_t capacity) noexcept nogil:
    """Return whether the guard bytes behind an output are unchanged."""
    cdef size_t i
    for i in range(capacity, capacity + GUARD):
        if <unsigned char> output[i] != GUARD_BYTE:
            return False
    return True


cdef const char *_try_lz4(const Lz4 *lz4) noexcept nogil:
    cdef const char *problem
    cdef void *state
    if not 0 < lz4.fast_state_bytes <= MAX_STATE or not 0 < lz4.hc_state_bytes <= MAX_STATE:
        return "the size of its state is implausible"
    state = bz_malloc(max(lz4.fast_state_bytes, lz4.hc_state_bytes))
    if state is NULL:
        return NO_MEMORY
    problem = _try_lz4_finder(lz4, lz4.compress_fast, state, 1)
    if problem is NULL:
        problem = _try_lz4_finder(lz4, lz4.compress_hc, state, 9)
    free(state)
    return problem


cdef const char *_try_lz4_finder(
    const Lz4 *lz4, lz4_compress_fn compress, void *state, int effort
) noexcept nogil:
    cdef Trial trial
    cdef int length
    _prepare(&trial)
    length = compress(state, trial.page, trial.packed, SAMPLE, ROOM, effort)
    if not _untouched(trial.packed, ROOM):
        return OVERRUN
    if not 0 < length < SAMPLE or (
        lz4.decompress(trial.packed, trial.restored, length, SAMPLE) != SAMPLE
    ):
        return WRONG
    if not _untouched(trial.restored, SAMPLE):
        return OVERRUN
    if memcmp(trial.restored, trial.page, SAMPLE):
        return WRONG
    memset(trial.restored, GUARD_BYTE, sizeof(trial.restored))
    if lz4.decompress(trial.packed, trial.restored, length, SAMPLE // 2) >= 0:
        return NO_FAILURE
    if not _untouched(trial.restored, SAMPLE // 2):
        return OVERRUN
    memset(trial.packed, GUARD_BYTE, sizeof(trial.packed))
    if compress(state, trial.page, trial.packed, SAMPLE, SAMPLE // 4, effort):
        return NO_FAILURE
    if not _untouched(trial.packed, SAMPLE // 4):
        return OVERRUN
    return NULL


cdef const char *_try_zstd(const Zstd *zstd) noexcept nogil:
    cdef const char *problem = NO_MEMORY
    cdef Trial trial
    _prepare(&trial)
    cdef void *cctx = zstd.create_cctx()
    cdef void *dctx = zstd.create_dctx()
    cdef void *cdict = zstd_make_cdict(zstd, trial.page, SAMPLE // 4, 1)
    cdef void *ddict = zstd.create_ddict(trial.page, SAMPLE // 4)
    if cctx is not NULL and dctx is not NULL and cdict is not NULL and ddict is not NULL:
        if (
            zstd.is_error(zstd.set_parameter(cctx, ZSTD_LEVEL, 1))
            or zstd.is_error(zstd.set_parameter(cctx, ZSTD_CONTENT_SIZE, 1))
        ):
            problem = "it refuses its parameters"
        else:
            problem = _try_zstd_frames(zstd, &trial, cctx, dctx, NULL)
            if problem is NULL:
                if zstd.is_error(zstd.ref_cdict(cctx, cdict)):
                    problem = "it refuses its dictionary"
                else:
                    _prepare(&trial)
                    problem = _try_zstd_frames(zstd, &trial, cctx, dctx, ddict)
    zstd.free_ddict(ddict)
    zstd.free_cdict(cdict)
    zstd.free_dctx(dctx)
    zstd.free_cctx(cctx)
    return problem


cdef size_t _restore(
    const Zstd *zstd, void *dctx, Trial *trial, size_t capacity, size_t length, const void *ddict
) noexcept nogil:
    if ddict is NULL:
        return zstd.decompress_dctx(dctx, trial.restored, capacity, trial.packed, length)
    return zstd.decompress_with_ddict(
        dctx, trial.restored, capacity, trial.packed, length, ddict
    )


cdef const char *_try_zstd_frames(
    const Zstd *zstd, Trial *trial, void *cctx, void *dctx, const void *ddict
) noexcept nogil:
    cdef size_t length
    cdef size_t parts
    cdef const char *problem
    if not SAMPLE < zstd.compress_bound(SAMPLE) < 2 * SAMPLE:
        return "its bound for compressed sizes is implausible"
    for parts in range(1, 3):
        problem = _try_zstd_frame(zstd, trial, cctx, dctx, ddict, parts)
        if problem is not NULL:
            return problem
        _prepare(trial)
    return NULL


cdef size_t _compress(
    const Zstd *zstd, void *cctx, Trial *trial, size_t capacity, size_t parts
) noexcept nogil:
    """Compress the page. Return its compressed size, or 0 on failure."""
    cdef size_t length
    if parts > 1:
        return zstd_compress_parts(
            zstd, cctx, trial.packed, capacity, trial.page, SAMPLE, parts
        )
    length = zstd.compress2(cctx, trial.packed, capacity, trial.page, SAMPLE)
    return 0 if zstd.is_error(length) else length


cdef const char *_try_zstd_frame(
    const Zstd *zstd, Trial *trial, void *cctx, void *dctx, const void *ddict, size_t parts
) noexcept nogil:
    cdef size_t length
    # Test failure first: after a failed page, libzstd refuses a dictionary until a page succeeds.
    if _compress(zstd, cctx, trial, SAMPLE // 4, parts):
        return NO_FAILURE
    if not _untouched(trial.packed, SAMPLE // 4):
        return OVERRUN
    memset(trial.packed, GUARD_BYTE, sizeof(trial.packed))
    length = _compress(zstd, cctx, trial, ROOM, parts)
    if not _untouched(trial.packed, ROOM):
        return OVERRUN
    if (
        not 0 < length < SAMPLE
        or zstd.content_size(trial.packed, length) != SAMPLE
        or zstd.compressed_size(trial.packed, length + GUARD) != length
        or _restore(zstd, dctx, trial, SAMPLE, length, ddict) != SAMPLE
    ):
        return WRONG
    if not _untouched(trial.restored, SAMPLE):
        return OVERRUN
    if memcmp(trial.restored, trial.page, SAMPLE):
        return WRONG
    memset(trial.restored, GUARD_BYTE, sizeof(trial.restored))
    if not zstd.is_error(_restore(zstd, dctx, trial, SAMPLE // 2, length, ddict)):
        return NO_FAILURE
    if not _untouched(trial.restored, SAMPLE // 2):
        return OVERRUN
    return NULL


cdef const char *_try_xxh3(const Xxh3 *xxh3) noexcept nogil:
    """Hash prefixes of the page, one for each code path of XXH3, which depends on the length."""
    cdef size_t *lengths = [0, 3, 8, 16, 100, 200, 1000, SAMPLE]
    cdef uint64_t *expected = [
        0x2D06800538D394C2,
        0x5F4299FC161C9CBB,
        0x3A1C2D7C85AF88F8,
        0x8355E3A6F61770DB,
        0xC6CEDDFADD64BCF5,
        0x75A6FD46F6F4953F,
        0x3646E8558AD4005D,
        0x1FA73114F2C0C45D,
    ]
    cdef Trial trial
    cdef int i
    _prepare(&trial)
    for i in range(8):
        if xxh3.hash64(trial.page, lengths[i]) != expected[i]:
            return "it returns other values than XXH3"
    return NULL
