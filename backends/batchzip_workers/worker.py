"""What a worker's process runs: the core's loop over one ring, until its owner says stop.

A codec that is a C function comes as a plan, in plain values; any other codec is pickled. It imports
no NumPy: see startup.py.
"""

from __future__ import annotations

import os
import pickle
import sys

from batchzip.core.ring import ENDED, serve
from batchzip.segment import Segment


def main(
    number: int,
    codec: bytes | tuple[tuple[str, int, bytes | None], int, bool],
    page_size: int,
    failpoint: tuple[str, int, str] | None,
    arena_fd: int,
    segment_fd: int,
) -> None:
    """Take shares until the owner says stop. The process exits with how the loop ended."""
    segment = Segment.attach(segment_fd)
    outcome = serve(segment.view, _codec(codec), page_size, number, arena_fd, failpoint)
    if outcome != ENDED:
        sys.stderr.flush() if sys.stderr is not None else None
        os._exit(outcome)


def _codec(given: bytes | tuple[tuple[str, int, bytes | None], int, bool]) -> object:
    if isinstance(given, bytes):
        return pickle.loads(given)
    from batchzip.core.plan import Native, Plan  # noqa: PLC0415 - pickled codecs bring it

    native, element_size, verify = given
    return Plan(None, Native(*native), element_size, verify)
