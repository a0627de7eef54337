"""Share: some pages of a batch as they travel, and what a Dask worker does with them.

    Share                                          Outcome
      codec    the pickled codec                     results  int32: bytes of each, or a negative errno
      data     inputs, one behind the other   ─▶     data     outputs, one behind the other
      lengths  uint32: bytes of each

`data`, `lengths` and `results` are arrays: pickle 5 hands them over as buffers beside the message, so a
share is a few frames whatever its number of pages. What is about `accept_packed` holds for `data`.

A worker's thread keeps the codec contexts that it used last, as making one takes longer than most
shares.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from distributed.protocol import pickle

from batchzip import buffers
from batchzip.codecs.context import COMPRESS, Context

if TYPE_CHECKING:
    import numpy.typing as npt

    from batchzip.batch.descriptor import Results
    from batchzip.buffers import Bytes

_CONTEXTS = 8
"""Codec contexts a thread keeps: several engines use one cluster, and each holds some 100 KiB."""

_local = threading.local()


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

    results: Results
    data: Bytes


def run_share(share: Share) -> Outcome:
    """Do a share; a page that fails has its negative errno and hides no other."""
    context = _context(share.codec, share.page_size)
    flat = buffers.flat(share.data)
    inputs, at = [], 0
    for length in share.lengths.tolist():
        inputs.append(flat[at : at + length])
        at += length
    results = np.zeros(len(inputs), np.int32)
    everything = range(len(inputs))
    if share.operation == COMPRESS:
        capacity = min(share.capacity, 2 * share.page_size)
        data = np.empty(len(inputs) * capacity, np.uint8)
        lengths = buffers.flat(results.view(np.uint8)).cast("I")
        errors = context.compress_into(inputs, buffers.flat(data), 0, lengths, everything, capacity)
        data = data[: int(results.sum())].copy()  # what is sent is no view of the whole room
    else:
        data = np.zeros(len(inputs) * share.page_size, np.uint8)
        errors = context.decompress_into(inputs, buffers.flat(data), share.page_size, everything)
        results.fill(share.page_size)
    for index, code in errors.items():
        results[index] = code
    return Outcome(results, data)


def _context(codec: bytes, page_size: int) -> Context:
    contexts: OrderedDict[tuple[bytes, int], Context]
    try:
        contexts = _local.contexts
    except AttributeError:
        contexts = _local.contexts = OrderedDict()
    key = codec, page_size
    context = contexts.pop(key, None)
    if context is None:
        context = Context(pickle.loads(codec), page_size)
        if len(contexts) == _CONTEXTS:
            contexts.popitem(last=False)
    contexts[key] = context
    return context
