"""TaskPages: what a task carries, and what a Dask worker does with it.

    TaskPages                                    Outcome
      codec    the pickled codec                   results  int32: bytes, or a negative errno
      groups   operation, capacity, pages          data     the outputs, concatenated
      data     the inputs, concatenated      ─▶    busy_s   seconds of the worker's thread
      lengths  uint32: bytes per input

A task has pages of one or more requests. A group is a run of pages with the same operation and
capacity. `data`, `lengths` and `results` are arrays, which pickle 5 passes as buffers beside the
message. So a task has only a few frames, whatever its number of pages. The owner does not trust
`data` and `results`; `Batch.accept` checks them.

If a Dask worker cannot unpickle a message, its connection ends, then the worker, then its nanny. So
the pickled task names nothing of batchzip (`as_task`). Without batchzip, only the task fails.

A worker's process keeps the codec contexts that it used last, because making one takes longer than
most tasks.
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
"""Codecs that a process keeps. Several engines may use one cluster; each codec holds about 100
KiB."""

_CALL = "__import__('batchzip_dask.task_pages', fromlist=['task_pages']).run_share(*share)"


class TaskGroup(NamedTuple):
    """A run of pages in a task with the same operation and capacity."""

    operation: int
    capacity: int
    """Maximum bytes of an output."""
    pages: int


class TaskPages(NamedTuple):
    """Inputs, and what a worker is to do with them."""

    codec: bytes
    page_size: int
    groups: tuple[TaskGroup, ...]
    data: Bytes
    lengths: npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The results of a task."""

    results: npt.NDArray[np.int32]
    data: Bytes
    busy_s: float


def as_task(share: TaskPages) -> Callable[[], Outcome]:
    """Return a callable that runs the task and can be unpickled without batchzip."""
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
    """Run a task. Pages fail one by one, each with its negative errno."""
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
