"""Weighing: choose the containers that may pay for some values, and measure them.

dicts ─▶ a mapping per serializer that accepts all values ─▶ all mappings of the best serializer
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
"""Fraction of all bytes that short values must have for dictionaries, which suit only them."""

_NEAR = 0.05
"""Difference in memory (a fraction) that does not justify a slower or more complex choice."""

_ALIKE = 1.1
"""Ratio of costs that is still noise. Among such choices, the simplest is recommended."""

_FEW_BYTES = 4 << 20
"""Bytes in a dict below which the allocators' rounding makes the figures imprecise."""


@dataclass(frozen=True, slots=True)
class Held:
    """The memory and times of the values in one container."""

    holder: Holder
    bytes: int
    """Growth of the process that held the measured values."""
    total_bytes: int
    """Estimate for all values. Dictionaries are counted once, whatever the number of values."""
    put_us: float
    """Median time of a put, in microseconds."""
    get_us: float
    """Median time of a get in random order, in microseconds."""
    of_dict: float
    """Memory of all values ÷ their memory in a dict."""

    @property
    def name(self) -> str:
        """The name of the container for people."""
        return self.holder.name

    @property
    def code(self) -> str:
        """Python code that makes the container."""
        return self.holder.code


class Weighing:
    """Measures the containers that may pay.

    Each serializer that accepts all values is tried in one mapping. The best one is tried in all.
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
        """Measure each container."""
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
        """Return the results, scaled to `scale` times as many values.

        Leave out mappings whose dictionary was not trained.
        """
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
        """Return notes on the figures."""
        found = []
        if not self._spooled.all_bytes:
            found.append(
                "Values are objects that were restored from pickles: data that more than a few of "
                "them share is counted more than once."
            )
        if self._is_json:
            found.append(
                "The dict of objects holds the parsed lines; for advice on such a cache, add "
                '"--parsed".'
            )
        found += [f"Not tried: {error}." for error in self._spooled.suiting.missing]
        pairs = list(zip(self.holders, self.weights, strict=True))
        if any(holder.dictionary and not weight.dictionary_bytes for holder, weight in pairs):
            found.append(
                "Mappings with a dictionary that was not trained are left out: training takes "
                "about a thousand similar values, and the dictionary is kept only if it pays."
            )
        if self.weights[0].measure != "PSS":
            found.append("Memory is RSS here, not PSS: the kernel does not report the PSS.")
        if self.weights[0].bytes < _FEW_BYTES:
            found.append(
                f"These are few values: below {size_text(_FEW_BYTES)} of memory, the allocators' "
                "rounding makes the figures imprecise."
            )
        return found


def _dicts(serializer: str, *, is_json: bool) -> list[Holder]:
    kinds = ["dict", *["parsed"] * is_json, *["pickles"] * (serializer != "bytes"), "lz4.block"]
    return [Holder(kind, serializer) for kind in kinds]


def _worth_trying(spooled: Spooled, serializer: str) -> list[Holder]:
    some = spooled.value_bytes * _SOME
    holders = []
    for algorithm, level in (("lz4", None), ("zstd", 1), ("zstd", 3)):
        plain = Holder("mapping", serializer, algorithm, level)
        holders.append(plain)
        # Dictionaries are for short values: longer ones repeat themselves enough.
        if algorithm == "zstd" and spooled.short_bytes > some:
            holders.append(replace(plain, dictionary=True))
    return holders


def _best_serializer(held: Sequence[Held]) -> str:
    """Return the best serializer: pickle, which runs code, only if it saves clear memory."""
    least = min(each.total_bytes for each in held)
    others = [
        each
        for each in held
        if each.holder.serializer != "pickle" and each.total_bytes <= least * (1 + _NEAR)
    ]
    return best(others or held).holder.serializer


def best(held: Sequence[Held]) -> Held:
    """Return the fastest of those with nearly the least memory. Of equals, return the first."""
    least = min(each.total_bytes for each in held)
    near = [each for each in held if each.total_bytes <= least * (1 + _NEAR)]
    cheapest = min(each.put_us + each.get_us for each in near)
    return next(each for each in near if each.put_us + each.get_us <= cheapest * _ALIKE)
