"""The C libraries that the core calls: lz4, zstd and xxh3, found in the packages that bring them.

A library is looked for once in each process, when it is first needed. It is opened and tried, and
stays open; the package is never imported. Thread-safe.
"""

from typing import NamedTuple

from batchzip.arguments.buffers import Buffer

class Library(NamedTuple):
    """A C library, and what was found of it here."""

    name: str
    """"lz4", "zstd" or "xxh3"."""
    version: str | None
    """None where nothing was found."""
    path: str | None
    """Of the shared object that has the functions; None where nothing was found."""
    problem: str | None
    """Why it is not used; None: it is."""

def libraries() -> tuple[Library, ...]:
    """Return what was found of each C library; looks for those that nobody asked for yet."""

def xxh3_64(data: Buffer) -> int:
    """Return XXH3 (64 bits, seed 0) of a contiguous buffer, by the package xxhash if need be."""
