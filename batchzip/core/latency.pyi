"""Latency: how long calls take, of a few of them."""

OPERATIONS: tuple[str, ...]
EVERY: int
"""Calls from one that is timed to the next, on average."""
LOAD: int
STORE: int
GET: int
PUT: int
BOUNDS_S: tuple[float, ...]
"""The longest time of each bucket but the last, in seconds."""
