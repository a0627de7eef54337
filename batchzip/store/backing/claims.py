"""Claims: only one store at a time uses a file or a user's object, however it was given.

    in this process        a table: device and inode of a file, device number, identity of an object
    in other processes     a lock (flock) on an open file description that this process does not
    share

A claim ends when it is released or dropped, and with its process. A forked child would keep the
lock, so it closes its copy at once. Rejected: fcntl's record locks, which end as soon as any other
descriptor of the same file is closed in this process; a PID in the file, because PIDs are reused,
and differ between containers.

If a file system has no locks, only the table protects the file.

Locks: none around the table. `setdefault` adds entries, and only the claim that added one removes
it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import weakref
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from batchzip.errors import BadArgument

if TYPE_CHECKING:
    from batchzip.core.memory import Descriptor

_Key: TypeAlias = tuple[str | int, ...]

_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})
"""Errors of `flock` on a file system without locks."""

_claims: dict[_Key, weakref.ref[Claim]] = {}


class Claim:
    """The right to use a file or an object, until it is released or dropped.

    `file` is a descriptor, which the claim owns from then on. Nobody else may have its open file
    description. `target` is the user's object. One of the two may be None. `name` is for messages.

    Raises BadArgument if another store has claimed the same file or object.
    """

    def __init__(self, name: str, file: Descriptor | None = None, target: object = None) -> None:
        self.file = file
        self._target = target  # keeps it alive, so that its identity stays unique
        self._keys: tuple[_Key, ...] = ()
        if target is not None:
            self._keys += (("object", id(target)),)
        if file is not None:
            self._keys += (_key_of(file),)
        self._mine = weakref.ref(self, partial(_forget, self._keys))
        try:
            self._enter(name)
            if file is not None:
                _lock(file, name)
        except BaseException:
            self.release()
            raise

    def _enter(self, name: str) -> None:
        for key in self._keys:
            if _claims.setdefault(key, self._mine) is not self._mine:
                raise BadArgument(f"the backing file {name} is in use by another store")

    @property
    def released(self) -> bool:
        """Whether it never had a descriptor, or has closed it."""
        return self.file is None or self.file.closed

    def release(self) -> None:
        """End the claim and close the descriptor. Idempotent."""
        if self.file is not None and not self.released:
            # A child that was forked without Python's knowledge shares the lock, so unlock it.
            with contextlib.suppress(OSError):
                fcntl.flock(self.file, fcntl.LOCK_UN)
            self.file.close()
        _forget(self._keys, self._mine)

    def disown(self) -> None:
        """Close a forked child's copy of the descriptor, if the number is still the file's."""
        if self.file is not None:
            self.file.close()


def _key_of(file: Descriptor) -> _Key:
    status = os.fstat(file.fileno())
    if stat.S_ISBLK(status.st_mode):
        return "device", status.st_rdev
    return "file", status.st_dev, status.st_ino


def _lock(file: Descriptor, name: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BadArgument(
            f"the backing file {name} is in use by another store, or locked by another program"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _forget(keys: tuple[_Key, ...], mine: weakref.ref[Claim]) -> None:
    for key in keys:
        if _claims.get(key) is mine:
            _claims.pop(key, None)


def _disown() -> None:
    """Drop all claims in a forked child: they stay the parent's."""
    for reference in list(_claims.values()):
        claim = reference()
        if claim is not None:
            claim.disown()
    _claims.clear()


os.register_at_fork(after_in_child=_disown)
