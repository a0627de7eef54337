"""The C libraries that the core calls: lz4, zstd and xxh3, from the packages that contain them.

Each process searches for a library once, when it first needs it. It opens and tests the library,
and keeps it open. It never imports the package. Thread-safe.
"""

from typing import NamedTuple

from batchzip.arguments.buffers import Buffer

class Library(NamedTuple):
    """A C library and the result of the search for it."""

    name: str
    """"lz4", "zstd" or "xxh3"."""
    version: str | None
    """The library's version, or None if it was not found."""
    path: str | None
    """The shared object that has the functions, or None if it was not found."""
    problem: str | None
    """Why the library is not used, or None if it is."""

def libraries() -> tuple[Library, ...]:
    """Return the state of each C library. Search for those that were not needed yet."""

def xxh3_64(data: Buffer) -> int:
    """Return XXH3 (64 bits, seed 0) of a contiguous buffer.

    Use the Python package xxhash if the C library cannot be used.
    """
