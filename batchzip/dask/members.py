"""Members: the shards of a store at one epoch, and which of them have which stripe.

Rendezvous hashing: each stripe ranks all members by a hash of the two, and its first `replicas` own it;
the first of these is its primary. A member that comes takes its share from all others, and the stripes of
one that goes are spread over all others; no other stripe moves. Hashes are the same in every process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import xxhash

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

_MASK = (1 << 64) - 1
_SPREAD = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
"""The constants of splitmix64, which mixes a stripe with a member's seed."""

_CACHED = 1 << 16
"""Stripes whose owners are remembered."""


_SILENT_S = 5.0
"""Seconds after which a shard is looked after whose pages another one has."""


def patience_s(timeout_s: float, replicas: int) -> float:
    """Return the seconds for which to wait for a shard: fewer if it is missed by nobody."""
    return timeout_s if replicas == 1 else min(timeout_s, _SILENT_S)


class Member(NamedTuple):
    """A shard: its name, which is never used again, and its worker's address."""

    name: str
    address: str


class Members:
    """The members of a store at one epoch. Immutable."""

    def __init__(self, epoch: int, members: Iterable[tuple[str, str]], replicas: int) -> None:
        self.epoch = epoch
        self.members = tuple(Member(*member) for member in members)
        self.replicas = replicas
        self.by_name = {member.name: member for member in self.members}
        self._seeds = [xxhash.xxh64_intdigest(member.name.encode()) for member in self.members]
        self._owners: dict[int, tuple[Member, ...]] = {}

    def owners(self, stripe: int) -> tuple[Member, ...]:
        """Return the members that have a stripe, its primary first; none if there are no members."""
        owners = self._owners.get(stripe)
        if owners is None:
            ranks = [_mixed(stripe, seed) for seed in self._seeds]
            order = sorted(range(len(ranks)), key=ranks.__getitem__, reverse=True)
            owners = tuple(self.members[at] for at in order[: self.replicas])
            if len(self._owners) >= _CACHED:
                self._owners.clear()
            self._owners[stripe] = owners
        return owners

    def primaries(self, stripes: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
        """Return the position in `members` of the primary of each stripe; there must be members."""
        keys = stripes.astype(np.uint64)[:, None] * np.uint64(_SPREAD)
        ranks = keys ^ np.array(self._seeds, np.uint64)
        ranks = (ranks ^ (ranks >> np.uint64(30))) * np.uint64(_FIRST)
        ranks = (ranks ^ (ranks >> np.uint64(27))) * np.uint64(_SECOND)
        positions: npt.NDArray[np.intp] = np.argmax(ranks ^ (ranks >> np.uint64(31)), axis=1)
        return positions


def _mixed(stripe: int, seed: int) -> int:
    rank = (stripe * _SPREAD & _MASK) ^ seed
    rank = (rank ^ rank >> 30) * _FIRST & _MASK
    rank = (rank ^ rank >> 27) * _SECOND & _MASK
    return rank ^ rank >> 31
