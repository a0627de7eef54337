"""Storer: from a folio to its entries, published whole or not at all.

    limits ─▶ Writer: a folio, ready ─▶ publish: one step, old ones out and new ones in
                 └─ refused ─▶ the backing file, whole ─▶ ┘

A folio is all or nothing. Until it is published nobody sees any of it. If any page of it cannot be kept,
whatever the indices held before is dropped, because it is stale: the caller has newer data than the
store. An exception, whoever raises it, ends in the same state.

Locks: none here. What the limits are compared with may change meanwhile; the pool's and the group's
are checked again where room is allocated.
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
    """Why a folio is not kept: what StoreRejected takes."""

    reason: str
    text: str
    errors: list[int] | None = None
    cause: OSError | None = None


class Storer:
    """Stores the folios of one group. Thread-safe."""

    def __init__(self, resources: Resources, entries: Entries, name: str) -> None:
        self.max_bytes: int | None = None
        """Bytes of compressed pages that the group may have in the pool; None: the store's limit alone."""
        self._resources = resources
        self._entries = entries
        self._name = name
        self._full = Hysteresis()

    def store(self, first: int, pages: Bytes | list[Flat]) -> None:
        """Store n pages at `first` and on. Raise as `Group.store`."""
        count = len(pages)
        try:
            refusal = self._store(first, pages)
            if refusal is not None:
                reason, text, errors, cause = refusal
                raise StoreRejected(reason, text, errors) from cause  # noqa: TRY301 - it ends as all that fails does
            if self._resources.backing is not None:
                self._resources.backing.settle()
        except BaseException as error:
            self._entries.drop(first, count)  # before anything else, as interrupts may come in twos
            if isinstance(error, MemoryError):
                self._entries.count_event("reject_alloc_fail")
                raise StoreRejected("reject_alloc_fail", "there is no memory for it") from error
            raise

    def _store(self, first: int, pages: Bytes | list[Flat]) -> Refusal | None:
        """Store a folio in the pool, or else in the file. Return why it is in neither, which is counted."""
        writer = self._resources.writer
        folio, failed = None, 0
        refusal = self.look_at_limits()
        try:
            if refusal is None:
                folio, failed = writer.prepare(pages)
                refusal = self._count_failed(folio) if failed else self._publish(first, folio)
            if refusal is None:
                return None
            if refusal.reason == "pool_limit_hit":
                self._resources.wake()
            if self._resources.backing is None:
                return refusal
            if folio is None or failed:
                if folio is not None:
                    writer.give_back(folio)
                    folio = None
                folio, _ = writer.prepare(pages, to_file=True)
            return self._publish_in_file(first, folio)
        finally:
            if folio is not None:  # refused or not: its pages are the caller's
                writer.give_back(folio)

    def _publish(self, first: int, folio: Folio) -> Refusal | None:
        spare, own_limit = self._resources.backing is not None, self.max_bytes
        code = folio.publish(self._entries, first, may_go_elsewhere=spare, limit=own_limit)
        if code == 0:
            return None
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
        """Refuse a store while the pool, or this group, counts as full."""
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
            f"{poor + other} of {len(errors)} pages cannot be compressed, page {first} of the folio first",
            errors,
        )

    def is_full(self) -> bool:
        """Return whether the group counts as full."""
        percent = self._resources.accept_threshold_percent
        return self._full.check(self._entries.pool_bytes, self.max_bytes, percent)[1]
