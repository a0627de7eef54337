"""Codec: an algorithm with its parameters, and the callables that compress and decompress.

A codec is a frozen dataclass. Its fields are the algorithm's parameters, which it checks when it is
created. It can be pickled, so that workers get the owner's codec. Codecs are compared and hashed by
value: a codec restores the outputs of all equal codecs. A codec does no work itself. `compressor()`
and `decompressor()` return callables for one thread of one process. If a codec is a C function,
`native()` describes it, and the core calls that function instead of the callables.

A new algorithm is one subclass with one entry point in the group `batchzip.codecs`.
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
    """One algorithm with its parameters. Immutable, picklable and thread-safe.

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

    @classmethod  # noqa: B027 - most codecs need no library
    def require(cls) -> None:
        """Raise MissingExtra if a library of this codec is not installed."""

    @property
    def algorithm(self) -> str:
        """Name of the algorithm. A codec that wraps another one has that one's."""
        return self.name

    @property
    def deterministic(self) -> bool:
        """Whether equal pages always give equal outputs. Restored pages are equal in any case."""
        return True

    def native(self) -> Native | None:
        """Return the C function with the same results as the callables, or None."""
        return None

    def for_planes(self, planes: int) -> Codec:  # noqa: ARG002 - most codecs treat them alike
        """Return the codec for pages of `planes` equal parts with nothing in common.

        Each of both codecs restores the other's outputs.
        """
        return self

    def plan(self) -> Plan:
        """Return a description of the codec for the core."""
        kind = type(self)
        home = next(base for base in kind.__mro__ if "native" in vars(base))
        # A subclass with its own callables does not do what the inherited C function does.
        is_native = all(
            getattr(kind, name) is getattr(home, name) for name in ("compressor", "decompressor")
        )
        return Plan(self, self.native() if is_native else None)

    @abstractmethod
    def compressor(self, page_size: int) -> Transcode:
        """Return a callable that compresses one page.

        One thread at a time calls it. It gets a contiguous readable buffer of `page_size` bytes,
        keeps no reference to it, and returns new bytes of any length. The caller checks whether
        they fit. Any exception becomes that page's -EIO (MemoryError: -ENOMEM).
        """

    @abstractmethod
    def decompressor(self, page_size: int) -> Transcode:
        """Return a callable that restores a page from its compressed bytes.

        One thread at a time calls it. Whatever bytes it gets, it must allocate no more than a page
        and a constant, and either return bytes or raise. A result of another length than
        `page_size` counts as undecodable, so the callable need not check its length.
        """
