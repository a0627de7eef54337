"""Held: the memory that a contender's pages take, as the kernel counts it.

A fresh process makes the store and reads the pages from a file. The growth of its PSS while it
stores them is the contender's memory: objects, tables, and the allocators' rounding and unreturned
memory. One folio is stored beforehand, because its one-time allocations are not memory of pages.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from batchzip.bench.algorithm import parse_algorithms
from batchzip.bench.figure import Result
from batchzip.bench.pages import PAGE
from batchzip.bench.peer_stores import contenders
from batchzip.errors import BatchzipError
from batchzip.system.interpreter import command_for

if TYPE_CHECKING:
    from batchzip.bench.algorithm import Algorithm
    from batchzip.bench.pages import Pages
    from batchzip.bench.stores import Store


def pss_growth(algorithm: Algorithm, name: str, pages: Pages) -> int:
    """Return the bytes by which a contender's process grows with these pages.

    Raise BatchzipError if the process fails.
    """
    written = (
        f"{algorithm.name}:{algorithm.level}" if algorithm.level is not None else algorithm.name
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pages"
        path.write_bytes(pages.tobytes())
        command = command_for("from batchzip.bench.held import main; main()", "what is measured")
        command += [written, name, str(path)]
        done = subprocess.run(  # noqa: S603 - our own module in our own interpreter
            command, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise BatchzipError(f"{name} could not be measured: {done.stderr.strip()[-500:]}")
    return int(done.stdout)


def process_pss() -> int:
    """Return the PSS of this process in bytes. Shared pages count proportionally."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


def _grown(store: Store, pages: Pages) -> int:
    folio = store.folio_pages
    store.open()
    store.store(0, pages[:folio])
    store.flush()
    gc.collect()
    before = process_pss()
    for at in range(folio, len(pages), folio):
        store.store(at, pages[at : at + folio])
    store.flush()
    gc.collect()
    return process_pss() - before


def main() -> None:
    """Measure one contender in this process."""
    written, name, path = sys.argv[1:]
    (algorithm,) = parse_algorithms(written)
    pages = np.frombuffer(Path(path).read_bytes(), np.uint8).reshape(-1, PAGE)
    for store in contenders(algorithm, pages, Result({}, {}), zram=False):
        with store:
            if store.name == name:
                sys.stdout.write(str(_grown(store, pages)))
                return
    raise SystemExit(f"there is no contender named {name}")
