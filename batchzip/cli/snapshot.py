"""Snapshot: how a store in another process stands, and what happened between two of them."""

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
    """What a store said of itself; its parts are milliseconds apart."""

    taken_s: float
    """Of the monotonic clock."""
    address: str
    counters: Counters
    status: dict[str, Any]
    classes: list[ClassUse]

    def count(self, what: str) -> int:
        """Read a counter, or the sum over the groups of what passed through them."""
        if what in ("page_stores", "page_loads"):
            return sum(group[what] for group in self.status["groups"].values())
        value: int = getattr(self.counters, what)
        return value

    def rate(self, what: str, before: Snapshot | None) -> float | None:
        """How much a counter grew a second since then; None where there is no before."""
        if before is None:
            return None
        return (self.count(what) - before.count(what)) / (self.taken_s - before.taken_s)

    def latencies(self, before: Snapshot | None) -> dict[str, Latency]:
        """Give how long calls of each operation took since then, or ever; without those that nobody called.

        If none was timed since then, which is so where calls are few, those that ever were count.
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
        """Give each worker's pid, the pages it did, and the share of the time it worked since then."""
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
    """Ask the owner. Raises ClosedError where it is gone, RequestTimeout where it does not answer."""
    counters, status, classes = view.counters, view.status(), view.classes()
    return Snapshot(time.monotonic(), view.address, counters, status, classes)
