"""What targets of a fuzzer have in common: they read a program or a value from bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Target(Protocol):
    """Something to fuzz. A call takes any bytes; it raises where a promise is broken."""

    def __call__(self, data: bytes) -> None: ...

    def seeds(self) -> Iterator[bytes]:
        """Yield inputs to begin with."""

    def close(self) -> None:
        """Release what the target holds."""


class Source:
    """Reads numbers and bytes from an input. At its end there are zeros."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def byte(self) -> int:
        at = self._at
        self._at = at + 1
        return self._data[at] if at < len(self._data) else 0

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def take(self, count: int) -> bytes:
        at = self._at
        self._at = at + count
        return self._data[at : at + count]

    def rest(self) -> bytes:
        return self.take(len(self._data))

    def choose(self, choices: Sequence[Any]) -> Any:
        return choices[self.byte() % len(choices)]
