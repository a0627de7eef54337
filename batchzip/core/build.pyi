"""What this core was built from."""

from typing import Final

SOURCE_DIGEST: Final[str]
"""SHA-256 of the core's sources: `staleness.source_digest()` while they are the same."""
COMPILER: Final[str]
"""The C compiler and its version."""
PROFILE: Final[str]
"""`release`, `coverage`, `asan`, `tsan` or `explore`: hatch_build.py says what they are for."""
CYTHON: Final[str]
"""The version of Cython."""
