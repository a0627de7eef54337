"""What the core asks the system for; of interest to tests only."""

def allocations() -> int:
    """Return how many requests for memory there have been."""

def fail_allocation(number: int, count: int = 1) -> None:
    """Have the `number`-th request from now fail, and the `count` − 1 after it. 0: no more."""
