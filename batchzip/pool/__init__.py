"""The allocator of compressed objects: zsmalloc's part of the engine, in one shared segment."""

from batchzip.pool.pool import Pool

__all__ = ["Pool"]
