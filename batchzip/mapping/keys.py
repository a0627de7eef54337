"""Keys: from what a user has as a key to what the core keeps of it, and back.

    str, bytes, int, bool, None, tuples of these   kept as bytes (core/keys.pyx)
    subclasses of these, NumPy's integers          as the plain key that they are equal to
    others, with `key_serializer`                  the bytes that its `dumps` gives
    tuples with anything else that has a hash      as objects, under a number

A key kept as an object is found by a dict from it to its number. That dict calls `__hash__` and `__eq__`
of what is in the tuple, outside of everything else: they may use the mapping.

Locks: none. A number is registered before the value is stored under it and once more afterwards, as
another thread may just have taken the key's last value out, and its number with it.
"""

from __future__ import annotations

import itertools
import numbers
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from batchzip.core.keys import Opaque
from batchzip.errors import NotStorable
from batchzip.wording import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

    from batchzip.mapping.serializers import Serializer

Key: TypeAlias = str | bytes | int | tuple[Any, ...] | None

_PLAIN = frozenset({str, bytes, int, bool, type(None), Opaque})

_AGAIN = 64
"""Keys kept as objects, after as many more of which those are dropped that have no value any more."""


class _NoPlainKeyError(Exception):
    """A key that is equal to no plain one."""


class Keys:
    """The keys of one mapping. Thread-safe."""

    def __init__(self, serializer: Serializer | None) -> None:
        self._serializer = serializer
        self._numbers: dict[Hashable, int] = {}
        self._objects: dict[int, Any] = {}
        self._counter = itertools.count(1)
        self._swept_at = 0

    @property
    def has_objects(self) -> bool:
        """Whether there may be keys kept as objects."""
        return bool(self._objects)

    def find(self, key: object) -> object:
        """Return the plain key of one to look for; `Opaque(0)`, which nobody has, for a key that is not there.

        Raise TypeError for what has no hash.
        """
        try:
            return _plain(key)
        except _NoPlainKeyError:
            pass
        if self._serializer is not None and not isinstance(key, tuple):
            return self._serialized(key)
        return Opaque(self._numbers.get(key, 0))

    def add(self, key: object) -> object:
        """Return the plain key of one to store a value under. Raise NotStorable for one that cannot be."""
        try:
            return _plain(key)
        except _NoPlainKeyError:
            pass
        if self._serializer is not None:
            return self._serialized(key)
        if not isinstance(key, tuple):
            raise NotStorable(
                f"a key is str, bytes, int, None or a tuple, not {type(key).__name__}: "
                "give the mapping a key_serializer= for others"
            )
        number = self._numbers.setdefault(key, next(self._counter))  # TypeError: no hash
        self._objects.setdefault(number, key)
        return Opaque(number)

    def _serialized(self, key: object) -> Opaque:
        assert self._serializer is not None  # noqa: S101 - the callers' check
        return Opaque(0, bytes(self._serializer.dumps(key)))

    def confirm(self, plain: Opaque, key: Any) -> bool:
        """Register a key once more, now that it has a value. Return False if it has another number by now."""
        if plain.data is not None or plain.number in self._objects:
            return True
        if self._numbers.setdefault(key, plain.number) != plain.number:
            return False
        self._objects[plain.number] = key
        return True

    def forget(self, plain: object) -> None:
        """Drop the object of a key whose value is gone."""
        if isinstance(plain, Opaque) and plain.number:
            key = self._objects.pop(plain.number, None)
            if key is not None and self._numbers.get(key) == plain.number:
                self._numbers.pop(key, None)

    def sweep(self, live: Callable[[], Iterable[object]]) -> None:
        """Drop objects of keys whose values went without `forget`: their time was over."""
        if len(self._objects) < 2 * self._swept_at + _AGAIN:
            return
        stale = list(self._objects)
        kept = {plain.number for plain in live() if isinstance(plain, Opaque)}
        for number in stale:
            if number not in kept:
                self.forget(Opaque(number))
        self._swept_at = len(self._objects)

    def clear(self) -> None:
        """Drop all objects."""
        self._numbers, self._objects = {}, {}

    def back(self, plain: list[Any]) -> list[Any]:
        """Return the user's keys of plain ones; without those that are gone."""
        return [self._key(key) if isinstance(key, Opaque) else key for key in self.known(plain)]

    def known(self, plain: list[Any]) -> list[Any]:
        """Return those of some plain keys whose objects are still there."""
        if not self._objects and self._serializer is None:
            return plain
        return [key for key in plain if not self._is_gone(key)]

    def _is_gone(self, plain: object) -> bool:
        return (
            isinstance(plain, Opaque) and plain.data is None and plain.number not in self._objects
        )

    def _key(self, plain: Opaque) -> Any:
        if plain.data is not None:
            assert self._serializer is not None  # noqa: S101 - who made it
            return self._serializer.loads(plain.data)
        return self._objects.get(plain.number)

    def shown(self, plain: object) -> str:
        """Return a key's repr, for a message."""
        found = self.back([plain])
        return shown(found[0]) if found else "of a key that is gone"


def _plain(key: object) -> object:
    """Return the plain key that a key is equal to, or raise _NoPlainKeyError."""
    if type(key) in _PLAIN:
        return key
    if isinstance(key, (np.integer, np.bool_, np.str_, np.bytes_)):
        return key.item()
    for kind in (str, bytes, int, tuple):
        if isinstance(key, kind):
            own = type(key)
            if own.__hash__ is not kind.__hash__ or own.__eq__ is not kind.__eq__:
                raise _NoPlainKeyError
            if kind is tuple:
                return tuple(_plain(item) for item in tuple.__iter__(key))  # type: ignore[arg-type] # it is one
            return _base(key)
    if isinstance(key, numbers.Number):
        try:
            whole = int(key)  # type: ignore[call-overload] # complex numbers raise TypeError
            if whole == key and hash(whole) == hash(key):
                return whole
        except (TypeError, ValueError, OverflowError):
            pass
    raise _NoPlainKeyError


def _base(key: object) -> object:
    """Return the plain str, bytes or int of an instance of a subclass, without any of its own code."""
    if isinstance(key, str):
        return str.__str__(key)
    if isinstance(key, bytes):
        return bytes.__getitem__(key, slice(None)) if type(key) is not bytes else key
    return int.__int__(key)  # type: ignore[arg-type] # it is one
