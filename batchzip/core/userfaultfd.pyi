"""Userfaultfd: who may handle the faults of this process, and what its kernel can do with them."""

WAYS: tuple[str, ...]
"""How this process may get a userfaultfd, in the order in which the ways are tried."""
NEEDED: int
"""Feature bits that paged memory cannot do without; Linux 5.14 has them."""
CLEAN_PAGES: int
"""Feature bits that tell pages that were written from others; Linux 6.7 has them."""
POISONING: int
"""The feature bit that lets a page raise SIGBUS; Linux 6.6 has it."""

def probe() -> tuple[str | None, int, dict[str, int]]:
    """Return the way that works or None, the kernel's feature bits, and the errno of each way that does not."""
