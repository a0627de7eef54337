"""The sources and tools from which this core was built."""

from typing import Final

SOURCE_DIGEST: Final[str]
"""The SHA-256 of the sources. It equals `staleness.source_digest()` if they are unchanged."""
COMPILER: Final[str]
"""The C compiler and its version."""
PROFILE: Final[str]
"""`release`, `coverage`, `asan`, `tsan` or `explore`, as hatch_build.py defines them."""
CYTHON: Final[str]
"""The version of Cython."""
