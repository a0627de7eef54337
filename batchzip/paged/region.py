"""Region: the group of a store that has the pages of a paged memory. Index n is page n.

It is a group as any other to whoever looks at it: counters, limits, writeback, checks. Only the pager puts pages in
and takes them out. It knows one codec, the one that the memory was made with: pages are not compressed
again with another one, and the store's engine of now does not count.
"""

from __future__ import annotations

from typing import Any

from batchzip.core.pager import Pager
from batchzip.errors import BadArgument, ClosedError
from batchzip.store.group import Group
from batchzip.store.latency import Latency


class Region(Group):
    """The group of a paged memory. Closing it closes the memory's pager, whose arrays cannot be touched then."""

    _pager: Pager | None = None

    def open(self, *, pages: int, budget: int, fault_threads: int) -> None:
        """Make its pager, which compresses with the codec of the store's engine of now."""
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
        """None: the limit of its pages is the store's."""
        return None

    @max_bytes.setter
    def max_bytes(self, value: int | None) -> None:
        if value is not None:
            raise BadArgument(
                f"group {self.name!r} has the pages of a PagedMemory: limit its store, by max_pool_bytes"
            )

    def _enter_to_change(self) -> None:
        self._enter()
        raise BadArgument(
            f"group {self.name!r} has the pages of a PagedMemory, which alone stores, takes out and recompresses them"
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
        """Its pager. Raise ClosedError once it is closed."""
        pager = self._pager
        if pager is None:
            self._refuse()
            raise ClosedError(f"this {type(self).__name__} is closed")
        return pager

    def _close(self) -> None:
        pager, self._pager = (
            self._pager,
            None,
        )  # addresses stay as long as an array has some of them
        try:
            if pager is not None:
                pager.close()
        except BaseException:
            self._pager = pager  # an interrupt: closing goes on from here
            raise
        super()._close()
