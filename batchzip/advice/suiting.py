"""Suiting: find the serializers that accept all of some objects.

A serializer restores a value unchanged or refuses it. Therefore each value is offered to the
serializers for its type, and a serializer that refuses one is dropped. "pickle" is always among the
candidates.
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
"""Candidate serializers for a value, by the top-level package of its class."""


class Suiting:
    """The serializers that accepted all values so far."""

    def __init__(self) -> None:
        self.missing: list[MissingExtra] = []
        """Errors of candidates whose library is not installed."""
        self._packers: dict[str, Packer] | None = None

    @property
    def names(self) -> list[str]:
        """The names of these serializers, with "pickle" last."""
        return [*(self._packers or ()), "pickle"]

    def note(self, value: object) -> None:
        """Offer a value that is not bytes to each serializer. Drop those that refuse it."""
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
