"""Weighing: the holders that may pay for some values, and what each of them took.

dicts ─▶ a mapping for each serializer that takes all values ─▶ of the best one, every mapping
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from batchzip.advice.holder import Holder, weigh
from batchzip.terminal.text import size_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batchzip.advice.holder import Weight
    from batchzip.advice.spool import Spooled

_SOME = 0.1
"""Share of all bytes from which it pays to try what is for values of some lengths: larger pages for
those that lie on pages, dictionaries for those that do not."""

_NEAR = 0.05
"""Share of memory that is not worth a slower or a less simple choice."""

_ALIKE = 1.1
"""Costs within so much of each other are noise: the simpler choice is recommended then."""

_FEW_BYTES = 4 << 20
"""Bytes in a dict below which rounding of allocators blurs the figures."""


@dataclass(frozen=True, slots=True)
class Held:
    """What the values that were looked at took in one holder."""

    holder: Holder
    bytes: int
    """Of memory, by which the process that held them grew."""
    total_bytes: int
    """The same of all values; dictionaries are there once, however many values there are."""
    put_us: float
    """Median of a put, of one value."""
    get_us: float
    """Median of a get in random order, of one value."""
    of_dict: float
    """Memory of all ÷ that of the dict."""

    @property
    def name(self) -> str:
        """What people call it."""
        return self.holder.name

    @property
    def code(self) -> str:
        """Python that makes it."""
        return self.holder.code


class Weighing:
    """The holders that may pay, and what they weighed.

    Of the serializers that take all values, each is tried in one mapping; the best goes on.
    """

    def __init__(
        self,
        spooled: Spooled,
        spool_fd: int,
        progress: Callable[[int, int], None] | None,
        *,
        is_json: bool,
    ) -> None:
        self.holders: list[Holder] = []
        self.weights: list[Weight] = []
        self.serializer = "bytes"
        self._spooled = spooled
        self._is_json = is_json
        self._spool_fd = spool_fd
        self._progress = progress

    def run(self) -> None:
        """Weigh each."""
        spooled = self._spooled
        suiting = ["bytes"] if spooled.all_bytes else spooled.suiting.names
        self.serializer = suiting[-1]
        dicts = _dicts(self.serializer, is_json=self._is_json)
        probes = [Holder("mapping", each, "zstd", 1) for each in suiting]
        all_holders = len(dicts) + len(probes) - 1 + len(_worth_trying(spooled, self.serializer))
        for holder in dicts:
            self._weigh(holder, all_holders)
        if len(probes) > 1:
            for probe in probes:
                self._weigh(probe, all_holders)
            self.serializer = _best_serializer(self.held(1.0)[-len(probes) :])
        for holder in _worth_trying(spooled, self.serializer):
            if holder not in self.holders:
                self._weigh(holder, all_holders)

    def _weigh(self, holder: Holder, all_holders: int) -> None:
        self.weights.append(weigh(holder, self._spool_fd, self._spooled.values))
        self.holders.append(holder)
        if self._progress is not None:
            self._progress(len(self.weights), all_holders)

    def held(self, scale: float) -> list[Held]:
        """Return what those took that did what they are for, of `scale` times as many values."""
        in_dict = max(1, round(self.weights[0].bytes * scale))
        found = []
        for holder, weight in zip(self.holders, self.weights, strict=True):
            if holder.dictionary and not weight.dictionary_bytes:
                continue
            once = min(weight.bytes, weight.dictionary_bytes)
            total = once + round((weight.bytes - once) * scale)
            found.append(
                Held(
                    holder=holder,
                    bytes=weight.bytes,
                    total_bytes=total,
                    put_us=weight.put_us,
                    get_us=weight.get_us,
                    of_dict=total / in_dict,
                )
            )
        return found

    def notes(self) -> list[str]:
        """Return what to know about the figures."""
        found = []
        if not self._spooled.all_bytes:
            found.append(
                "Values are objects, as pickling restores them: what more than a few of them "
                "share counts more than once."
            )
        if self._is_json:
            found.append(
                'The dict of objects has what the lines are as JSON; for such a cache, add "--parsed".'
            )
        found += [f"Not tried: {error}." for error in self._spooled.suiting.missing]
        pairs = list(zip(self.holders, self.weights, strict=True))
        if any(holder.dictionary and not weight.dictionary_bytes for holder, weight in pairs):
            found.append(
                "Mappings with a dictionary that was not learnt are left out: it takes about a "
                "thousand values of one kind, and is kept only where it pays."
            )
        if self.weights[0].measure != "PSS":
            found.append("Memory is RSS here, not PSS: the kernel does not tell the PSS.")
        if self.weights[0].bytes < _FEW_BYTES:
            found.append(
                f"These are few values: with less than {size_text(_FEW_BYTES)} of memory, rounding of "
                "allocators blurs the figures."
            )
        return found


def _dicts(serializer: str, *, is_json: bool) -> list[Holder]:
    kinds = ["dict", *["parsed"] * is_json, *["pickles"] * (serializer != "bytes"), "lz4.block"]
    return [Holder(kind, serializer) for kind in kinds]


def _worth_trying(spooled: Spooled, serializer: str) -> list[Holder]:
    some = spooled.value_bytes * _SOME
    is_large = spooled.value_bytes - spooled.short_bytes > some
    holders = []
    for size in (4096, 16384, 65536) if is_large else (4096,):
        for algorithm, level in (("lz4", None), ("zstd", 1), ("zstd", 3)):
            plain = Holder("mapping", serializer, algorithm, level, size)
            holders.append(plain)
            # Longer values find what they have in common in themselves.
            if algorithm == "zstd" and spooled.short_bytes > some:
                holders.append(replace(plain, dictionary=True))
    return holders


def _best_serializer(held: Sequence[Held]) -> str:
    """Choose one. Pickle, which runs code, only where it takes clearly less memory."""
    least = min(each.total_bytes for each in held)
    others = [
        each
        for each in held
        if each.holder.serializer != "pickle" and each.total_bytes <= least * (1 + _NEAR)
    ]
    return best(others or held).holder.serializer


def best(held: Sequence[Held]) -> Held:
    """Choose the quickest of those that take nearly the least memory; of equals, the first."""
    least = min(each.total_bytes for each in held)
    near = [each for each in held if each.total_bytes <= least * (1 + _NEAR)]
    cheapest = min(each.put_us + each.get_us for each in near)
    return next(each for each in near if each.put_us + each.get_us <= cheapest * _ALIKE)
