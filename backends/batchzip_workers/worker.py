"""What a worker's process runs: the core's loop over one ring, until its owner says stop.

A codec that is a C function comes as a plan, in plain values; any other codec is pickled. It imports
no NumPy: see startup.py.
"""

from __future__ import annotations

import mmap
import os
import sys

from batchzip.core.lane import ENDED, serve
from batchzip.system.descriptors import seal_writing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from batchzip.codecs import Codec
    from batchzip.core.plan import Plan

    Given = tuple[tuple[str, int, bytes | None, int], int, bool, bool]
    """A plan with a native codec, taken apart."""


def main(
    number: int,
    codec: bytes | Given,
    page_size: int,
    failpoint: tuple[str, int, str] | None,
    arena_fd: int,
    segment_fd: int,
) -> None:
    """Take shares until the owner says stop. The process exits with how the loop ended."""
    memory = memoryview(mmap.mmap(segment_fd, 0))
    seal_writing(segment_fd)  # both who write have mapped it
    outcome = serve(memory, _codec(codec), page_size, number, arena_fd, failpoint)
    if outcome != ENDED:
        sys.stderr.flush() if sys.stderr is not None else None
        os._exit(outcome)


def _codec(given: bytes | Given) -> Codec | Plan:
    if isinstance(given, bytes):
        from batchzip_workers.pickled import unpickled  # noqa: PLC0415 - C functions need none of it

        codec: Codec = unpickled(given)
        return codec
    from batchzip.core.plan import Native, Plan  # noqa: PLC0415 - pickled codecs bring it

    native, element_size, verify, floats = given
    return Plan(None, Native(*native), element_size, verify, floats)
