"""The codec registry: algorithms by name, from the entry-point group `batchzip.codecs`."""

from __future__ import annotations

import dataclasses

from batchzip.codecs.codec import Codec
from batchzip.errors import BadArgument, UnknownAlgorithm
from batchzip.plugins import plugin_entry_points

__all__ = ["Codec", "algorithms", "make_codec"]

_GROUP = "batchzip.codecs"


def algorithms() -> list[str]:
    """Names of the registered algorithms, sorted."""
    return sorted(plugin_entry_points(_GROUP))


def make_codec(algorithm: str, **parameters: object) -> Codec:
    """Make the codec named `algorithm` with its parameters.

    Raises UnknownAlgorithm naming those there are, and BadArgument naming the parameters that
    the algorithm has, or the range of the one that is out of it.
    """
    points = plugin_entry_points(_GROUP)
    if algorithm not in points:
        raise UnknownAlgorithm(algorithm, points)
    codec_class: type[Codec] = points[algorithm].load()
    known = [field.name for field in dataclasses.fields(codec_class)]  # type: ignore[arg-type] # codecs are dataclasses
    for name in parameters:
        if name not in known:
            raise BadArgument(
                f"{algorithm} has no parameter {name!r}; it has: {', '.join(known) or 'none'}"
            )
    return codec_class(**parameters)
