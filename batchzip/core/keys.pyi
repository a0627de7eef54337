"""Keys: a mapping's keys as bytes, without Python objects, so they are compared without the GIL."""

from typing import Any, Self

class NotPlain(TypeError):
    """The type of a key, or of an item of a tuple, cannot be encoded."""

class Opaque:
    """A key that only its mapping can decode: an object's number, or its serializer's bytes."""

    def __new__(cls, number: int, data: bytes | None = None) -> Self: ...
    @property
    def number(self) -> int: ...
    @property
    def data(self) -> bytes | None: ...

class KeyObject:
    """A key that is kept as an object, with its number.

    It equals another one with an equal key until one of them ends. A call that stores a value pins
    it first, so that it cannot end before the value is stored. Raises TypeError if the key is not
    hashable.
    """

    def __init__(self, key: Any, number: int) -> None: ...
    @property
    def key(self) -> Any: ...
    @property
    def number(self) -> int: ...
    @property
    def uses(self) -> int: ...
    @property
    def ended(self) -> bool: ...
    def pin(self) -> Pin | None:
        """Pin it. Return the Pin, or None if it has ended."""

    def end(self, uses: int) -> bool:
        """End it. Return False if it is pinned, or was at any time since `uses` was read."""

class Pin:
    """Keeps a KeyObject from ending until it is released or freed."""

    def release(self) -> KeyObject:
        """Release the KeyObject, and return it."""

class Key:
    """A buffer for one encoded key."""

    @property
    def stored(self) -> bytes:
        """The stored encoding of the key."""

def encode(key: Any) -> bytes:
    """Return the stored encoding of a key; for tests."""

def decode(data: bytes) -> Any:
    """Return the key of an encoding, or one that is equal to it; for tests."""
