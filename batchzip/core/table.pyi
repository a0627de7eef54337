import enum

class Kind(enum.IntEnum):
    ABSENT = 0
    COMPRESSED = 1
    RAW = 2
    SAME_FILLED = 3
    BACKED = 4

ABSENT = Kind.ABSENT
COMPRESSED = Kind.COMPRESSED
RAW = Kind.RAW
SAME_FILLED = Kind.SAME_FILLED
BACKED = Kind.BACKED
