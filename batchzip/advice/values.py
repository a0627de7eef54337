"""Advice on values: their memory in a dict and in a CompressedMapping.

    values ─▶ spool: a file of the values, or of a sample
           ─▶ weighing: the containers that may pay, each in a fresh process that reads the file
           ─▶ recommendation

Measuring in a forked child was rejected: it inherits free memory of its parent, which new values
fill without growth, and grows by copying pages that it touches.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchzip.advice.spool import write
from batchzip.advice.weighing import Weighing, best
from batchzip.arguments.checks import as_integer
from batchzip.errors import BadArgument, BatchzipError
from batchzip.system.descriptors import above_standard
from batchzip.terminal.text import size_text, wrapped
from batchzip.wording import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from batchzip.advice.spool import Spooled
    from batchzip.advice.weighing import Held

SAMPLE_BYTES = 64 << 20
"""Bytes of values that are measured by default."""

_MOST_BYTES = 1 << 63

_WORTH = 0.1
"""Fraction of a dict's memory that another container must save to be recommended."""

_LEAST_BYTES = 1 << 20
"""Bytes in a dict below which the figures are meaningless."""


@dataclass(frozen=True, slots=True)
class ValuesAdvice:
    """The result of `advise_values`. `str()` returns a report of 80 columns.

    Examples:
        >>> import batchzip
        >>> cache = {str(n): f'{{"mail": "{n * n}@example.org"}}'.encode() for n in range(3000)}
        >>> advice = batchzip.advise_values(cache)
        >>> advice.recommended in advice.held
        True
    """

    total_values: int
    """Number of all values. An estimate if a sample of a file was measured."""
    total_bytes: int
    """Bytes of all values, serialised. An estimate if a sample was measured."""
    measured_values: int
    measured_bytes: int
    measure: str
    """The measure of memory: PSS, or RSS if the kernel does not report the PSS."""
    serializer: str
    """"bytes" if all values are bytes. Otherwise the serializer that needs the least memory."""
    held: tuple[Held, ...]
    """The results: of a dict first, then of dicts of serialised values, then of mappings."""
    recommended: Held
    sentence: str
    """The recommendation as a sentence."""
    notes: tuple[str, ...]
    """Notes on the figures."""

    @property
    def code(self) -> str:
        """Python code that makes the recommended container."""
        return self.recommended.code

    def report(self, width: int = 80, *, name: str = "values") -> str:
        """Return a report in lines of at most `width` columns."""
        if self.measured_values == self.total_values:
            looked = f"{name}: {self.total_values:,} values, {size_text(self.total_bytes)}"
        else:
            looked = (
                f"{name}: about {self.total_values:,} values, {size_text(self.total_bytes)}; "
                f"a sample of {self.measured_values:,}, {size_text(self.measured_bytes)}, was "
                "measured, and its memory scaled to all of them"
            )
        # Imported here, because only programs that print a report need rich.
        from batchzip.terminal.console import as_text  # noqa: PLC0415
        from batchzip.terminal.table import Table  # noqa: PLC0415

        table = Table()
        table.add_column("", rank=0)
        table.add_column("in a", rank=0, left=True, wraps=True)
        for rank, heading in ((0, self.measure), (4, "B / value"), (3, "of dict")):
            table.add_column(heading, rank=rank)
        for rank, heading in ((2, "put µs"), (1, "get µs")):
            table.add_column(heading, rank=rank)
        for held in self.held:
            table.add_row(
                "→" if held is self.recommended else "",
                held.name,
                size_text(held.total_bytes),
                f"{held.total_bytes / self.total_values:,.0f}",
                f"{held.of_dict:.0%}",
                f"{held.put_us:,.1f}",
                f"{held.get_us:,.1f}",
            )
        mappings = (
            "The rows below the dicts are CompressedMappings. Memory is the growth of the "
            f"{self.measure} of a fresh process per row. Times are medians per value."
        )
        paragraphs = [
            wrapped(looked, width),
            as_text(table, width),
            "\n".join(wrapped(note, width) for note in (mappings, *self.notes)),
            wrapped(self.sentence, width),
            self.code,
        ]
        return "\n\n".join(paragraphs)

    def __str__(self) -> str:
        """Return the report."""
        return self.report()


@dataclass(slots=True)
class ValueSource:
    """An iterator of keys and values, with the totals. Totals of None are estimated."""

    pairs: Iterator[tuple[Any, Any]]
    total_values: int | None = None
    total_bytes: int | None = None
    is_sample: bool = False
    """Whether `pairs` yields only a part of all values."""
    is_json: bool = False
    """Whether each value is JSON, as bytes."""
    notes: tuple[str, ...] = ()


def advise_values(
    values: Mapping[Any, Any] | Iterable[Any],
    *,
    sample_bytes: int = SAMPLE_BYTES,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> ValuesAdvice:
    """Measure the memory of values in a dict, in dicts of serialised values, and in mappings.

    `values` is a mapping, or an iterable of values whose keys become their numbers as str. If the
    serialised values exceed `sample_bytes`, a random sample is measured. Of an iterator, which
    cannot be read twice, the first values are measured. `seed` is the seed of the sample.
    `progress(done, all)` is called after each container was measured.

    If any value is not bytes, each serializer that accepts all values is tried, and the best one is
    used. Each container is measured in a fresh process, which reads the values from a file in the
    temporary folder. The classes of values must be importable there: a class defined in a script is
    not. The measurement takes several seconds.

    Raise BadArgument if there are no values, NotStorable for values that cannot be pickled, OSError
    if the file cannot be written, and BatchzipError if a process fails.

    Examples:
        >>> import batchzip
        >>> cache = {str(n): f'{{"mail": "{n * n}@example.org"}}'.encode() for n in range(3000)}
        >>> advice = batchzip.advise_values(cache)
        >>> print(str(advice).splitlines()[0])
        values: 3,000 values, ...
    """
    return weigh_all(source_of(values, seed), sample_bytes, progress)


def source_of(values: Any, seed: int) -> ValueSource:
    """Return the values with their keys, in random order unless `values` is an iterator."""
    if isinstance(values, str | bytes | bytearray | memoryview):
        raise BadArgument(f"values must be a mapping or an iterable of values, not {shown(values)}")
    if isinstance(values, Mapping):
        order = _shuffled(list(values), seed)
        return ValueSource(_items(values, order), len(order))
    if not isinstance(values, Iterable):
        raise BadArgument(f"values must be a mapping or an iterable of values, not {shown(values)}")
    if iter(values) is values:
        return ValueSource((str(number), value) for number, value in enumerate(values))
    if not isinstance(values, Sequence):
        values = list(values)
    order = _shuffled(list(range(len(values))), seed)
    return ValueSource(((str(number), values[number]) for number in order), len(order))


def _shuffled(places: list[Any], seed: int) -> list[Any]:
    random.Random(as_integer(seed, "seed", 0, _MOST_BYTES)).shuffle(places)  # noqa: S311 - a sample
    return places


def _items(values: Mapping[Any, Any], keys: list[Any]) -> Iterator[tuple[Any, Any]]:
    for key in keys:
        try:
            value = values[key]
        except KeyError:  # a cache evicted it in between
            continue
        yield key, value


def weigh_all(
    source: ValueSource, sample_bytes: int, progress: Callable[[int, int], None] | None = None
) -> ValuesAdvice:
    """Measure the values of a source in every container that may pay."""
    most = as_integer(sample_bytes, "sample_bytes", 1, _MOST_BYTES)
    if not Path("/proc/self/status").exists():
        raise BatchzipError("the memory of a process is read from /proc, which is not mounted here")
    with above_standard():
        spool = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the next line
    with spool:
        spooled = write(spool, source.pairs, most)
        if not spooled.values:
            raise BadArgument("there are no values to advise on: give at least one")
        weighing = Weighing(spooled, spool.fileno(), progress, is_json=source.is_json)
        weighing.run()
    notes = [*source.notes, *weighing.notes()]
    total_values, total_bytes = _totals(source, spooled)
    if total_values is None:
        notes.append(f"There are more values: the first {spooled.values:,} were measured.")
        total_values, total_bytes = spooled.values, spooled.value_bytes
    held = weighing.held(total_values / spooled.values)
    recommended, sentence = recommend(held, is_sample=total_values != spooled.values)
    return ValuesAdvice(
        total_values=total_values,
        total_bytes=total_bytes,
        measured_values=spooled.values,
        measured_bytes=spooled.value_bytes,
        measure=weighing.weights[0].measure,
        serializer=weighing.serializer,
        held=tuple(held),
        recommended=recommended,
        sentence=sentence,
        notes=tuple(dict.fromkeys(notes)),
    )


def _totals(source: ValueSource, spooled: Spooled) -> tuple[int | None, int]:
    """Return the number of all values, or None if it is unknown, and their bytes."""
    if spooled.complete and not source.is_sample:
        return spooled.values, spooled.value_bytes
    each = max(spooled.value_bytes / spooled.values, 1e-9)
    count, size = source.total_values, source.total_bytes
    if count is None:
        count = None if size is None else max(spooled.values, round(size / each))
    return count, round((count or 0) * each) if size is None else size


def recommend(held: Sequence[Held], *, is_sample: bool) -> tuple[Held, str]:
    """Return the recommended container, and a sentence."""
    in_dict = held[0]

    def of_all(each: Held) -> str:
        return f"{'about ' if is_sample else ''}{size_text(each.total_bytes)}"

    if in_dict.bytes < _LEAST_BYTES:
        return in_dict, (
            f"Keep the dict: the measured values take {size_text(in_dict.bytes)} in it, too little "
            "to compare; advice needs several MiB of values."
        )
    others = [each for each in held if each.holder.kind != "parsed"]  # it holds other values
    least = min(others, key=lambda each: each.total_bytes)
    if least.of_dict > 1 - _WORTH:
        most = "nothing takes less"
        if least is not in_dict:
            most = f"the most that anything saves is {1 - least.of_dict:.0%} ({least.name})"
        return in_dict, f"Keep the dict: the values take {of_all(in_dict)} in it, and {most}."
    chosen = best(others)
    what = {
        "pickles": "a dict of pickles",
        "lz4.block": "a dict of values compressed by lz4.block",
    }.get(chosen.holder.kind, f"a CompressedMapping with {chosen.name}")
    return chosen, (
        f"Use {what}: the values take {of_all(chosen)} in it, {of_all(in_dict)} in a "
        f"dict ({1 - chosen.of_dict:.0%} less); a put takes {chosen.put_us:,.1f} µs, "
        f"a get {chosen.get_us:,.1f} µs."
    )
