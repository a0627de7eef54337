"""Share: pages as they travel, and what a Dask worker does with them.

    TaskPages                                             Outcome
      codec    the pickled codec                        results  int32: bytes of each, or a negative errno
      groups   operation, capacity, number of pages     data     outputs, one behind the other
      data     inputs, one behind the other      ─▶     busy_s   seconds that a worker's thread took
      lengths  uint32: bytes of each

A share has pages of one request or of several; a group are those in a row that are done alike. `data`,
`lengths` and `results` are arrays: pickle 5 hands them over as buffers beside the message, so a share is a
few frames whatever its number of pages. What is said of `Batch.accept` holds for `data`.

A message that a Dask worker cannot unpickle ends its connection, then the worker, then its nanny. So what
travels there names nothing of batchzip (`as_task`): where that is missing, the task fails and nothing else.

A worker's thread keeps the codec contexts that it used last, as making one takes longer than most
shares.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from distributed.protocol import pickle

from batchzip.arguments import buffers
from batchzip.batch import CompressBatch, DecompressBatch
from batchzip.core.coder import Coders

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from batchzip.arguments.buffers import Bytes, Flat
    from batchzip.batch import Batch

_CODECS = 8
"""Codecs that a process keeps ready: several engines use one cluster, and each holds some 100 KiB."""

_CALL = "__import__('batchzip_dask.task_pages', fromlist=['task_pages']).run_share(*share)"


class TaskGroup(NamedTuple):
    """Pages of a share that lie in a row and are done alike."""

    operation: int
    capacity: int
    """Most bytes an output may have."""
    pages: int


class TaskPages(NamedTuple):
    """Pages and compressed sources, and what is to be done with them."""

    codec: bytes
    page_size: int
    groups: tuple[TaskGroup, ...]
    data: Bytes
    lengths: npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a share."""

    results: npt.NDArray[np.int32]
    data: Bytes
    busy_s: float


def as_task(share: TaskPages) -> Callable[[], Outcome]:
    """Return what does a share when it is called, and unpickles without batchzip."""
    return partial(
        eval, _CALL, {}, {"share": (*share[:2], tuple(map(tuple, share[2])), *share[3:])}
    )


def run_share(
    codec: bytes,
    page_size: int,
    groups: tuple[tuple[int, int, int], ...],
    data: Bytes,
    lengths: npt.NDArray[np.uint32],
) -> Outcome:
    """Do a share; a page that fails has its negative errno and hides no other."""
    began = time.perf_counter()
    flat = buffers.flat(data)
    ends = np.cumsum(lengths, dtype=np.int64).tolist()
    inputs: list[Flat] = [flat[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    coders = _coders(codec, page_size)
    parts: list[Bytes] = []
    results: list[npt.NDArray[np.int32]] = []
    at = 0
    for operation, capacity, pages in groups:
        batch, outputs = _run(coders, page_size, operation, capacity, inputs[at : at + pages])
        at += pages
        parts.append(outputs)
        results.append(np.where(batch.errors != 0, batch.errors, batch.dlens.astype(np.int32)))
    return Outcome(
        np.concatenate(results),
        parts[0] if len(parts) == 1 else np.concatenate(parts),
        time.perf_counter() - began,
    )


def _run(
    coders: Coders, page_size: int, operation: int, capacity: int, inputs: list[Flat]
) -> tuple[Batch, Bytes]:
    if operation == CompressBatch.operation:
        packed = CompressBatch(inputs, page_size=page_size, capacity=capacity)
        packed.pointers.run(coders)
        return packed, np.frombuffer(b"".join(packed.outputs()), np.uint8)
    restored = DecompressBatch(inputs, page_size=page_size)
    restored.pointers.run(coders)
    return restored, restored.pages.reshape(-1)


@lru_cache(_CODECS)
def _coders(codec: bytes, page_size: int) -> Coders:
    return Coders(pickle.loads(codec), page_size)
