"""Load for the stress tests: batches of every kind, checked against the codec called by hand."""

from __future__ import annotations

import errno
import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from batchzip import CompressBatch, DecompressBatch, Engine
from batchzip.lanes import LanesBackend

if TYPE_CHECKING:
    from collections.abc import Collection

    import numpy.typing as npt

    from batchzip.batch import Batch
    from batchzip.codecs import Codec
    from batchzip.core.ring import Ring

PAGE = 4096

_BLANK = 0xA5
"""What outputs hold before they are written, so that one that never was is seen."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What is done with a batch, where it lies, and how it is handed over."""

    compress: bool
    placed: bool
    submitted: bool


KINDS = [Kind(*choice) for choice in itertools.product((True, False), repeat=3)]


def make_pages(count: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Pages each unlike the others, from nearly empty to ones that do not compress.

    Every other one is hard: as shares interleave, a worker next to one caller takes longer than it.
    """
    rng = np.random.default_rng(seed)
    pages = rng.integers(0, 6, (count, PAGE), dtype=np.uint8)
    pages[::2, 256:] = 0
    pages[1::6] = rng.integers(0, 256, pages[1::6].shape, dtype=np.uint8)
    return pages


class Load:
    """Pages, and what `codec` called by hand makes of them. Threads may share one."""

    def __init__(self, codec: Codec, count: int, seed: int = 0) -> None:
        self.pages = make_pages(count, seed)
        compress = codec.compressor(PAGE)
        self.outputs = [compress(memoryview(page)) for page in self.pages]

    def run(
        self,
        engine: Engine,
        kind: Kind,
        start: int,
        count: int,
        deadline_s: float | None = None,
    ) -> int:
        """Do a batch of so many pages from `start` on; how many its deadline left undone.

        Every other result must be right.
        """
        batch = self.make_batch(engine, kind, start, count)
        return self.run_again(engine, kind, batch, start, deadline_s)

    def run_again(
        self,
        engine: Engine,
        kind: Kind,
        batch: Batch,
        start: int,
        deadline_s: float | None = None,
        *,
        may_kill: bool = False,
    ) -> int:
        """Do a batch that was made for it. Pages may be found deadly if they `may_kill`."""
        blank(batch)
        do(engine, batch, submitted=kind.submitted, deadline_s=deadline_s)
        allowed = {-errno.EOWNERDEAD} if may_kill else set()
        return self.check(batch, start, allowed | ({-errno.ETIMEDOUT} if deadline_s else set()))

    def make_batch(self, engine: Engine, kind: Kind, start: int, count: int) -> Batch:
        array = engine.arena if kind.placed else _plain
        stop = start + count
        if not kind.compress:
            return DecompressBatch(self.outputs[start:stop], pages=array(count, PAGE))
        pages = array(count, PAGE)
        pages[:] = self.pages[start:stop]
        return CompressBatch(pages, dsts=array(count, 2 * PAGE))

    def check(self, batch: Batch, start: int, allowed: Collection[int] = ()) -> int:
        """Compare the results; how many pages have one of the errors that are `allowed`."""
        assert set(batch.errors.tolist()) <= {0, *allowed}
        assert not batch.dlens[batch.errors != 0].any()
        done = np.flatnonzero(batch.errors == 0).tolist()
        if isinstance(batch, CompressBatch):
            got = [bytes(batch.output(index)) for index in done]
            assert got == [self.outputs[start + index] for index in done]
        else:
            assert isinstance(batch, DecompressBatch)
            assert batch.dlens[done].tolist() == [PAGE] * len(done)
            expected = self.pages[start : start + len(batch)]
            np.testing.assert_array_equal(batch.pages[done], expected[done])
        return len(batch) - len(done)


def blank(batch: Batch) -> None:
    """Overwrite what an earlier run left, so that it is not taken for this one's."""
    (batch.dsts if isinstance(batch, CompressBatch) else batch.pages).fill(_BLANK)  # type: ignore[attr-defined]


def do(
    engine: Engine, batch: Batch, *, submitted: bool = False, deadline_s: float | None = None
) -> None:
    """Do a batch of either operation, one way or the other."""
    if submitted:
        engine.submit(batch, deadline_s=deadline_s).wait(HANG_LIMIT_S)
    elif isinstance(batch, CompressBatch):
        engine.compress(batch)
    else:
        assert isinstance(batch, DecompressBatch)
        engine.decompress(batch)


HANG_LIMIT_S = 120.0
"""Seconds after which something hangs, however slow the machine."""


def _plain(rows: int, width: int) -> npt.NDArray[np.uint8]:
    return np.empty((rows, width), np.uint8)


def rings(engine: Engine) -> tuple[Ring, ...]:
    assert isinstance(engine.backend, LanesBackend)
    return engine.backend.rings


def assert_all_slots_are_free(engine: Engine) -> None:
    """No slot is held by anybody; those given up are free once their lane is done with them."""
    deadline = time.monotonic() + HANG_LIMIT_S
    for ring in rings(engine):
        while not (ring.dead or ring.is_unused):
            assert time.monotonic() < deadline, "a slot is held by nobody"
            time.sleep(0.001)


def state(pid: int) -> str:
    """State letter of a process, as in /proc; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return ""


def is_alive(pid: int) -> bool:
    return state(pid) not in ("", "Z", "X")
