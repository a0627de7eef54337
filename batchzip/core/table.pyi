import enum

class Kind(enum.IntEnum):
    ABSENT = 0
    COMPRESSED = 1
    RAW = 2
    SAME_FILLED = 3
    BACKED = 4
