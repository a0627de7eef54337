"""The sources and tools from which this core was built, from macros that hatch_build.py defines."""

cdef extern from *:
    const char* BATCHZIP_SOURCE_DIGEST
    const char* BATCHZIP_COMPILER
    const char* BATCHZIP_PROFILE
    const char* BATCHZIP_CYTHON

SOURCE_DIGEST = BATCHZIP_SOURCE_DIGEST.decode()
COMPILER = BATCHZIP_COMPILER.decode()
PROFILE = BATCHZIP_PROFILE.decode()
CYTHON = BATCHZIP_CYTHON.decode()
