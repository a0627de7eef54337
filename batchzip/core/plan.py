"""Plan: the parameters of a codec, as the core needs them.

    Verified(Shuffled(Zstd(level=1), 4)) ──plan()──▶ Plan(
        codec=Zstd(level=1), native=Native("zstd", 1), element_size=4, verify=True)

The core's loop shuffles and verifies by itself, before and after it calls the codec. The codec is a
C function (`native`), or the callables that the innermost codec's `compressor()` and
`decompressor()` return. A plan with a native codec holds only plain values, so a worker process
needs no codec class to use it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


class Callables(Protocol):
    """The methods that the core calls of a codec in Python."""

    def compressor(self, page_size: int) -> Callable[[Any], bytes]:
        """Return a callable that compresses a page."""

    def decompressor(self, page_size: int) -> Callable[[Any], bytes]:
        """Return a callable that restores a page."""


class Native(NamedTuple):
    """A codec that is a C function: its library and its parameters."""

    library: str
    """"lz4", "lz4hc" or "zstd"."""
    effort: int
    """The acceleration of lz4, or the level of lz4hc and zstd."""
    dictionary: bytes | None = None
    planes: int = 1
    """zstd: the number of equal parts of a page that get compressed blocks of their own."""


class Plan(NamedTuple):
    """A codec, split into its innermost codec and the steps around it."""

    codec: Callables | None
    """The innermost codec. None in a worker that uses a C function."""
    native: Native | None
    element_size: int = 0
    """Bytes per element of shuffled pages; 0 if pages are not shuffled."""
    verify: bool = False
    """Whether each output is restored and compared with its page."""
    floats: bool = False
    """Whether shuffled elements are floating-point numbers, whose sign bit is moved to the end."""

    def plan(self) -> Plan:
        """Return this plan. The core accepts a plan wherever it accepts a codec."""
        return self
