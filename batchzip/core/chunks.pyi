"""Chunks: the stored form of a value that is too long to be compressed in one call."""

from typing import final

MOST_CHUNKED: int
"""The longest value, in bytes, that is stored in chunks."""

@final
class Chunked:
    """The stored form of a value in chunks, in private memory. It never changes."""

@final
class ChunkWork:
    """What one value is compressed or restored with: a codec, lanes, and a Divider."""
