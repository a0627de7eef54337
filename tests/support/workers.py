"""Batches for engines with workers, and checks of what comes back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from batchzip import CompressBatch, DecompressBatch, Engine

if TYPE_CHECKING:
    import numpy.typing as npt


PAGE = 4096


def some_pages(count: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Pages that compress to about a third, each different."""
    rng = np.random.default_rng(seed)
    pages = rng.integers(0, 6, (count, PAGE), dtype=np.uint8)
    pages[:, :4] = 0  # no marks by chance
    return pages


def check_round_trip(
    engine: Engine, pages: npt.NDArray[np.uint8], failed: tuple[int, ...] = ()
) -> CompressBatch:
    """Compress and restore; every page but the failed ones comes back byte for byte."""
    batch = CompressBatch(pages)
    engine.compress(batch)
    assert np.flatnonzero(batch.errors).tolist() == sorted(failed)
    good = [index for index in range(len(pages)) if index not in failed]
    back = DecompressBatch([batch.output(index) for index in good])
    engine.decompress(back)
    assert not back.errors.any()
    np.testing.assert_array_equal(back.pages, pages[good])
    return batch


def cpu_ticks(pid: int) -> int:
    """Return the CPU time of a process, in the ticks of proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])
