"""The main function of a worker's process: the core's loop over one ring, until its owner stops it.

A codec that is a C function arrives as a plan in plain values. Any other codec is pickled. This
module does not import NumPy: see startup.py.
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
    """The fields of a plan with a native codec."""


def main(
    number: int,
    codec: bytes | Given,
    page_size: int,
    failpoint: tuple[str, int, str] | None,
    arena_fd: int,
    segment_fd: int,
) -> None:
    """Do shares until the owner stops the loop. On an error, exit with the loop's outcome."""
    memory = memoryview(mmap.mmap(segment_fd, 0))
    seal_writing(segment_fd)  # owner and worker, which write to it, have mapped it
    outcome = serve(memory, _codec(codec), page_size, number, arena_fd, failpoint)
    if outcome != ENDED:
        sys.stderr.flush() if sys.stderr is not None else None
        os._exit(outcome)


def _codec(given: bytes | Given) -> Codec | Plan:
    if isinstance(given, bytes):
        from batchzip_workers.pickled import unpickled  # noqa: PLC0415 - C functions do not need it

        codec: Codec = unpickled(given)
        return codec
    from batchzip.core.plan import Native, Plan  # noqa: PLC0415 - pickled codecs do not need it

    native, element_size, verify, floats = given
    return Plan(None, Native(*native), element_size, verify, floats)
