"""KeyIndex: a hash table from keys to positions, in order of insertion; for the core only."""

def siphash(first: int, second: int, data: bytes) -> int:
    """Return the SipHash-1-3 of `data` with the 128-bit key (`first`, `second`); for tests."""
