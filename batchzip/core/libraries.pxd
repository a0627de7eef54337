"""C functions of lz4, zstd and xxh3, called by address. All may be called without the GIL."""

from libc.stdint cimport uint64_t

# Return the bytes produced; 0 (compress) or a negative number (decompress) means failure.
# `state` is memory of the size that the struct gives, aligned as malloc aligns it. No call relies
# on what an earlier call left in it.
ctypedef int (*lz4_compress_fn)(
    void *state, const char *src, char *dst, int src_size, int dst_capacity, int effort
) noexcept nogil
ctypedef int (*lz4_decompress_fn)(
    const char *src, char *dst, int src_size, int dst_capacity
) noexcept nogil

cdef struct Lz4:
    lz4_compress_fn compress_fast  # LZ4_compress_fast_continue, new stream; effort: acceleration
    lz4_compress_fn compress_hc  # LZ4_compress_HC_extStateHC; effort: level
    lz4_decompress_fn decompress  # LZ4_decompress_safe
    size_t fast_state_bytes  # LZ4_sizeofState()
    size_t hc_state_bytes  # LZ4_sizeofStateHC()

# Functions that return a size_t return bytes or an error; `is_error` distinguishes them. Functions
# that return a pointer return NULL on failure. Functions that free accept NULL. Set the parameters
# and the dictionary of a context before its first page: after a page failed, libzstd refuses both
# until a page succeeds.
ctypedef void *(*zstd_create_context_fn)() noexcept nogil
ctypedef size_t (*zstd_free_fn)(void *context) noexcept nogil
ctypedef size_t (*zstd_set_parameter_fn)(void *cctx, int parameter, int value) noexcept nogil
ctypedef size_t (*zstd_compress2_fn)(
    void *cctx, void *dst, size_t dst_capacity, const void *src, size_t src_size
) noexcept nogil
cdef struct ZstdInput:  # ZSTD_inBuffer
    const void *src
    size_t size
    size_t pos

cdef struct ZstdOutput:  # ZSTD_outBuffer
    void *dst
    size_t size
    size_t pos

cdef enum ZstdStep:  # ZSTD_EndDirective
    ZSTD_CONTINUE = 0
    ZSTD_FLUSH = 1
    ZSTD_END = 2

cdef enum:
    ZSTD_SESSION = 1  # ZSTD_reset_session_only

ctypedef size_t (*zstd_reset_fn)(void *cctx, int what) noexcept nogil
ctypedef size_t (*zstd_pledge_fn)(void *cctx, unsigned long long size) noexcept nogil
# Returns the bytes that still need space in `output`, or an error. For ZSTD_CONTINUE the number is
# only a hint.
ctypedef size_t (*zstd_stream_fn)(
    void *cctx, ZstdOutput *output, ZstdInput *input, int step
) noexcept nogil
ctypedef size_t (*zstd_ref_cdict_fn)(void *cctx, const void *cdict) noexcept nogil
ctypedef size_t (*zstd_decompress_dctx_fn)(
    void *dctx, void *dst, size_t dst_capacity, const void *src, size_t src_size
) noexcept nogil
ctypedef size_t (*zstd_decompress_with_ddict_fn)(
    void *dctx,
    void *dst,
    size_t dst_capacity,
    const void *src,
    size_t src_size,
    const void *ddict,
) noexcept nogil
ctypedef void *(*zstd_create_ddict_fn)(const void *dictionary, size_t size) noexcept nogil
ctypedef size_t (*zstd_size_fn)(const void *memory) noexcept nogil
ctypedef unsigned int (*zstd_is_error_fn)(size_t code) noexcept nogil
ctypedef unsigned long long (*zstd_content_size_fn)(const void *src, size_t src_size) noexcept nogil
ctypedef size_t (*zstd_compressed_size_fn)(const void *src, size_t src_size) noexcept nogil
ctypedef size_t (*zstd_compress_bound_fn)(size_t src_size) noexcept nogil

cdef struct ZstdCParams:  # ZSTD_compressionParameters
    unsigned int window_log
    unsigned int chain_log
    unsigned int hash_log
    unsigned int search_log
    unsigned int min_match
    unsigned int target_length
    int strategy

cdef struct ZstdMemory:  # ZSTD_customMem; all NULL: malloc and free
    void *alloc
    void *free
    void *opaque

ctypedef ZstdCParams (*zstd_get_cparams_fn)(
    int level, unsigned long long src_size, size_t dict_size
) noexcept nogil
ctypedef void *(*zstd_create_cdict_fn)(
    const void *dictionary,
    size_t size,
    int load_method,
    int content_type,
    ZstdCParams cparams,
    ZstdMemory memory,
) noexcept nogil

cdef struct Zstd:
    zstd_create_context_fn create_cctx  # ZSTD_createCCtx
    zstd_free_fn free_cctx  # ZSTD_freeCCtx
    zstd_set_parameter_fn set_parameter  # ZSTD_CCtx_setParameter
    zstd_compress2_fn compress2  # ZSTD_compress2
    zstd_reset_fn reset  # ZSTD_CCtx_reset
    zstd_pledge_fn pledge  # ZSTD_CCtx_setPledgedSrcSize
    zstd_stream_fn stream  # ZSTD_compressStream2
    zstd_ref_cdict_fn ref_cdict  # ZSTD_CCtx_refCDict
    zstd_create_context_fn create_dctx  # ZSTD_createDCtx
    zstd_free_fn free_dctx  # ZSTD_freeDCtx
    zstd_decompress_dctx_fn decompress_dctx  # ZSTD_decompressDCtx
    zstd_decompress_with_ddict_fn decompress_with_ddict  # ZSTD_decompress_usingDDict
    zstd_free_fn free_cdict  # ZSTD_freeCDict
    zstd_create_ddict_fn create_ddict  # ZSTD_createDDict, which copies the dictionary
    zstd_free_fn free_ddict  # ZSTD_freeDDict
    zstd_size_fn size_of_cctx  # ZSTD_sizeof_CCtx: bytes of memory
    zstd_size_fn size_of_dctx  # ZSTD_sizeof_DCtx
    zstd_size_fn size_of_cdict  # ZSTD_sizeof_CDict
    zstd_size_fn size_of_ddict  # ZSTD_sizeof_DDict
    zstd_is_error_fn is_error  # ZSTD_isError
    zstd_content_size_fn content_size  # ZSTD_getFrameContentSize
    zstd_compressed_size_fn compressed_size  # ZSTD_findFrameCompressedSize
    zstd_compress_bound_fn compress_bound  # ZSTD_compressBound
    zstd_get_cparams_fn get_cparams  # ZSTD_getCParams; for zstd_make_cdict
    zstd_create_cdict_fn create_cdict  # ZSTD_createCDict_advanced; for zstd_make_cdict

cdef enum:
    ZSTD_LEVEL = 100  # ZSTD_c_compressionLevel
    ZSTD_CONTENT_SIZE = 200  # ZSTD_c_contentSizeFlag

ctypedef uint64_t (*xxh3_hash64_fn)(const void *data, size_t size) noexcept nogil

cdef struct Xxh3:
    xxh3_hash64_fn hash64  # XXH3_64bits_dispatch where exported, otherwise XXH3_64bits

# Return NULL if the library cannot be used; `libraries()` says why. The caller holds the GIL. The
# search runs once per process, and the result stays valid until the process ends. The only
# exception raised is one from a signal handler that ran during the search (KeyboardInterrupt). The
# result is then not recorded, and the next call searches again.
cdef const Lz4 *find_lz4() except? NULL
cdef const Zstd *find_zstd() except? NULL
cdef const Xxh3 *find_xxh3() except? NULL

# Compress a source into one frame, in `parts` equal parts with blocks of their own. The last part
# includes the remainder. Return the bytes produced, or 0 on failure.
cdef size_t zstd_compress_parts(
    const Zstd *zstd,
    void *cctx,
    void *dst,
    size_t dst_capacity,
    const void *src,
    size_t src_size,
    size_t parts,
) noexcept nogil

# Create a ZSTD_CDict with its own copy of the dictionary. Return NULL on failure. Threads may share
# it. Level 0 means level 3, as everywhere in zstd.
cdef void *zstd_make_cdict(
    const Zstd *zstd, const void *dictionary, size_t size, int level
) noexcept nogil
