"""Members: the shards of a store at one epoch, and which of them own which stripe.

Rendezvous hashing: each stripe ranks all members by a hash of stripe and member. The first
`replicas` members own it, and the first one is its primary. A new member takes an equal share from
all others. The stripes of a member that leaves are spread over the rest. No other stripe moves. The
hashes are the same in every process.
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
"""Constants of splitmix64, which mixes a stripe with a member's seed."""

_CACHED = 1 << 16
"""Stripes whose owners are cached."""


_SILENT_S = 5.0
"""Seconds of silence after which a shard is checked if another shard has its pages, too."""


def patience_s(timeout_s: float, replicas: int) -> float:
    """Return the seconds to wait for a shard. They are fewer if another shard has its pages."""
    return timeout_s if replicas == 1 else min(timeout_s, _SILENT_S)


class Member(NamedTuple):
    """A shard: its name, which is never reused, and its worker's address."""

    name: str
    address: str


class Members:
    """The members of a store at one epoch. Immutable apart from a cache."""

    def __init__(self, epoch: int, members: Iterable[tuple[str, str]], replicas: int) -> None:
        self.epoch = epoch
        self.members = tuple(Member(*member) for member in members)
        self.replicas = replicas
        self.by_name = {member.name: member for member in self.members}
        self._seeds = [xxhash.xxh64_intdigest(member.name.encode()) for member in self.members]
        self._owners: dict[int, tuple[Member, ...]] = {}

    def owners(self, stripe: int) -> tuple[Member, ...]:
        """Return the owners of a stripe, the primary first. Without members there are none."""
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
        """Return the positions in `members` of the stripes' primaries. There must be members."""
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
