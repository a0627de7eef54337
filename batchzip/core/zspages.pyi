"""The address space of a pool as ranges, its machine pages, and their memory.

Only the core can call the functions of this module; pool.pyx describes their purpose.
"""
