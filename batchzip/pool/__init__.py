"""The allocator of compressed objects: zsmalloc's part of the engine, in shared memory."""

from batchzip.pool.pool import Pool
from batchzip.pool.reader import PoolReader

__all__ = ["Pool", "PoolReader"]
