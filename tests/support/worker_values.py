"""Values of a Dask worker, and the files that they are written to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchzip.dask import WorkerData


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
