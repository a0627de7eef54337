"""ClassUse: a line of `Pool.classes()`: what one size class holds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ClassUse:
    """What one size class holds."""

    size: int
    """Bytes an object of the class may have at the most."""
    zspages: int
    """Zspages of the class."""
    room: int
    """Objects that they have room for."""
    objects: int
    """Objects allocated."""
    bytes: int
    """Bytes of the zspages."""
    freeable: int
    """Bytes of them that have no object."""
