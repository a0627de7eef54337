"""Keys: convert a user's keys to the core's plain keys, and back.

    str, bytes, int, bool, None, tuples of these   stored as bytes (core/keys.pyx)
    subclasses of these, NumPy's integers          stored as the plain key that they are equal to
    other types, with `key_serializer`             stored as the bytes that its `dumps` returns
    tuples of other hashable objects               kept as Python objects, with a number each

Each key that is kept as an object has a KeyObject, which a dict finds by the key. That dict calls
the `__hash__` and `__eq__` of the tuple's items. No lock is held then, so they may use the mapping.

    add      find or make the KeyObject, and pin it ─▶ store the value ─▶ unpin: drop if no value
    forget   no value, and not pinned since before that was asked ─▶ end the KeyObject ─▶ drop it

A KeyObject that has ended is equal to no key, so the next value of the key gets a number of its
own. Every value therefore has a KeyObject that a lookup finds, whatever other threads remove.

Rejected: to register a number again after the value was stored. Others could find the value, and
take it, before the key had got another number and the value was stored again.

Invariants (`fault`)
* Each value whose key is an object has a KeyObject in both dicts, which has not ended.

Locks: none. `pin` and `end` of a KeyObject are atomic (core/keys.pyx).
"""

from __future__ import annotations

import itertools
import numbers
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from batchzip.core.keys import KeyObject, Opaque, Pin
from batchzip.errors import ClosedError, NotStorable
from batchzip.wording import shown

if TYPE_CHECKING:
    from collections.abc import Callable

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
    """The keys of one mapping. Thread-safe.

    `has_value` returns whether a plain key has a value.
    """

    def __init__(self, serializer: Serializer | None, has_value: Callable[[object], bool]) -> None:
        self._serializer = serializer
        self._has_value = has_value
        self._known: dict[KeyObject, KeyObject] = {}
        self._objects: dict[int, KeyObject] = {}
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
        if self._is_serialized(key):
            return self._serialized(key)
        known = self._known.get(KeyObject(key, 0))
        return Opaque(0 if known is None else known.number)

    def add(self, key: object) -> tuple[object, Pin | None]:
        """Return the plain key to store a value with, and a pin to pass to `unpin` afterwards.

        Raise NotStorable for a type that cannot be a key, and TypeError if it is not hashable.
        """
        try:
            return _plain(key), None
        except _NoPlainKeyError:
            pass
        if self._is_serialized(key):
            return self._serialized(key), None
        if not isinstance(key, tuple):
            raise NotStorable(
                f"a key must be str, bytes, int, None or a tuple, not {type(key).__name__}: "
                "give the mapping a key_serializer= for other types"
            )
        while True:
            new = KeyObject(key, next(self._counter))
            known = self._known.setdefault(new, new)
            pin = known.pin()
            if pin is not None:
                self._objects[known.number] = known
                self._sweep()
                return Opaque(known.number), pin

    def _is_serialized(self, key: object) -> bool:
        return self._serializer is not None and not isinstance(key, tuple)

    def _serialized(self, key: object) -> Opaque:
        assert self._serializer is not None  # noqa: S101 - the callers checked it
        return Opaque(0, bytes(self._serializer.dumps(key)))

    def unpin(self, pin: Pin) -> None:
        """Release a pin. Drop its key if it has no value."""
        self._drop(pin.release())

    def forget(self, plain: object) -> None:
        """Drop the object of a key whose value was removed."""
        if isinstance(plain, Opaque) and (known := self._objects.get(plain.number)) is not None:
            self._drop(known)

    def _drop(self, known: KeyObject) -> None:
        """Drop a key, unless it has a value or a call is storing one."""
        uses = known.uses
        try:
            has_value = self._has_value(Opaque(known.number))
        except ClosedError:
            return
        if not has_value and known.end(uses):
            self._objects.pop(known.number, None)
            self._known.pop(known, None)

    def _sweep(self) -> None:
        """Drop keys whose values expired, for which the core did not call `forget`."""
        if len(self._known) >= 2 * self._swept_at + _SWEEP_AFTER:
            self.drop_absent()
            self._swept_at = len(self._known)

    def drop_absent(self) -> None:
        """Drop all keys that have no value."""
        for known in list(self._known):
            self._drop(known)

    def clear(self) -> None:
        """Drop all objects. No value may be left."""
        self._known, self._objects = {}, {}

    def fault(self, plain: list[object]) -> str | None:
        """Return a violated invariant, given the plain keys of all values, or None."""
        for each in plain:
            if isinstance(each, Opaque) and each.data is None:
                known = self._objects.get(each.number)
                if known is None or known.ended or self._known.get(known) is not known:
                    return f"a value has the number {each.number} of a key that cannot be found"
        return None

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
        known = self._objects.get(plain.number)
        return _DROPPED if known is None else known.key

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
