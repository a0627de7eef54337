"""Keys: convert a user's keys to the core's plain keys, and back.

    str, bytes, int, bool, None, tuples of these   stored as bytes (core/keys.pyx)
    subclasses of these, NumPy's integers          stored as the plain key that they are equal to
    other types, with `key_serializer`             stored as the bytes that its `dumps` returns
    tuples of other hashable objects               kept as Python objects, with a number each

A dict maps each key that is kept as an object to its number. That dict calls the `__hash__` and
`__eq__` of the tuple's items. No lock is held then, so they may use the mapping.

Locks: none. A number is registered before a value is stored with it, and once more afterwards:
another thread may have removed the key's last value, and with it the number, in between.
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

_DROPPED = object()
"""In the place of a key whose object was dropped."""

_SWEEP_AFTER = 64
"""Number of objects, beyond twice those that the last sweep left, that starts the next sweep."""


class _NoPlainKeyError(Exception):
    """The key is not equal to any plain key."""


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
        """Whether any key is kept as an object."""
        return bool(self._objects)

    def find(self, key: object) -> object:
        """Return the plain key to look up.

        Return `Opaque(0)`, which no value has, for an unknown object. Raise TypeError if a key is
        not hashable.
        """
        try:
            return _plain(key)
        except _NoPlainKeyError:
            pass
        if self._serializer is not None and not isinstance(key, tuple):
            return self._serialized(key)
        return Opaque(self._numbers.get(key, 0))

    def add(self, key: object) -> object:
        """Return the plain key to store a value with, and register an object if need be.

        Raise NotStorable for a type that cannot be a key, and TypeError if it is not hashable.
        """
        try:
            return _plain(key)
        except _NoPlainKeyError:
            pass
        if self._serializer is not None:
            return self._serialized(key)
        if not isinstance(key, tuple):
            raise NotStorable(
                f"a key must be str, bytes, int, None or a tuple, not {type(key).__name__}: "
                "give the mapping a key_serializer= for other types"
            )
        number = self._numbers.setdefault(key, next(self._counter))  # TypeError if not hashable
        self._objects.setdefault(number, key)
        return Opaque(number)

    def _serialized(self, key: object) -> Opaque:
        assert self._serializer is not None  # noqa: S101 - the callers checked it
        return Opaque(0, bytes(self._serializer.dumps(key)))

    def confirm(self, plain: Opaque, key: Any) -> bool:
        """Register a key again after its value was stored. Return False if its number changed."""
        if plain.data is not None or plain.number in self._objects:
            return True
        if self._numbers.setdefault(key, plain.number) != plain.number:
            return False
        self._objects[plain.number] = key
        return True

    def forget(self, plain: object) -> None:
        """Drop the object of a key whose value was removed."""
        if isinstance(plain, Opaque) and plain.number:
            key = self._objects.pop(plain.number, None)
            if key is not None and self._numbers.get(key) == plain.number:
                self._numbers.pop(key, None)

    def sweep(self, live: Callable[[], Iterable[object]]) -> None:
        """Drop the objects of keys whose values expired, for which the core did not call `forget`.

        `live` returns the plain keys that have a value.
        """
        if len(self._objects) < 2 * self._swept_at + _SWEEP_AFTER:
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
        """Return the user's keys of plain keys. Leave out keys whose objects were dropped."""
        return [key for key in self._all_keys(plain) if key is not _DROPPED]

    def pairs(self, plain: list[Any]) -> list[tuple[Any, Any]]:
        """Return plain keys with the user's keys. Leave out keys whose objects were dropped."""
        pairs = zip(plain, self._all_keys(plain), strict=True)
        return [(each, key) for each, key in pairs if key is not _DROPPED]

    def _all_keys(self, plain: list[Any]) -> list[Any]:
        return [self._key(each) if isinstance(each, Opaque) else each for each in plain]

    def _key(self, plain: Opaque) -> Any:
        if plain.data is not None:
            assert self._serializer is not None  # noqa: S101 - it made the bytes
            return self._serializer.loads(plain.data)
        return self._objects.get(plain.number, _DROPPED)

    def shown(self, plain: object) -> str:
        """Return the repr of a plain key's user key, for a message."""
        found = self.back([plain])
        return shown(found[0]) if found else "that was removed meanwhile"


def _plain(key: object) -> object:
    """Return the plain key that a key is equal to. Raise _NoPlainKeyError if there is none."""
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
                items = tuple.__iter__(key)  # type: ignore[arg-type] # it is a tuple
                return tuple(_plain(item) for item in items)
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
    """Return an instance of a subclass as str, bytes or int, without calling its overrides."""
    if isinstance(key, str):
        return str.__str__(key)
    if isinstance(key, bytes):
        return bytes.__getitem__(key, slice(None)) if type(key) is not bytes else key
    return int.__int__(key)  # type: ignore[arg-type] # it is an int
