"""Values of a Dask worker, and the files that they are written to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from batchzip.dask import WorkerData

MIB = 1 << 20
SHORT = 256 << 10


def noise(seed: int, size: int = MIB) -> np.ndarray:
    """Return bytes that no codec makes smaller."""
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def counts(seed: int, size: int = MIB) -> np.ndarray:
    """Return small numbers, which every codec makes smaller."""
    return np.random.default_rng(seed).poisson(3, size // 8)


def text(seed: int, size: int = MIB) -> np.ndarray:
    """Return the bytes of a few words, again and again."""
    words = np.array([b"order   ", b"customer", b"invoice ", b"paid    "])
    return np.random.default_rng(seed).choice(words, size // 8).view(np.uint8)


def an_array(seed: int, size: int = SHORT) -> np.ndarray:
    """Return `counts` of a value of which several are live at once."""
    return counts(seed, size)


def some_noise(seed: int, size: int = SHORT) -> np.ndarray:
    """Return `noise` of a value of which several are live at once."""
    return noise(seed, size)


def kept(data: WorkerData) -> int:
    """Return the bytes of what was compressed, in memory and on disk."""
    store = data._values.store
    return data.spilled_total.disk + (store.status()["compressed_bytes"] if store else 0)


def files_of(folder: Path) -> list[int]:
    """Return the descriptors of files without names in a folder."""
    found = []
    for fd in Path("/proc/self/fd").iterdir():
        try:
            target = str(fd.readlink())
        except OSError:
            continue
        if target.startswith(f"{folder}/") and target.endswith("(deleted)"):
            found.append(int(fd.name))
    return found
