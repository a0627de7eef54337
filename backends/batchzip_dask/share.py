"""Share: some pages of a batch as they travel, and what a Dask worker does with them.

    Share                                          Outcome
      codec    the pickled codec                     results  int32: bytes of each, or a negative errno
      data     inputs, one behind the other   ─▶     data     outputs, one behind the other
      lengths  uint32: bytes of each

`data`, `lengths` and `results` are arrays: pickle 5 hands them over as buffers beside the message, so a
share is a few frames whatever its number of pages. What is said of `Batch.accept` holds for `data`.

A worker's thread keeps the codec contexts that it used last, as making one takes longer than most
shares.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from distributed.protocol import pickle

from batchzip import buffers
from batchzip.batch import CompressBatch, DecompressBatch
from batchzip.core.coder import Coders

if TYPE_CHECKING:
    import numpy.typing as npt

    from batchzip.batch import Batch
    from batchzip.buffers import Bytes

_CODECS = 8
"""Codecs that a process keeps ready: several engines use one cluster, and each holds some 100 KiB."""


@dataclass(frozen=True, slots=True)
class Share:
    """Pages or compressed sources, and what is to be done with them."""

    operation: int
    codec: bytes
    page_size: int
    capacity: int
    """Most bytes an output may have."""
    data: Bytes
    lengths: npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a share."""

    results: npt.NDArray[np.int32]
    data: Bytes


def run_share(share: Share) -> Outcome:
    """Do a share; a page that fails has its negative errno and hides no other."""
    flat = buffers.flat(share.data)
    inputs, at = [], 0
    for length in share.lengths.tolist():
        inputs.append(flat[at : at + length])
        at += length
    coders = _coders(share.codec, share.page_size)
    batch: Batch
    if share.operation == CompressBatch.operation:
        capacity = min(share.capacity, 2 * share.page_size)
        batch = packed = CompressBatch(inputs, page_size=share.page_size, capacity=capacity)
        packed.pointers.run(coders)
        data = np.frombuffer(b"".join(packed.outputs()), np.uint8)
    else:
        batch = restored = DecompressBatch(inputs, page_size=share.page_size)
        restored.pointers.run(coders)
        data = restored.pages.reshape(-1)
    results = np.where(batch.errors != 0, batch.errors, batch.dlens.astype(np.int32))
    return Outcome(results, data)


@lru_cache(_CODECS)
def _coders(codec: bytes, page_size: int) -> Coders:
    return Coders(pickle.loads(codec), page_size)
