"""StripeMap: where the stripes of one store are, as the directory knows it.

    stripes        which shards hold each stripe
    pulls, pushes  which stripes have to move, and from or to which shards
    lost           stripes whose last holder is lost
    discards       copies that are no longer needed

It belongs to the scheduler's event loop.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from batchzip.dask.members import Members
from batchzip.dask.wire import OK

if TYPE_CHECKING:
    from batchzip.dask.wire import Answer


@dataclass(slots=True)
class ShardLease:
    """A shard that is a member or is leaving."""

    address: str
    lease_until: float


@dataclass(slots=True)
class StripeHolders:
    """A stripe in which pages were stored."""

    holders: tuple[str, ...]
    """The shards that have all of its pages."""
    clients: set[str]
    """The clients that stored there."""


@dataclass(slots=True)
class LostStripe:
    """A stripe whose pages are lost."""

    address: str
    reason: str
    clients: set[str]
    forgotten: int = 0
    """A bit for each index that was invalidated after the loss."""


@dataclass
class StripeMap:
    """The directory's state of one store."""

    name: str
    options: dict[str, Any]
    workers: frozenset[str] | None
    """The addresses that the store is restricted to, or None."""
    page_size: int
    epoch: int
    clients: dict[str, str] = field(default_factory=dict)
    """The Dask client of each attachment."""
    incarnation: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Distinguishes the store from one of the same name on an earlier scheduler."""
    shards: dict[str, ShardLease] = field(default_factory=dict)
    leaving: dict[str, ShardLease] = field(default_factory=dict)
    stripes: dict[int, StripeHolders] = field(default_factory=dict)
    lost: dict[int, LostStripe] = field(default_factory=dict)
    recovered: dict[int, int] = field(default_factory=dict)
    """The epoch at which each recovered stripe was recovered."""
    joining: set[str] = field(default_factory=set)
    """Addresses of workers that are getting a shard."""
    refused: dict[str, bytes] = field(default_factory=dict)
    """Pickled errors of workers that cannot have a shard, by address."""
    pulls: dict[str, dict[int, list[list[str]]]] = field(default_factory=dict)
    """By shard: the stripes to pull, and from where."""
    pushes: dict[str, dict[int, list[list[str]]]] = field(default_factory=dict)
    """By shard: the stripes to push, and where to."""
    discards: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    """By shard: the stripes that it still has but no longer holds."""
    moved_pages: int = 0
    ended: bool = False
    members: Members = field(default_factory=lambda: Members(0, (), 1))

    def advance(self) -> None:
        """Begin the next epoch with the current shards, and find the stripes that have to move."""
        self.epoch += 1
        members = [(name, shard.address) for name, shard in self.shards.items()]
        self.members = Members(self.epoch, members, self.options["replicas"])
        self.pulls, self.pushes = defaultdict(dict), defaultdict(dict)
        for number, stripe in self.stripes.items():
            owners = self.members.owners(number)
            if not owners:
                continue
            self.trim(number, stripe)
            primary, holders = owners[0].name, stripe.holders
            if primary not in holders:
                sources = [[name, self.address_of(name)] for name in holders]
                self.pulls[primary][number] = sources
            wanting = [list(owner) for owner in owners[1:] if owner.name not in holders]
            if wanting:
                self.pushes[primary][number] = wanting

    def trim(self, number: int, stripe: StripeHolders) -> None:
        """Make the owners the only holders of a stripe once all of them hold it.

        Until then no page is stored in the stripe, because the primary first pushes it to the other
        owners. So the copies of former holders stay valid until they are discarded.
        """
        owners = [owner.name for owner in self.members.owners(number)]
        if owners and all(owner in stripe.holders for owner in owners):
            for holder in set(stripe.holders).difference(owners):
                self.discards[holder].add(number)
            stripe.holders = tuple(owners)

    def address_of(self, name: str) -> str:
        """Return the address of a member or leaving shard."""
        return (self.shards.get(name) or self.leaving[name]).address

    def lose(self, name: str, reason: str) -> None:
        """Remove a lost shard, and note which stripes are lost with it."""
        shard = self.shards.pop(name, None) or self.leaving.pop(name, None)
        if shard is None:
            return
        self.discards.pop(name, None)
        for number, stripe in list(self.stripes.items()):
            if name in stripe.holders:
                stripe.holders = tuple(other for other in stripe.holders if other != name)
                if not stripe.holders:
                    del self.stripes[number]
                    self.lost[number] = LostStripe(shard.address, reason, stripe.clients)
        self.advance()

    def holds(self, name: str) -> bool:
        """Return whether a shard is the holder of any stripe."""
        return any(name in stripe.holders for stripe in self.stripes.values())

    def as_seen_by_client(self, since: int) -> Answer:
        """Return the state for a client that last knew the epoch `since`."""
        groups: dict[tuple[str, str], list[int]] = {}
        for number, lost in self.lost.items():
            groups.setdefault((lost.address, lost.reason), []).append(number)
        return {
            "status": OK,
            "incarnation": self.incarnation,
            "epoch": self.epoch,
            "page_size": self.page_size,
            "replicas": self.options["replicas"],
            "members": [list(member) for member in self.members.members],
            "lost": [[address, reason, numbers] for (address, reason), numbers in groups.items()],
            "recovered": [[number, at] for number, at in self.recovered.items() if at > since],
        }

    def is_moving(self) -> bool:
        """Return whether a stripe is still to be pulled or pushed."""
        return any((*self.pulls.values(), *self.pushes.values()))

    def as_seen_by_shard(self, name: str) -> Answer:
        """Return the state for a shard at this epoch."""
        return {
            "status": OK,
            "epoch": self.epoch,
            "replicas": self.options["replicas"],
            "members": [list(member) for member in self.members.members],
            "holds": [number for number, one in self.stripes.items() if name in one.holders],
            "pulls": [[number, where] for number, where in self.pulls.get(name, {}).items()],
            "pushes": [[number, where] for number, where in self.pushes.get(name, {}).items()],
        }
