"""Pages that benchmarks work on: of a workload, of another process, or of a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from compress import PAGE, real_pages

from batchzip.cli.file_pages import FilePages
from batchzip.cli.process_memory import ProcessMemory

if TYPE_CHECKING:
    import argparse

    from batchzip.buffers import Bytes


def add_inputs(parser: argparse.ArgumentParser, pages: int) -> None:
    """Add --pages, --pid and --file."""
    parser.add_argument("--pages", type=int, default=pages, help="at most so many")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--pid", type=int, help="pages of this process; default: of a workload")
    source.add_argument("--file", help="pages of this file")


def input_pages(options: argparse.Namespace) -> Bytes:
    """Read the pages asked for, shuffled, without the same-filled ones."""
    if options.file:
        with FilePages(options.file, page_size=PAGE) as file:
            found = np.concatenate([chunk.copy() for chunk in file.chunks()])
    elif options.pid:
        with ProcessMemory(options.pid, page_size=PAGE, chunk_pages=1024) as memory:
            found = np.concatenate(list(memory.chunks()))
    else:
        return real_pages(options.pages)
    words = found.view(np.uint64)
    found = found[(words != words[:, :1]).any(axis=1)]
    np.random.default_rng(1).shuffle(found)
    return np.ascontiguousarray(found[: options.pages])
