"""Calls: who uses a thing right now, so that it is closed by the last one out."""

from typing import Generic, Protocol, Self, TypeVar, final

class _Closes(Protocol):
    def close(self) -> None: ...

_Thing = TypeVar("_Thing", bound=_Closes)

@final
class Call(Generic[_Thing]):
    """One call under way, until its `with` block is left or the last reference to it goes."""

    @property
    def nested(self) -> bool:
        """Whether it came into the middle of another one, as signal handlers and finalizers do."""

    def __enter__(self) -> _Thing: ...
    def __exit__(self, *_: object) -> None: ...

@final
class Calls(Generic[_Thing]):
    """The calls that use `thing`. Thread-safe; may be used from signal handlers and finalizers.

    `name` is what messages call it.
    """

    def __new__(cls, thing: _Thing, name: str) -> Self: ...
    def enter(self) -> Call[_Thing]:
        """Count a call. Raise ClosedError after `close`, and ForkedProcess in a child."""

    @property
    def used_here(self) -> bool:
        """Whether the calling thread is in the middle of a call."""

    def close(self) -> None:
        """Have the thing closed as soon as no call uses it; at once if none does.

        In a child of the process that made it nothing is closed: it is the parent's. If closing it
        was cut short, a further call goes on with it; `thing.close()` may be called again then.
        """
