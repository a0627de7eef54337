"""MemoryLimits: how many bytes of a worker's data may be live, compressed and on disk.

    memory_limit   "auto": the worker's own; otherwise a limit as Dask takes it
    fractions      given, or derived from Dask's settings `target`, `spill` and `max-spill` in
                   `distributed.worker.memory`

Dask's settings are read when a worker's data is made, as for Dask's own buffer. The worker's limit
is known later, when the data gets its first value.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import dask.config
import numpy as np
from dask.system import CPU_COUNT
from dask.utils import parse_bytes
from distributed.worker_memory import parse_memory_limit

from batchzip.arguments.checks import as_fraction, as_limit, as_positive
from batchzip.errors import BadArgument
from batchzip.wording import shown

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import SupportsFloat

    MemoryLimit: TypeAlias = SupportsFloat | str | None

_LOG = logging.getLogger("batchzip.dask")

_SETTINGS = "distributed.worker.memory"

_ASKED_S = 0.02
"""Seconds for which the process's memory is not measured again. A measurement takes about 20 µs."""


class MemoryLimits(NamedTuple):
    """Limits of a worker's data. None means no limit."""

    memory: int | str | None
    """Bytes of the worker's memory, or "auto"."""
    live: float | None
    """Fraction of `memory` for live values, if given."""
    compressed: float | None
    """Fraction of `memory` for compressed pages."""
    both: float | None
    """Fraction of `memory` for live values and compressed pages together."""
    target: float | None
    """Fraction of the worker's limit that Dask allows the process (`spill` if `target` is off)."""
    spill: float | None
    """Fraction of the worker's limit from which Dask spills."""
    disk: int | None
    """Bytes of all files."""

    @classmethod
    def make(
        cls, memory: MemoryLimit, live: float | None, compressed: float | None, disk: int | None
    ) -> MemoryLimits:
        """Check the arguments, and take the rest from Dask's settings. Raise BadArgument."""
        target, spill = _fraction("target"), _fraction("spill")
        process = spill if target is None else target
        if live is not None:
            live = as_fraction(live, "live")
        if compressed is None:
            compressed = None if process is None else process / 2
        else:
            compressed = as_fraction(compressed, "compressed")
        disk = _max_spill() if disk is None else as_limit(disk, "max_disk_bytes")
        bytes_or_auto = "auto" if _is_auto(memory) else as_memory_limit(memory)
        return cls(bytes_or_auto, live, compressed, target, process, spill, disk)

    def bytes_of(self, fraction: float | None, worker_limit: int | None) -> int | None:
        """Return a fraction in bytes for a worker with that limit. None means no limit."""
        limit = worker_limit if isinstance(self.memory, str) else self.memory
        return (
            None if limit is None or fraction is None else int(min(limit * fraction, sys.maxsize))
        )


class ValueRoom:
    """The bytes that a worker's live values and compressed pages may use now. None means no limit.

    `process` returns the memory of the worker's process as Dask counts it. Running tasks, modules
    and messages use some of it, too. Values and pages share what these leave below Dask's
    thresholds. Dask itself checks the process ten times per second, and in that time hundreds of
    megabytes of values can come back. With a memory limit that was given, the process does not
    count.
    """

    def __init__(
        self, limits: MemoryLimits, worker_limit: int | None, process: Callable[[], int] | None
    ) -> None:
        self._live = limits.bytes_of(limits.live, worker_limit)
        self._both = limits.bytes_of(limits.both, worker_limit)
        self._compressed = limits.bytes_of(limits.compressed, worker_limit)
        self._process = None if limits.memory != "auto" or worker_limit is None else process
        self._target, self._spill = math.inf, math.inf
        if self._process is not None and worker_limit is not None:
            self._target = worker_limit * (limits.target or math.inf)
            self._spill = worker_limit * (limits.spill or math.inf)
        self._part = 1.0
        if limits.compressed is not None and limits.target is not None:
            self._part = min(1.0, limits.compressed / limits.target)
        self._others = 0
        """Bytes of everything else in the process, as last measured."""
        self._asked = -math.inf

    def look(self, pool: int, live: float, *, now: bool) -> None:
        """Measure the process without `pool` and `live` bytes; unless `now`, only if it is due."""
        at = time.monotonic()
        if self._process is not None and (now or at - self._asked > _ASKED_S):
            self._others = max(0, self._process() - pool - int(live))
            self._asked = at

    def live(self, pool: int) -> int:
        """Return the bytes that live values may use beside `pool` bytes of compressed pages.

        This is at least a quarter of the limit, however much the rest of the process uses. That
        rest is often values that tasks are using, and compressing those would free nothing.
        """
        most = math.inf if self._live is None else self._live
        if self._live is None and self._both is not None:
            most = max(self._both // 2, self._both - pool)
        return int(min(most, max(most / 4, self._spill - self._others - pool), sys.maxsize))

    def compressed(self, pool: int, *, pressed: bool) -> int | None:
        """Return the bytes that compressed pages may use.

        This may be less than they use now, but only if Dask reports that the process is too large
        (`pressed`). Otherwise running tasks would make the limit swing.
        """
        left = max(0.0, (self._target - self._others) * self._part)
        if not pressed:
            left = max(left, pool)
        most = math.inf if self._compressed is None else self._compressed
        least = min(left, most)
        return None if least == math.inf else int(least)


def as_memory_limit(value: MemoryLimit) -> int | None:
    """Return in bytes a limit that Dask would accept, or None for no limit. Raise BadArgument."""
    try:
        if isinstance(value, (bool, np.bool_, bytes)):
            raise TypeError  # noqa: TRY301 - handled like other types that are not sizes
        size = parse_bytes(value) if isinstance(value, str) else value
        if size is not None and not 0 <= float(size) < math.inf:
            raise ValueError  # noqa: TRY301 - handled like texts that are not sizes
        return parse_memory_limit(value, CPU_COUNT, logger=_LOG)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise BadArgument(
            "memory_limit must be 'auto', None, bytes, a text such as '4 GiB', or a fraction of "
            f"the machine's memory, not {shown(value)}"
        ) from None


def _is_auto(value: object) -> bool:
    return isinstance(value, str) and value == "auto"


def _fraction(name: str) -> float | None:
    """Return one of Dask's thresholds, or None if it is off."""
    value = dask.config.get(f"{_SETTINGS}.{name}")
    if value is None or value is False or value == 0:
        return None
    what = f"Dask's setting {_SETTINGS}.{name}"
    fraction = as_positive(value, what)
    if fraction == math.inf:
        raise BadArgument(f"{what} must be a fraction of memory, or False, not {shown(value)}")
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
            f"{name} must be False, bytes or a text such as '4 GiB', not {shown(value)}"
        ) from None
