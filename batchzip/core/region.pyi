import enum

class AccessAdvice(enum.IntEnum):
    """The expected access pattern of a page."""

    NORMAL = 0
    SEQUENTIAL = 1
    RANDOM = 2

class Event(enum.IntEnum):
    """The events that the core reports to Python, as bits."""

    NO_ROOM = 1
    OVER_BUDGET = 2
    PAGE_LOST = 4
    CLOSING = 8
