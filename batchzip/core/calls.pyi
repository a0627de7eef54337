"""Calls: count the calls that use an object, so that the last of them closes it."""

from typing import Generic, Protocol, Self, TypeVar, final

class _Closes(Protocol):
    def close(self) -> None: ...

_Thing = TypeVar("_Thing", bound=_Closes)

@final
class Call(Generic[_Thing]):
    """One call under way. It ends when its `with` block ends or its last reference is dropped."""

    @property
    def nested(self) -> bool:
        """Whether its thread was in another call already, as in a signal handler or finalizer."""

    def __enter__(self) -> _Thing: ...
    def __exit__(self, *_: object) -> None: ...

@final
class Calls(Generic[_Thing]):
    """The calls that use `thing`, which messages call `name`.

    Thread-safe. May be used from signal handlers and finalizers.
    """

    def __new__(cls, thing: _Thing, name: str) -> Self: ...
    def enter(self) -> Call[_Thing]:
        """Begin a call. Raise ClosedError after `close`, and ForkedProcess in a forked child."""

    @property
    def used_here(self) -> bool:
        """Whether the calling thread is inside a call."""

    def close(self) -> None:
        """Refuse further calls. Call `thing.close()` now, or when the last call ends.

        Do nothing in a forked child, because the thing belongs to the parent. If an exception
        interrupts `thing.close()`, the next `close` calls it again.
        """
