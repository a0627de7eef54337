"""Closing and Owned: what long-lived objects share: open, closed, or in the wrong process.

An engine, a pool and a store belong to the process that made them. In a forked child their
locks may be held by threads that do not exist there, and their workers are the parent's children;
so a child's use of one is refused at once, and closing it there touches nothing of the parent's.

The check on the hot path is one attribute: `_unusable` is None while all is well, else the exception
class and text to raise. Close and fork set it; nobody compares pids.
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
    """A context manager that ends with `close()`; everything that holds something is one."""

    _instead: ClassVar[str] = ""
    """What to do instead of pickling it, after a colon."""

    def close(self) -> None:
        """Release everything; further calls do nothing."""
        raise NotImplementedError

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"this {type(self).__name__} holds what only its process has: "
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
        """Whether this object cannot be used any more, here."""
        return self._unusable is not None

    def _refuse(self) -> None:
        """Raise the reason this object cannot be used; call it when `_unusable` is set."""
        if self._unusable is not None:
            kind, text = self._unusable
            raise kind(text)

    def close(self) -> None:
        """Release everything; further calls do nothing, or go on where an interrupt cut one short."""
        if self._unusable is None:
            self._unusable = (ClosedError, f"this {type(self).__name__} is closed")
        elif self._released or self._unusable[0] is not ClosedError:
            return
        self._close()
        self._released = True

    def _close(self) -> None:
        """Release what the subclass holds; called again if it did not return, in the owning process only."""

    def __enter__(self) -> Self:
        self._refuse()
        return self


def _refuse_in_child() -> None:
    for owned in _alive:
        if owned._unusable is None:  # noqa: SLF001 - this module's own class
            owned._unusable = (  # noqa: SLF001
                ForkedProcess,
                f"this {type(owned).__name__} belongs to process {os.getppid()}, which forked this one: make a new one here",
            )


os.register_at_fork(after_in_child=_refuse_in_child)
