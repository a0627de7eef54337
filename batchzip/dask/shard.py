"""Shard: one part of a sharded store, an actor: a SwapStore in its worker's memory, with its own engine.

    worker process:   Shard ── SwapStore ── Engine ── worker processes of its own, where it has some

Indices are the sharded store's own. What a method raises is returned, wrapped, and not mistaken for what
the way to it raises.

Dask calls an actor's methods one after the other, in a thread for them alone. A shard is closed when its actor
is dropped, or its worker ends.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from distributed import get_worker

from batchzip.dask.worker_end import end_with
from batchzip.engine import Engine
from batchzip.store import Counters, SwapStore

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from batchzip.buffers import Bytes


@dataclass(frozen=True, slots=True)
class Failed:
    """What a method of a shard raised."""

    error: Exception


class Shard:
    """Pages of some stripes of indices, in this process."""

    _engine: Engine | None = None
    _store: SwapStore

    def open(self, engine: Mapping[str, Any], store: Mapping[str, Any]) -> tuple[int, int]:
        """Make engine and store with these options; this process's id, and the page size."""
        made = Engine(**engine)
        try:
            self._store = SwapStore(made, **store)
        except BaseException:
            made.close()
            raise
        self._engine = made
        with contextlib.suppress(ValueError):  # there is no worker here
            if not end_with(get_worker(), self):
                self.close()
        return os.getpid(), made.page_size

    def put(self, runs: Sequence[tuple[int, int]], pages: Bytes) -> None:
        """Store pages in runs (index, count): all or none, and then nothing is held there."""
        at = 0
        try:
            for index, count in runs:
                self._store.store(index, np.ascontiguousarray(pages[at : at + count]))
                at += count
        except BaseException:
            for index, count in runs:
                self._store.invalidate(index, count)
            raise

    def get(self, index: int) -> bytes:
        """Give one page."""
        return self._store.load(index)

    def get_many(self, indices: npt.NDArray[np.int64]) -> Bytes:
        """Give pages, as one array."""
        return self._store.load_many(indices)

    def drop(self, index: int, count: int) -> int:
        """Forget pages; how many there were."""
        return self._store.invalidate(index, count)

    def has(self, index: int) -> bool:
        """Whether there is a page."""
        return index in self._store

    def status(self) -> tuple[int, Counters]:
        """Count the pages, and give the counters."""
        return len(self._store), self._store.counters

    def close(self) -> None:
        """Release everything."""
        if self._engine is not None:
            self._store.close()
            self._engine.close()

    def __del__(self) -> None:
        self.close()
