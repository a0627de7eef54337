"""The allocator of compressed objects in shared memory, like zsmalloc in the kernel."""

from batchzip.pool.pool import Pool

__all__ = ["Pool"]
