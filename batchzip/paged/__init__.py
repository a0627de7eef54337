"""Paged memory: arrays larger than their RAM budget, with cold pages compressed in a store.

memory.py        the public interface: PagedMemory, paged_empty, memory_of
blocks.py        the pages of one array
ranges.py        the address range of an array
region.py        the group of the store that holds the pages
watcher.py       the thread that makes room in the pool
statistics.py    counters, and the latency of faults
report.py        the result of a check
availability.py  whether this system supports paged memory, and why not
machine.py       the memory limit of the process

Threads of the core (core/pager.pyx) serve the faults, find cold pages and compress them. They never
take the GIL.
"""

from __future__ import annotations

from batchzip.paged.availability import Availability, available
from batchzip.paged.memory import PagedMemory, memory_of, paged_empty
from batchzip.paged.report import PagedDamage, PagedReport
from batchzip.paged.statistics import PagedStatistics

__all__ = [
    "Availability",
    "PagedDamage",
    "PagedMemory",
    "PagedReport",
    "PagedStatistics",
    "available",
    "memory_of",
    "paged_empty",
]
