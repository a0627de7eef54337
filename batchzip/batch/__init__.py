"""The batch descriptors: pages, destination buffers, lengths and errors handed over in one go.

Kernel counterparts: `struct swap_batch_comp_data` and `struct swap_batch_decomp_data`.
What differs: the capacity of a destination and the bytes produced in it are two things here
(`capacity`, `dlens`), never one field that means the one before and the other after.

    descriptor.py  Batch: what both have, and how a backend does a share of one
    compress.py    CompressBatch
    decompress.py  DecompressBatch
"""

from __future__ import annotations

from batchzip.batch.compress import CompressBatch
from batchzip.batch.decompress import DecompressBatch
from batchzip.batch.descriptor import Batch

__all__ = ["Batch", "CompressBatch", "DecompressBatch"]
