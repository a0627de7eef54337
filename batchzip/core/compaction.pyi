"""Compaction: move the objects of a pool together, so that memory is returned to the kernel.

This module has no Python interface. Its functions are for the core; the source describes them.
"""
