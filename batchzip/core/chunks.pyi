"""Chunks: the stored form of a value that is too long to be compressed in one call."""

from typing import Any, final

from batchzip.core.coder import Coders
from batchzip.core.ring import Ring

MOST_CHUNKED: int
"""The longest value, in bytes, that is stored in chunks."""

@final
class Chunked:
    """The stored form of a value in chunks, in private memory. It never changes."""

@final
class ChunkWork:
    """What one value is compressed or restored with: a codec, lanes, and a Divider."""

    def __init__(
        self,
        coders: Coders,
        number: int,
        divider: Any,
        rings: tuple[Ring, ...],
        lane_coders: list[Any] | None,
        page_size: int,
    ) -> None: ...
