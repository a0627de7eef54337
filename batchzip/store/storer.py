"""Storer: stores the folios of one group, whole or not at all.

    limits ─▶ Writer: a folio, compressed and published: old entries out, new ones in, in one step
                 └─ rejected ─▶ the whole folio to the backing file ─▶ published

A folio is all or nothing. Nobody sees any page of it until it is published. If one page cannot be
kept, the store drops whatever the indices held before, because it is stale: the caller has newer
data. Any exception leaves the same state.

Locks: none here. Usage may change after it was compared with the limits. The allocation checks the
limits of pool and group again.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NamedTuple

from batchzip.errors import StoreRejected
from batchzip.store.hysteresis import Hysteresis
from batchzip.store.reclaim.cleaning import write
from batchzip.store.writer import failures

if TYPE_CHECKING:
    from batchzip.arguments.buffers import Bytes, Flat
    from batchzip.core.entries import Entries
    from batchzip.core.folio import Folio
    from batchzip.store.resources import Resources


class Refusal(NamedTuple):
    """Why a folio is rejected: the arguments of StoreRejected, and its cause."""

    reason: str
    text: str
    errors: list[int] | None = None
    cause: OSError | None = None


class Storer:
    """Stores the folios of one group. Thread-safe."""

    def __init__(self, resources: Resources, entries: Entries, name: str) -> None:
        self.max_bytes: int | None = None
        """Limit of the group's compressed bytes in the pool. None: only the store has a limit."""
        self._resources = resources
        self._entries = entries
        self._name = name
        self._full = Hysteresis()

    def store(self, first: int, pages: Bytes | list[Flat]) -> None:
        """Store n pages at `first` and on. Raise the errors of `Group.store`."""
        count = len(pages)
        try:
            refusal = self._store(first, pages)
            if refusal is not None:
                reason, text, errors, cause = refusal
                raise StoreRejected(reason, text, errors) from cause  # noqa: TRY301 - drops entries
            if self._resources.backing is not None:
                self._resources.backing.settle()
        except MemoryError as error:
            raise self.drop_for_memory(first, count) from error
        except BaseException:
            self._entries.drop(first, count)  # before anything else: a second interrupt may come
            raise

    def drop_for_memory(self, first: int, count: int) -> StoreRejected:
        """Drop stale entries, and count a folio for which there was no memory.

        Return the error to raise.
        """
        self._entries.drop(first, count)
        self._entries.count_event("reject_alloc_fail")
        return StoreRejected("reject_alloc_fail", "there is no memory for the folio")

    def _store(self, first: int, pages: Bytes | list[Flat]) -> Refusal | None:
        """Store a folio in the pool, or in the file if the pool rejects it.

        Return why neither took it, or None. The reason has been counted.
        """
        writer, limit = self._resources.writer, self.max_bytes
        spare = self._resources.backing is not None
        folio, code = None, 0
        refusal = self.look_at_limits()
        try:
            if refusal is None:
                folio, code = writer.store(
                    pages, self._entries, first, may_go_elsewhere=spare, limit=limit
                )
                if code == 0:
                    return None
                refusal = self._count_failed(folio) if code > 0 else self._count_full(code, limit)
            if refusal.reason == "pool_limit_hit":
                self._resources.wake()
            if not spare:
                return refusal
            if folio is None or code > 0:
                if folio is not None:
                    writer.give_back(folio)
                    folio = None
                folio = writer.prepare(pages)
            return self._publish_in_file(first, folio)
        finally:
            if folio is not None:  # it must not keep a reference to the caller's pages
                writer.give_back(folio)

    def _count_full(self, code: int, own_limit: int | None) -> Refusal:
        """Count a folio that has no room, by the negative errno of `Folio.publish`."""
        if code == -errno.EDQUOT:
            self._full.full = True
            text = f"the folio does not fit the {own_limit} bytes of group {self._name!r}"
            refusal = Refusal("pool_limit_hit", text)
        elif code == -errno.ENOSPC:
            limit = self._resources.pool.max_bytes
            self._resources.full.full = True
            refusal = Refusal("pool_limit_hit", f"the folio does not fit the pool's {limit} bytes")
        else:
            refusal = Refusal("reject_alloc_fail", "the system has no memory for the folio")
        self._entries.count_event(refusal.reason)
        return refusal

    def _publish_in_file(self, first: int, folio: Folio) -> Refusal | None:
        try:
            where = write(self._resources, folio.objects())
        except OSError as error:
            self._entries.count_event("reject_reclaim_fail")
            return Refusal("reject_reclaim_fail", f"the backing file: {error}", cause=error)
        if folio.publish(self._entries, first, where):
            self._entries.count_event("reject_alloc_fail")
            return Refusal("reject_alloc_fail", "the system has no memory for the table")
        return None

    def look_at_limits(self) -> Refusal | None:
        """Return a Refusal while the pool or this group counts as full, and None otherwise."""
        resources = self._resources
        limit, own_limit = resources.pool.max_bytes, self.max_bytes
        if limit is None and own_limit is None:
            return None
        percent = resources.accept_threshold_percent
        if limit is not None and resources.pool.held_bytes >= limit:
            resources.compact()
        held, own = resources.pool.held_bytes, self._entries.pool_bytes
        at_limit, pool_is_full = resources.full.check(held, limit, percent)
        over, is_full = self._full.check(own, own_limit, percent)
        if at_limit or over:
            self._entries.count_event("pool_limit_hit")
        if pool_is_full:
            return Refusal(
                "pool_limit_hit", f"the pool holds {held} bytes and its limit is {limit}"
            )
        if is_full:
            text = f"group {self._name!r} has {own} bytes and its limit is {own_limit}"
            return Refusal("pool_limit_hit", text)
        return None

    def _count_failed(self, folio: Folio) -> Refusal:
        """Count pages that could not be compressed, by cause."""
        errors, poor, other = failures(folio)
        self._entries.count_event("reject_compress_poor", poor)
        self._entries.count_event("reject_compress_fail", other)
        first = next(number for number, code in enumerate(errors) if code)
        return Refusal(
            "reject_compress_fail" if other else "reject_compress_poor",
            f"{poor + other} of {len(errors)} pages cannot be compressed, "
            f"the first of them is page {first} of the folio",
            errors,
        )

    def is_full(self) -> bool:
        """Return whether the group counts as full."""
        percent = self._resources.accept_threshold_percent
        return self._full.check(self._entries.pool_bytes, self.max_bytes, percent)[1]
