"""Codec: an algorithm with its parameters, and the two callables it gives.

A codec is a frozen dataclass: its fields are the algorithm's parameters, checked when it is made,
and it pickles, so that workers get the very codec the owner has. Codecs are equal, and hash alike,
by value: what one compressed, its equals restore. A codec does no work itself:
`compressor()` and `decompressor()` make a callable for one thread of one process. A codec that is a C
function says so with `native()`, and the core calls that function in place of the callables.

Adding an algorithm is one subclass and one entry point in the group `batchzip.codecs`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from batchzip.core.plan import Native, Plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchzip.arguments.buffers import Flat

    Transcode: TypeAlias = Callable[[Flat], bytes]


class Codec(ABC):
    """One algorithm with its parameters; immutable, picklable, shared freely between threads.

    Examples:
        >>> import zlib
        >>> from dataclasses import dataclass
        >>> import batchzip
        >>> @dataclass(frozen=True)
        ... class Zlib(batchzip.Codec):
        ...     name = "zlib"
        ...     level: int = 6
        ...
        ...     def compressor(self, page_size):
        ...         return lambda page: zlib.compress(page, self.level)
        ...
        ...     def decompressor(self, page_size):
        ...         return lambda src: zlib.decompressobj().decompress(src, page_size)
        >>> with batchzip.Engine(Zlib(level=9), backend="sequential") as engine:
        ...     src = engine.compress_page(b"page" * 1024)
        ...     engine.decompress_page(src)[:8]
        b'pagepage'
    """

    __slots__ = ()

    name: ClassVar[str]
    """The algorithm's name in the registry."""

    @classmethod  # noqa: B027 - nothing to do is right for most
    def require(cls) -> None:
        """Raise MissingExtra where a library that it needs is not installed; most need none."""

    @property
    def algorithm(self) -> str:
        """Name of the algorithm itself: that of the innermost, where codecs wrap each other."""
        return self.name

    @property
    def deterministic(self) -> bool:
        """Whether equal pages always come out as equal bytes; what comes back is equal anyway."""
        return True

    def native(self) -> Native | None:
        """Return which C function does what the callables do, byte for byte; None if there is none."""
        return None

    def for_planes(self, planes: int) -> Codec:  # noqa: ARG002 - most have no better way
        """Return the codec for pages of `planes` equal parts that have nothing in common.

        Either's decompressor restores the other's outputs.
        """
        return self

    def plan(self) -> Plan:
        """Take the codec apart, for the core."""
        kind = type(self)
        home = next(base for base in kind.__mro__ if "native" in vars(base))
        # A subclass that brings callables of its own is not what the inherited function does.
        is_native = all(
            getattr(kind, name) is getattr(home, name) for name in ("compressor", "decompressor")
        )
        return Plan(self, self.native() if is_native else None)

    @abstractmethod
    def compressor(self, page_size: int) -> Transcode:
        """Make a callable that turns one page into its compressed bytes.

        The callable is for one thread at a time. It is given a contiguous readable buffer of
        `page_size` bytes, keeps no reference to it, and returns new bytes of any length: whether
        they fit is the caller's matter. Any exception it raises becomes that page's -EIO
        (MemoryError: -ENOMEM).
        """

    @abstractmethod
    def decompressor(self, page_size: int) -> Transcode:
        """Make a callable that turns compressed bytes back into a page.

        The callable is for one thread at a time. Whatever bytes it is given, it allocates no more
        than a page and a constant, and either returns bytes or raises. A result whose length is
        not `page_size` counts as undecodable, so it need not check that itself.
        """
