"""Paged memory: arrays larger than their RAM budget, whose cold pages lie compressed in a store.

memory.py        PagedMemory: what is called; paged_empty, memory_of
blocks.py        what an array of it stands on, and where its pages are
ranges.py        the bytes of an array
region.py        the group of its store that has its pages
watcher.py       the thread that makes room in the pool
statistics.py    what happened, and how long faults took
report.py        what a check found
availability.py  what this system offers for it, in words
machine.py       the memory that the process may use

Faults are served, and cold pages found and compressed, by threads of the core (core/pager.pyx), which never take
the GIL.
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
