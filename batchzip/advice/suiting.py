"""Suiting: which serializers take all of some values, which are objects.

A serializer that takes a value gives it back as what it was; what would come back otherwise, it refuses. So
every value is offered to those that may suit values of its kind, and who refuses one is out. "pickle" takes
what no other does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchzip.errors import MissingExtra, NotStorable
from batchzip.mapping.serializers import packer_of

if TYPE_CHECKING:
    from batchzip.mapping.serializers import Packer

_BY_LIBRARY = {
    "numpy": ("numpy",),
    "pyarrow": ("arrow",),
    "torch": ("torch",),
    "builtins": ("msgpack", "json"),
}
"""Serializers that may suit a value, by the library that its class is of."""


class Suiting:
    """The serializers that took all values so far."""

    def __init__(self) -> None:
        self.missing: list[MissingExtra] = []
        """What would have been tried if it were installed."""
        self._packers: dict[str, Packer] | None = None

    @property
    def names(self) -> list[str]:
        """Their names, "pickle" at the end."""
        return [*(self._packers or ()), "pickle"]

    def note(self, value: object) -> None:
        """Offer a value that is not bytes."""
        if self._packers is None:
            self._packers = self._packers_for(value)
        for name, packer in list(self._packers.items()):
            try:
                packer.pack(value)
            except NotStorable:
                del self._packers[name]

    def _packers_for(self, value: object) -> dict[str, Packer]:
        library = type(value).__module__.partition(".")[0]
        found = {}
        for name in _BY_LIBRARY.get(library, ()):
            try:
                found[name] = packer_of(name, 4096)
            except MissingExtra as error:
                self.missing.append(error)
        return found
