"""The allocator of compressed objects: zsmalloc's part of the engine, in shared memory."""

from batchzip.pool.pool import Pool

__all__ = ["Pool"]
