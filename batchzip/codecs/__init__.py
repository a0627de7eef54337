"""The codec registry: algorithms by name, from the entry-point group `batchzip.codecs`."""

from __future__ import annotations

import dataclasses

from batchzip.codecs.codec import Codec
from batchzip.errors import BadArgument, UnknownAlgorithm
from batchzip.plugins import plugin_entry_points

__all__ = ["Codec", "algorithms", "make_codec", "registered"]

_GROUP = "batchzip.codecs"


def algorithms() -> list[str]:
    """Return the names of the registered algorithms that can be used here, sorted.

    Algorithms whose library is not installed, and plug-ins that cannot be imported, are left out.

    Examples:
        >>> import batchzip
        >>> {"lz4", "lz4hc", "zstd"} <= set(batchzip.algorithms())
        True
    """
    return [name for name, codec in registered().items() if isinstance(codec, type)]


def registered() -> dict[str, type[Codec] | Exception]:
    """Return each registered algorithm's codec class, or why it cannot be used, sorted by name."""
    found: dict[str, type[Codec] | Exception] = {}
    for name, point in sorted(plugin_entry_points(_GROUP).items()):
        try:
            codec: type[Codec] = point.load()
            codec.require()
        except Exception as error:  # noqa: BLE001 - a broken plug-in affects only its users
            found[name] = error
        else:
            found[name] = codec
    return found


def make_codec(algorithm: str, **parameters: object) -> Codec:
    """Return a codec by the name of its algorithm, with its parameters.

    Raise UnknownAlgorithm, which lists the known names, MissingExtra, with the command that
    installs the library, or BadArgument, which lists the algorithm's parameters or the valid range
    of one.
    """
    points = plugin_entry_points(_GROUP)
    if not isinstance(algorithm, str) or algorithm not in points:
        raise UnknownAlgorithm(algorithm, points)
    codec_class: type[Codec] = points[algorithm].load()
    codec_class.require()
    fields = dataclasses.fields(codec_class)  # type: ignore[arg-type] # codecs are dataclasses
    known = [field.name for field in fields]
    for name in parameters:
        if name not in known:
            raise BadArgument(
                f"{algorithm} has no parameter {name!r}; it has: {', '.join(known) or 'none'}"
            )
    return codec_class(**parameters)
