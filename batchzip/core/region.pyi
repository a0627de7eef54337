import enum

class AccessAdvice(enum.IntEnum):
    """How a page is going to be used."""

    NORMAL = 0
    SEQUENTIAL = 1
    RANDOM = 2

class Event(enum.IntEnum):
    """What the core tells Python of, as bits."""

    NO_ROOM = 1
    OVER_BUDGET = 2
    PAGE_LOST = 4
    CLOSING = 8
