"""Plan: what the core needs to know of a codec.

    Verified(Shuffled(Zstd(level=1), 4))  ──plan()──▶  Plan(codec=Zstd(level=1), native=Native("zstd", 1),
                                                            element_size=4, verify=True)

Shuffling and verifying are steps of the core's own loop, around a C function (`native`) or around
whatever the innermost codec's `compressor()` and `decompressor()` return. A plan with a native codec
holds plain values only, so that a worker process needs no codec class to use it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


class Callables(Protocol):
    """What the core calls of a codec that is no C function."""

    def compressor(self, page_size: int) -> Callable[[Any], bytes]:
        """Make a callable that compresses a page."""

    def decompressor(self, page_size: int) -> Callable[[Any], bytes]:
        """Make a callable that restores a page."""


class Native(NamedTuple):
    """A codec that is a C function: which one, and with what parameters."""

    library: str
    """"lz4", "lz4hc" or "zstd"."""
    effort: int
    """lz4's acceleration, or the level of the others."""
    dictionary: bytes | None = None
    planes: int = 1
    """zstd: equal parts of a page that are compressed apart from each other."""


class Plan(NamedTuple):
    """A codec, taken apart."""

    codec: Callables | None
    """The innermost codec; None in a worker that uses a C function."""
    native: Native | None
    element_size: int = 0
    """Bytes of an element of pages that are shuffled; 0: they are not."""
    verify: bool = False
    floats: bool = False
    """Whether elements that are shuffled are floating-point numbers, whose sign goes last."""

    def plan(self) -> Plan:
        """Return this plan: the core takes plans in place of codecs."""
        return self
