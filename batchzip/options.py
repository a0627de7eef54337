"""Types of Engine's keyword arguments, for type checkers and editors: common and per algorithm.

If the parameters of a plug-in's codec are neither numbers nor bytes, pass an instance:
Engine(MyCodec(…)).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, SupportsIndex, TypedDict

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from batchzip.backend import Backend


class EngineOptions(TypedDict, total=False):
    """Options of every algorithm."""

    backend: str | Backend
    workers: SupportsIndex | None
    page_size: SupportsIndex
    verify: bool
    isolate: bool
    shuffle: SupportsIndex | str | None


class LevelOptions(EngineOptions, total=False):
    """Options of deflate, brotli and lz4hc."""

    level: SupportsIndex


class ZstdOptions(LevelOptions, total=False):
    """Options of zstd."""

    dictionary: Buffer | None


class Lz4Options(EngineOptions, total=False):
    """Options of lz4."""

    acceleration: SupportsIndex
    high_compression: SupportsIndex | None
