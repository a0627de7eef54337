"""Faults: bring touched pages into memory. The module has no Python interface: see pager.pyx."""
