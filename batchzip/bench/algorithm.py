"""Algorithm: a codec as written on the command line: `lz4`, `zstd:1`, `zstd:-1`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batchzip.codecs import make_codec
from batchzip.errors import BadArgument

if TYPE_CHECKING:
    from batchzip.codecs import Codec

DEFAULT = "lz4,zstd:1"


@dataclass(frozen=True, slots=True)
class Algorithm:
    """The name of a codec, and its level. None is the algorithm's default level."""

    name: str
    level: int | None = None

    @property
    def label(self) -> str:
        """The name in tables."""
        return self.name if self.level is None else f"{self.name} {self.level}"

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters for the registry or an engine, in addition to the name."""
        return {} if self.level is None else {"level": self.level}

    def codec(self) -> Codec:
        """Make the codec."""
        return make_codec(self.name, **self.parameters)


def parse_algorithms(text: str) -> list[Algorithm]:
    """Parse a comma-separated list. Raise UnknownAlgorithm, or BadArgument for a bad level."""
    found = []
    for part in text.split(","):
        name, colon, level = part.strip().partition(":")
        if colon and not level.removeprefix("-").isdecimal():
            raise BadArgument(
                f"{part!r} has a level that is not an integer: write zstd:3, or zstd:-1"
            )
        algorithm = Algorithm(name, int(level) if colon else None)
        algorithm.codec()  # raises for an unknown name before anything is measured
        found.append(algorithm)
    return found
