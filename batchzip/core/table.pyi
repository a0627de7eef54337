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
    SLICED = 8
    SLICE = 9
    BACKED_SLICE = 10

IN_POOL: tuple[Kind, ...]
"""The kinds of entries that refer to an object in the pool."""
IN_FILE: tuple[Kind, ...]
"""The kinds of entries that refer to an object in the backing file."""
