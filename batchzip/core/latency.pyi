"""Latency: histograms of the durations of calls, from a random sample."""

OPERATIONS: tuple[str, ...]
EVERY: int
"""The mean number of calls from one timed call to the next."""
LOAD: int
STORE: int
GET: int
PUT: int
BOUNDS_S: tuple[float, ...]
"""The upper bound of each bucket but the last, in seconds."""
