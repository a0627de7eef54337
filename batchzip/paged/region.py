"""Region: the group of a store that holds the pages of a paged memory. Index n is page n.

Counters, writeback and checks work as for any other group. Only the pager stores and removes pages.
The pager uses the codec that the memory was made with. Pages are never recompressed, and replacing
the store's engine has no effect on them.
"""

from __future__ import annotations

from typing import Any

from batchzip.core.pager import Pager
from batchzip.errors import BadArgument, ClosedError
from batchzip.store.group import Group
from batchzip.store.latency import Latency


class Region(Group):
    """The group of a paged memory. Closing it closes the pager. Arrays must not be touched then."""

    _pager: Pager | None = None

    def open(self, *, pages: int, budget: int, fault_threads: int) -> None:
        """Make the pager, which compresses with the codec of the store's current engine."""
        resources, writer = self._resources, self._resources.writer
        backing = resources.backing
        self._pager = Pager(
            self._entries,
            writer.number,
            pages=pages,
            budget=budget,
            fault_threads=fault_threads,
            backing_fd=-1 if backing is None or backing.descriptor is None else backing.descriptor,
        )

    @property
    def max_bytes(self) -> int | None:
        """None: only the store limits the pages."""
        return None

    @max_bytes.setter
    def max_bytes(self, value: int | None) -> None:
        if value is not None:
            raise BadArgument(
                f"group {self.name!r} holds the pages of a PagedMemory: "
                "limit its store with max_pool_bytes"
            )

    def _enter_to_change(self) -> None:
        self._enter()
        raise BadArgument(
            f"group {self.name!r} holds the pages of a PagedMemory, which alone may change them"
        )

    def _region_status(self) -> dict[str, Any] | None:
        pager = self._pager
        if pager is None:
            return None
        return {
            **pager.figures(),
            "latency": Latency.of(pager.latencies()),
            "way": pager.way,
            "compressed_bytes": self._pool_bytes(),
        }

    @property
    def pager(self) -> Pager:
        """The pager. Raise ClosedError if the region is closed."""
        pager = self._pager
        if pager is None:
            self._refuse()
            raise ClosedError(f"this {type(self).__name__} is closed")
        return pager

    def _close(self) -> None:
        # The addresses stay reserved as long as an array uses them.
        pager, self._pager = self._pager, None
        try:
            if pager is not None:
                pager.close()
        except BaseException:
            self._pager = pager  # after an interrupt, the next close continues here
            raise
        super()._close()
