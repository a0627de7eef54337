"""ClassUse: one line of `Pool.classes()`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ClassUse:
    """The content of one size class."""

    size: int
    """Bytes of the largest object of the class."""
    zspages: int
    """Number of zspages."""
    room: int
    """Number of objects that the zspages have room for."""
    objects: int
    """Number of allocated objects."""
    bytes: int
    """Bytes of the zspages."""
    freeable: int
    """Bytes of the zspages without an object."""
