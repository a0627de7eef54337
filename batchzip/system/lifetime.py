"""Closing and Owned: the life cycle of long-lived objects: open, closed, or in the wrong process.

An engine, a pool and a store belong to the process that created them. In a forked child, threads
that do not exist there may hold their locks, and their workers are the parent's children. So every
use in a child raises at once, and closing the object there affects nothing of the parent's.

The check on the hot path is one attribute: `_unusable` is None for a usable object. Otherwise it
has the exception class and text to raise. Close and fork set it, so that no call compares PIDs.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, ClassVar, NoReturn, Self

from batchzip.errors import BatchzipError, ClosedError, ForkedProcess

if TYPE_CHECKING:
    from types import TracebackType

_alive: weakref.WeakSet[Owned] = weakref.WeakSet()


class Closing:
    """A context manager that calls `close()`. Every class that holds resources is one."""

    _instead: ClassVar[str] = ""
    """End of the error message for pickling, after a colon: what to do instead."""

    def close(self) -> None:
        """Release everything. Idempotent."""
        raise NotImplementedError

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"this {type(self).__name__} is bound to its process: "
            f"it cannot be pickled or copied{self._instead}"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Owned(Closing):
    """Base of objects with an idempotent `close()` that are bound to one process."""

    _unusable: tuple[type[BatchzipError], str] | None = None
    _released = False

    def __init__(self) -> None:
        _alive.add(self)

    @property
    def closed(self) -> bool:
        """Whether this object can no longer be used in this process."""
        return self._unusable is not None

    def _refuse(self) -> None:
        """Raise the reason why this object cannot be used, if there is one."""
        if self._unusable is not None:
            kind, text = self._unusable
            raise kind(text)

    def close(self) -> None:
        """Release everything. Idempotent: a call completes one that was interrupted."""
        if self._unusable is None:
            self._unusable = (ClosedError, f"this {type(self).__name__} is closed")
        elif self._released or self._unusable[0] is not ClosedError:
            return
        self._close()
        self._released = True

    def _close(self) -> None:
        """Release the resources of the subclass. Called only in the owner.

        Called again if an earlier call did not return.
        """

    def __enter__(self) -> Self:
        self._refuse()
        return self


def _refuse_in_child() -> None:
    for owned in _alive:
        if owned._unusable is None:  # noqa: SLF001 - this module's own class
            owned._unusable = (  # noqa: SLF001
                ForkedProcess,
                (
                    f"this {type(owned).__name__} belongs to process {os.getppid()}, "
                    "which forked this one: create a new one here"
                ),
            )


os.register_at_fork(after_in_child=_refuse_in_child)
