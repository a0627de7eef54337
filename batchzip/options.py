"""Keyword arguments of Engine, for type checkers and editors: what all have, and what each algorithm has.

A plug-in's codec whose parameters are neither numbers nor bytes is made by hand: Engine(MyCodec(…)).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, SupportsIndex, TypedDict

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from batchzip.backend import Backend


class EngineOptions(TypedDict, total=False):
    """What does not depend on the algorithm."""

    backend: str | Backend
    workers: SupportsIndex | None
    page_size: SupportsIndex
    verify: bool
    isolate: bool
    shuffle: SupportsIndex | str | None


class LevelOptions(EngineOptions, total=False):
    """Those of deflate, brotli and lz4hc."""

    level: SupportsIndex


class ZstdOptions(LevelOptions, total=False):
    """Those of zstd."""

    dictionary: Buffer | None


class Lz4Options(EngineOptions, total=False):
    """Those of lz4."""

    acceleration: SupportsIndex
    high_compression: SupportsIndex | None
