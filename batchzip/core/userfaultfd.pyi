"""Userfaultfd: the ways to open one, and the features of the kernel."""

WAYS: tuple[str, ...]
"""The ways to open a userfaultfd, in the order in which they are tried."""
NEEDED: int
"""The feature bits that paged memory requires; Linux 5.14 has them."""
CLEAN_PAGES: int
"""The feature bits that distinguish written pages from others; Linux 6.7 has them."""
POISONING: int
"""The feature bit that makes a lost page raise SIGBUS; Linux 6.6 has it."""

def probe() -> tuple[str | None, int, dict[str, int]]:
    """Return the way that works, or None; the feature bits; and the errno of each failed way."""
