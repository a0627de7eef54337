"""Placement: where the stripes of one store are, as the directory knows it.

    stripes   which shards hold each stripe      pulls, pushes   which have to move, from where or to where
    lost      stripes whose last holder is gone  discards        copies that nobody needs any more

Belongs to the scheduler's event loop.
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
    """A shard, a member or one that is leaving."""

    address: str
    lease_until: float


@dataclass(slots=True)
class StripeHolders:
    """A stripe in which something was stored."""

    holders: tuple[str, ...]
    """Shards that have all of its pages."""
    clients: set[str]
    """Clients that stored there."""


@dataclass(slots=True)
class LostStripe:
    """A stripe whose pages are gone."""

    address: str
    reason: str
    clients: set[str]
    forgotten: int = 0
    """A bit for each index that was invalidated since."""


@dataclass
class StripeMap:
    """A store's state."""

    name: str
    options: dict[str, Any]
    workers: frozenset[str] | None
    """Addresses it is bound to, or None."""
    page_size: int
    epoch: int
    clients: dict[str, str] = field(default_factory=dict)
    """By each that is attached: its Dask client."""
    incarnation: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Tells it from one of the same name on an earlier scheduler."""
    shards: dict[str, ShardLease] = field(default_factory=dict)
    leaving: dict[str, ShardLease] = field(default_factory=dict)
    stripes: dict[int, StripeHolders] = field(default_factory=dict)
    lost: dict[int, LostStripe] = field(default_factory=dict)
    recovered: dict[int, int] = field(default_factory=dict)
    """The epoch at which a lost stripe was forgotten."""
    joining: set[str] = field(default_factory=set)
    """Addresses of workers that are getting a shard."""
    refused: dict[str, bytes] = field(default_factory=dict)
    """Workers that cannot have a shard, and the error that says why."""
    pulls: dict[str, dict[int, list[list[str]]]] = field(default_factory=dict)
    """By shard: the stripes it has to pull, and from where."""
    pushes: dict[str, dict[int, list[list[str]]]] = field(default_factory=dict)
    """By shard: the stripes it has to push, and where to."""
    discards: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    """By shard: stripes that it has, and does not hold any more."""
    moved_pages: int = 0
    ended: bool = False
    members: Members = field(default_factory=lambda: Members(0, (), 1))

    def advance(self) -> None:
        """Begin the next epoch with the shards that there are, and find what has to move."""
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
        """Have nobody but the owners hold a stripe, once all of these do.

        Until then no page is stored there, as the primary brings it to the other owners first: what others
        have is as good.
        """
        owners = [owner.name for owner in self.members.owners(number)]
        if owners and all(owner in stripe.holders for owner in owners):
            for holder in set(stripe.holders).difference(owners):
                self.discards[holder].add(number)
            stripe.holders = tuple(owners)

    def address_of(self, name: str) -> str:
        """Return the address of a shard that is here."""
        return (self.shards.get(name) or self.leaving[name]).address

    def lose(self, name: str, reason: str) -> None:
        """Take a shard out that is gone, and note which stripes are lost with it."""
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
        """Return whether a shard has pages that no other has."""
        return any(name in stripe.holders for stripe in self.stripes.values())

    def as_seen_by_client(self, since: int) -> Answer:
        """Return what a client has to know that knew the epoch `since`."""
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
        """Return whether a stripe is not yet where it belongs."""
        return any((*self.pulls.values(), *self.pushes.values()))

    def as_seen_by_shard(self, name: str) -> Answer:
        """Return what a shard has to know of this epoch."""
        return {
            "status": OK,
            "epoch": self.epoch,
            "replicas": self.options["replicas"],
            "members": [list(member) for member in self.members.members],
            "holds": [number for number, one in self.stripes.items() if name in one.holders],
            "pulls": [[number, where] for number, where in self.pulls.get(name, {}).items()],
            "pushes": [[number, where] for number, where in self.pushes.get(name, {}).items()],
        }
