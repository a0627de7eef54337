import enum

class Kind(enum.IntEnum):
    ABSENT = 0
    COMPRESSED = 1
    RAW = 2
    SAME_FILLED = 3
    BACKED = 4
    RECORD = 5
    BACKED_RECORD = 6
    LARGE = 7

IN_POOL: tuple[Kind, ...]
"""Kinds of entries that refer to an object in the pool."""
IN_FILE: tuple[Kind, ...]
"""Kinds of entries that refer to an object in the backing file."""
