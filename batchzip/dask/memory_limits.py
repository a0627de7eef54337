"""MemoryLimits: how many bytes of a worker's data may be live, compressed and on disk.

    memory_limit   "auto": the worker's own; or as Dask takes it
    fractions      given, or made of Dask's settings: `distributed.worker.memory.target`, `spill`, `max-spill`

Dask's settings are read when a worker's data is made, as Dask's own buffer reads them. The worker's limit is
known later, when the data has its first value.
"""

from __future__ import annotations

import logging
import math
import sys
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import dask.config
import numpy as np
from dask.system import CPU_COUNT
from dask.utils import parse_bytes
from distributed.worker_memory import parse_memory_limit

from batchzip.checks import as_fraction, as_limit, as_positive
from batchzip.errors import BadArgument
from batchzip.wording import shown

if TYPE_CHECKING:
    from typing import SupportsFloat

    MemoryLimit: TypeAlias = SupportsFloat | str | None

_LOG = logging.getLogger("batchzip.dask")

_SETTINGS = "distributed.worker.memory"


class MemoryLimits(NamedTuple):
    """What a worker's data may have; None: no limit."""

    memory: int | str | None
    """Bytes of the worker's memory, or "auto"."""
    live: float | None
    """Fraction of it for live values."""
    compressed: float | None
    """Fraction of it for compressed pages."""
    disk: int | None
    """Bytes of the file."""

    @classmethod
    def make(
        cls, memory: MemoryLimit, live: float | None, compressed: float | None, disk: int | None
    ) -> MemoryLimits:
        """Check what was given, and take the rest from Dask's settings. Raise BadArgument."""
        target, spill = _fraction("target"), _fraction("spill")
        if live is None:
            live = None if target is None else target / 2
        else:
            live = as_fraction(live, "live")
        if compressed is None:
            of = spill if target is None else target
            compressed = None if of is None else of / 2
        else:
            compressed = as_fraction(compressed, "compressed")
        disk = _max_spill() if disk is None else as_limit(disk, "max_disk_bytes")
        return cls("auto" if _is_auto(memory) else as_memory_limit(memory), live, compressed, disk)

    def bytes_of(self, fraction: float | None, worker_limit: int | None) -> int | None:
        """Return the bytes of a fraction, in a worker with that limit; None: no limit."""
        limit = worker_limit if isinstance(self.memory, str) else self.memory
        return (
            None if limit is None or fraction is None else int(min(limit * fraction, sys.maxsize))
        )


def as_memory_limit(value: MemoryLimit) -> int | None:
    """Return a limit that Dask would take, as bytes; None for no limit. Raise BadArgument."""
    try:
        if isinstance(value, (bool, np.bool_, bytes)):
            raise TypeError  # noqa: TRY301 - as other kinds that are no size
        size = parse_bytes(value) if isinstance(value, str) else value
        if size is not None and not 0 <= float(size) < math.inf:
            raise ValueError  # noqa: TRY301 - as a text that is no size
        return parse_memory_limit(value, CPU_COUNT, logger=_LOG)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise BadArgument(
            f"memory_limit is 'auto', None, bytes, a text as '4 GiB' or a fraction of the machine's memory, not {shown(value)}"
        ) from None


def _is_auto(value: object) -> bool:
    return isinstance(value, str) and value == "auto"


def _fraction(name: str) -> float | None:
    """Return a threshold of Dask's; None where it is off."""
    value = dask.config.get(f"{_SETTINGS}.{name}")
    if value is None or value is False or value == 0:
        return None
    what = f"Dask's setting {_SETTINGS}.{name}"
    fraction = as_positive(value, what)
    if fraction == math.inf:
        raise BadArgument(f"{what} is a fraction of memory, or False, not {shown(value)}")
    return fraction


def _max_spill() -> int | None:
    value = dask.config.get(f"{_SETTINGS}.max-spill")
    if value is None or value is False:
        return None
    name = f"Dask's setting {_SETTINGS}.max-spill"
    try:
        return as_limit(parse_bytes(value) if isinstance(value, (str, float)) else value, name)
    except (ValueError, OverflowError):
        raise BadArgument(
            f"{name} is False, bytes or a text as '4 GiB', not {shown(value)}"
        ) from None
