"""Keys: a mapping's keys as bytes, which need no Python object each and are compared without the GIL."""

from typing import Any, Self

class NotPlain(TypeError):
    """A key, or an item of one, is of another type than those that are encoded."""

class Opaque:
    """A key that only its mapping can read: the number of an object, or the bytes of its serializer."""

    def __new__(cls, number: int, data: bytes | None = None) -> Self: ...
    @property
    def number(self) -> int: ...
    @property
    def data(self) -> bytes | None: ...

class Key:
    """Room for one encoded key."""

    @property
    def stored(self) -> bytes:
        """What is kept of the key."""

def encode(key: Any) -> bytes:
    """Return what is kept of a key: for tests."""

def decode(data: bytes) -> Any:
    """Return the key that `encode` was given, or one that is equal to it: for tests."""
