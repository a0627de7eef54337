"""Room: what a mapping does when it is full.

    "raise"   refuses values until enough were taken out: StoreRejected says what to do
    "spill"   moves the coldest values to the store's backing file
    "evict"   forgets the coldest values: it is a cache

Full is a mapping whose compressed values have `max_bytes` in the pool, or whose store is at its own limit. The
coldest value is the one that was not used for longest, with a second chance (core/lru.pyx).

A value that is put in is never the one that goes, unless it alone is larger than the limit. For a moment
the pool holds it beside those that go then: it, or of a batch, a 64th of the limit, or 64 values.
"""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING, Any

from batchzip.core.records import MISSING
from batchzip.errors import BadArgument, StoreRejected

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchzip.core.records import Records
    from batchzip.mapping.keys import Keys
    from batchzip.store.group import Group

ON_FULL = ("raise", "spill", "evict")

_SPILLED = 256
"""Values that go to the file in one go when the store's pool is full."""

_MOST_TRIES = 64
"""Times that room is made for one value: its store's limit may be full of what is not the mapping's."""


class Room:
    """Makes room in one mapping. Thread-safe; `on_evict` is called outside of all locks."""

    def __init__(
        self,
        group: Group,
        records: Records,
        keys: Keys,
        on_full: str,
        max_bytes: int | None,
        on_evict: Callable[[Any, Any], object] | None,
    ) -> None:
        if on_full not in ON_FULL:
            raise BadArgument(f"on_full is 'raise', 'spill' or 'evict', not {on_full!r}")
        if on_full == "spill" and group._resources.backing is None:  # noqa: SLF001 - a mapping is a group's user
            raise BadArgument(
                "on_full='spill' needs a store with a backing file: SwapStore(…, backing=folder)"
            )
        self.on_full = on_full
        self.max_bytes = max_bytes
        self.on_evict = on_evict
        self._group = group
        self._resources = group._resources  # noqa: SLF001
        self._records = records
        self._keys = keys

    @property
    def hard_limit(self) -> int:
        """Bytes that no value may take the mapping beyond; 0: there is no such limit."""
        return self.max_bytes or 0 if self.on_full == "raise" else 0

    @property
    def slack(self) -> int:
        """Bytes of values of a batch that may be in before `keep` is called; 0: as many as there are."""
        return 0 if self.max_bytes is None else max(1, self.max_bytes // 64)

    @property
    def _percent(self) -> int:
        return self._resources.accept_threshold_percent

    def check(self) -> None:
        """Raise StoreRejected if nothing is taken in now."""
        if self.on_full != "raise" or (
            self.max_bytes is None and self._resources.pool.max_bytes is None
        ):
            return
        refusal = self._group._storer.look_at_limits()  # noqa: SLF001
        if refusal is not None:
            raise self.rejection(refusal.reason, refusal.text)

    def rejection(self, reason: str, text: str) -> StoreRejected:
        """Return the error of a value that is not taken in."""
        if reason != "pool_limit_hit":
            return StoreRejected(reason, text)
        advice = f"values are taken in again below {self._percent} % of it"
        if self.on_full == "raise":
            advice += ": delete some, raise the limit, or make the mapping with on_full='evict'"
        return StoreRejected(reason, f"{text}; {advice}")

    def keep(self, take: Callable[[Any], Any]) -> None:
        """See that the mapping has no more than its limit. `take` takes a value out, by its plain key."""
        limit = self.max_bytes
        if limit is None or self._group._pool_bytes() <= limit:  # noqa: SLF001
            return
        if self.on_full == "evict":
            self.evict_to(limit, take)
        elif self.on_full == "spill":
            self._resources.wake()
            with contextlib.suppress(OSError):  # the next value is told
                self._group._shrink_to(limit * self._percent // 100)  # noqa: SLF001

    def make(self, code: int, tries: int, take: Callable[[Any], Any]) -> bool:
        """Make room for a value that the pool has none for. Return whether it is worth another try."""
        if code != -errno.ENOSPC or tries >= _MOST_TRIES:
            return False
        self._resources.full.full = True
        self._resources.compact()
        if self.on_full == "raise":
            self._resources.wake()
            return tries == 0
        held = self._group._pool_bytes()  # noqa: SLF001
        if not held:
            return False
        if self.on_full == "evict":
            less = max(held // 64, 2 * self._group.page_size << min(tries, 16))
            self.evict_to(max(0, held - less), take)
            return True
        self._resources.wake()
        try:
            return bool(self._group._write_back_coldest(_SPILLED))  # noqa: SLF001
        except OSError:
            return False

    def evict_to(self, target: int, take: Callable[[Any], Any]) -> None:
        """Forget the coldest values until the mapping has no more than `target` bytes in the pool."""
        if self.on_evict is None and not self._keys.has_objects:
            self._records.shrink(target)
            self._group._settle()  # noqa: SLF001
            return
        while self._group._pool_bytes() > target:  # noqa: SLF001
            coldest = self._records.coldest()
            if not coldest:
                return
            self._evict(coldest[0], take)

    def _evict(self, plain: Any, take: Callable[[Any], Any]) -> None:
        keys = self._keys.back([plain])
        value = MISSING
        if self.on_evict is None or not keys:
            gone = self._records.remove(plain)
        else:
            value = take(plain)
            gone = value is not MISSING
        if not gone:
            return
        self._records.count_eviction()
        self._keys.forget(plain)
        if self.on_evict is not None and keys:
            self.on_evict(keys[0], value)
