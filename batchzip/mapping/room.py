"""Room: make room in a mapping that is full.

    "raise"   rejects values until enough were removed. StoreRejected says what to do.
    "spill"   moves the coldest values to the store's backing file.
    "evict"   removes the coldest values: the mapping is a cache.

A mapping is full if its compressed values take `max_bytes` in the pool, or if its store is at its
own limit. The coldest value is the least recently used one, with a second chance (core/lru.pyx).

A new value is never evicted itself, unless it alone is larger than the limit. For a moment, the
pool holds new values in addition to those that they evict: one value, or of a batch a 64th of the
limit or 64 values, whichever is more.
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
"""Number of values per writeback to the backing file when the store's pool is full."""

_MOST_TRIES = 64
"""Attempts to make room for one value. Other groups may have filled the store to its limit."""


class Room:
    """Makes room in one mapping. Thread-safe. `on_evict` is called without any lock held."""

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
            raise BadArgument(f"on_full must be 'raise', 'spill' or 'evict', not {on_full!r}")
        if on_full == "spill" and group._resources.backing is None:  # noqa: SLF001 - as below
            raise BadArgument(
                "on_full='spill' needs a store with a backing file: SwapStore(…, backing=folder)"
            )
        self.on_full = on_full
        self.max_bytes = max_bytes
        self.on_evict = on_evict
        self._group = group
        self._resources = group._resources  # noqa: SLF001 - the mapping's own group
        self._records = records
        self._keys = keys

    @property
    def hard_limit(self) -> int:
        """Pool bytes above which the core rejects a value. 0: no such limit."""
        return self.max_bytes or 0 if self.on_full == "raise" else 0

    @property
    def slack(self) -> int:
        """Bytes of a batch's values to store before `keep` is called. 0: the whole batch."""
        return 0 if self.max_bytes is None else max(1, self.max_bytes // 64)

    @property
    def _percent(self) -> int:
        return self._resources.accept_threshold_percent

    def check(self) -> None:
        """Raise StoreRejected if the mapping or its store accepts no values at present."""
        if self.on_full != "raise" or (
            self.max_bytes is None and self._resources.pool.max_bytes is None
        ):
            return
        refusal = self._group._storer.look_at_limits()  # noqa: SLF001
        if refusal is not None:
            raise self.rejection(refusal.reason, refusal.text)

    def rejection(self, reason: str, text: str) -> StoreRejected:
        """Return the error for a value that was rejected."""
        if reason != "pool_limit_hit":
            return StoreRejected(reason, text)
        advice = f"values are accepted again below {self._percent} % of the limit"
        if self.on_full == "raise":
            advice += ": delete some, raise the limit, or make the mapping with on_full='evict'"
        return StoreRejected(reason, f"{text}; {advice}")

    def keep(self, take: Callable[[Any], Any]) -> None:
        """Evict or spill values until the mapping is within its limit.

        `take` removes the value of a plain key and returns it.
        """
        limit = self.max_bytes
        if limit is None or self._group._pool_bytes() <= limit:  # noqa: SLF001
            return
        if self.on_full == "evict":
            self.evict_to(limit, take)
        elif self.on_full == "spill":
            self._resources.wake()
            with contextlib.suppress(OSError):  # values stay in the pool; the next put tries again
                self._group._shrink_to(limit * self._percent // 100)  # noqa: SLF001

    def make(self, code: int, tries: int, take: Callable[[Any], Any]) -> bool:
        """Make room in the pool for a value. Return whether to try again.

        `code` is the negative errno of attempt number `tries`. `take` is as in `keep`.
        """
        if code == -errno.EDQUOT:
            self._group._storer._full.full = True  # noqa: SLF001 - as a folio that does not fit
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
        """Evict the coldest values until the mapping has at most `target` bytes in the pool."""
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
