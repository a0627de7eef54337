from libc.stdint cimport uint8_t, uint32_t, uint64_t

# Heap memory. A test can make the n-th request from now fail: see fail_allocation() in memory.pyx.
cdef void *bz_malloc(size_t size) noexcept nogil
cdef void *bz_calloc(size_t count, size_t size) noexcept nogil
cdef void *bz_realloc(void *memory, size_t size) noexcept nogil
# Call it before asking the system for shared memory. It counts as a request, and a test can make it
# return False.
cdef bint bz_may_reserve() noexcept nogil

cdef struct Memory:  # a memfd with one mapping, or none if `base` is NULL
    int fd
    uint8_t *base  # moves when the memory grows
    uint64_t size  # bytes of address space, all of them mapped
    uint64_t device  # device and inode tell whether `fd` still belongs to this memory
    uint64_t inode

cdef int memory_create(
    Memory *memory, str name, uint64_t most, uint64_t least, bint keeps=*
) except -1
cdef int memory_grow(Memory *memory, uint64_t size) noexcept nogil
cdef int memory_reserve(Memory *memory, uint64_t offset, uint64_t length) noexcept nogil
cdef int memory_release(Memory *memory, uint64_t offset, uint64_t length) noexcept nogil
cdef uint64_t memory_held(const Memory *memory) noexcept nogil
cdef void memory_close(Memory *memory) noexcept nogil
cdef uint64_t machine_page() noexcept nogil
