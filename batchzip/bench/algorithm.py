"""Algorithm: a codec as it is written on the command line: `lz4`, `zstd:1`, `zstd:-1`."""

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
    """A codec's name with its level, None for the algorithm's own default."""

    name: str
    level: int | None = None

    @property
    def label(self) -> str:
        """Name it in tables."""
        return self.name if self.level is None else f"{self.name} {self.level}"

    @property
    def parameters(self) -> dict[str, Any]:
        """What the registry and an engine take beside the name."""
        return {} if self.level is None else {"level": self.level}

    def codec(self) -> Codec:
        """Make the codec."""
        return make_codec(self.name, **self.parameters)


def parse_algorithms(text: str) -> list[Algorithm]:
    """Read a list with commas. Raises UnknownAlgorithm or BadArgument for what is none."""
    found = []
    for part in text.split(","):
        name, colon, level = part.strip().partition(":")
        if colon and not level.removeprefix("-").isdecimal():
            raise BadArgument(f"{part!r} is no algorithm with a level: write zstd:3, or zstd:-1")
        algorithm = Algorithm(name, int(level) if colon else None)
        algorithm.codec()  # an unknown name is told before anything is measured
        found.append(algorithm)
    return found
