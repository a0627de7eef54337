"""Snapshot: the figures of a store in another process, and their changes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batchzip.store.latency import Latency

if TYPE_CHECKING:
    from batchzip.pool.class_use import ClassUse
    from batchzip.store.counters import Counters
    from batchzip.store.remote.view import StoreView


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The figures that a store reported. They are milliseconds apart."""

    taken_s: float
    """Time of the snapshot, by the monotonic clock."""
    address: str
    counters: Counters
    status: dict[str, Any]
    classes: list[ClassUse]

    def count(self, what: str) -> int:
        """Return a counter, or the sum of a figure over all groups."""
        if what in ("page_stores", "page_loads"):
            return sum(group[what] for group in self.status["groups"].values())
        value: int = getattr(self.counters, what)
        return value

    def rate(self, what: str, before: Snapshot | None) -> float | None:
        """Return a counter's growth per second since `before`, or None without one."""
        if before is None:
            return None
        return (self.count(what) - before.count(what)) / (self.taken_s - before.taken_s)

    def latencies(self, before: Snapshot | None) -> dict[str, Latency]:
        """Return the latencies of operations since `before`, without operations never called.

        If no call was timed since then, return the latencies since the beginning.
        """
        earlier = {} if before is None else before.status["groups"]
        found: dict[str, tuple[Latency, Latency]] = {}
        for name, group in self.status["groups"].items():
            for operation, latency in group["latencies"].items():
                since = latency
                if name in earlier:
                    since = latency - earlier[name]["latencies"][operation]
                ever, new = found.get(operation, (Latency(), Latency()))
                found[operation] = ever + latency, new + since
        return {
            operation: new if new.count else ever
            for operation, (ever, new) in found.items()
            if ever.count
        }

    def loads(self, before: Snapshot | None) -> list[tuple[int, int, float | None]]:
        """Return each worker's pid, its pages and its load since `before`, from 0 to 1."""
        earlier = {
            worker.pid: worker.busy_s
            for worker in (before.status["statistics"].workers if before else ())
        }
        return [
            (
                worker.pid,
                worker.pages,
                None
                if before is None or worker.pid not in earlier
                else (worker.busy_s - earlier[worker.pid]) / (self.taken_s - before.taken_s),
            )
            for worker in self.status["statistics"].workers
        ]


def take_snapshot(view: StoreView) -> Snapshot:
    """Ask the owner. Raise ClosedError if it is gone, RequestTimeout if it does not answer."""
    counters, status, classes = view.counters, view.status(), view.classes()
    return Snapshot(time.monotonic(), view.address, counters, status, classes)
