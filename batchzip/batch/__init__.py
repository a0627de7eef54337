"""The batch descriptors: pages, destination buffers, lengths and errors, passed in one call.

Kernel counterparts: `struct swap_batch_comp_data` and `struct swap_batch_decomp_data`. Unlike
there, the capacity of a destination and the bytes produced in it are two fields (`capacity`,
`dlens`), not one that is the capacity before the call and the length afterwards.

    descriptor.py  Batch: the common part, and how a backend does a share of a batch
    compress.py    CompressBatch
    decompress.py  DecompressBatch
"""

from __future__ import annotations

from batchzip.batch.compress import CompressBatch
from batchzip.batch.decompress import DecompressBatch
from batchzip.batch.descriptor import Batch

__all__ = ["Batch", "CompressBatch", "DecompressBatch"]
