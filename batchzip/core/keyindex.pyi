"""KeyIndex: where the value of a key is, in the order of insertion. It has no interface for Python."""

def siphash(first: int, second: int, data: bytes) -> int:
    """Return SipHash-1-3 of some bytes: for tests."""
