"""The address space of a pool as ranges, its machine pages, and their memory.

The module has functions for the core only; pool.pyx says what they serve.
"""
