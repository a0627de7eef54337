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

class Key:
    """A buffer for one encoded key."""

    @property
    def stored(self) -> bytes:
        """The stored encoding of the key."""

def encode(key: Any) -> bytes:
    """Return the stored encoding of a key; for tests."""

def decode(data: bytes) -> Any:
    """Return the key of an encoding, or one that is equal to it; for tests."""
