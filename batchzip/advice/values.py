"""Advice on values: what they would take in a dict, and in a CompressedMapping.

    values ─▶ spool: a file of them, or of a sample
           ─▶ weighing: which holders may pay; each in a fresh process that reads the file (holder.py)
           ─▶ one is recommended

Rejected: measuring in a forked child. It has what its parent freed, and grows by what it touches.
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
"""Bytes of values that are looked at by default."""

_MOST_BYTES = 1 << 63

_WORTH = 0.1
"""Share of a dict's memory that has to be saved for anything else to be recommended."""

_LEAST_BYTES = 1 << 20
"""Bytes in a dict below which the figures say nothing."""


@dataclass(frozen=True, slots=True)
class ValuesAdvice:
    """What `advise_values` found; as a str, a report of 80 columns.

    Examples:
        >>> import batchzip
        >>> cache = {str(n): f'{{"mail": "{n * n}@example.org"}}'.encode() for n in range(3000)}
        >>> advice = batchzip.advise_values(cache)
        >>> advice.recommended in advice.held
        True
    """

    total_values: int
    """All there are; of a sample of a file, an estimate."""
    total_bytes: int
    """Bytes of all values as they are serialised; of a sample, an estimate."""
    measured_values: int
    measured_bytes: int
    measure: str
    """How memory was counted: PSS, or RSS where the kernel does not tell the PSS."""
    serializer: str
    """bytes; if any value is not bytes, the serializer that suits them: it takes all, and the least memory."""
    held: tuple[Held, ...]
    """First in a dict, then in dicts of what is made of them, then in each mapping."""
    recommended: Held
    sentence: str
    """The recommendation, for people."""
    notes: tuple[str, ...]
    """What to know about the figures."""

    @property
    def code(self) -> str:
        """The recommendation as Python that can be pasted."""
        return self.recommended.code

    def report(self, width: int = 80, *, name: str = "values") -> str:
        """Return all of it for people, in lines of at most `width` columns."""
        if self.measured_values == self.total_values:
            looked = f"{name}: {self.total_values:,} values, {size_text(self.total_bytes)}"
        else:
            looked = (
                f"{name}: about {self.total_values:,} values, {size_text(self.total_bytes)}; "
                f"a sample of {self.measured_values:,}, {size_text(self.measured_bytes)}, was "
                "measured, and its memory scaled to all of them"
            )
        # Imported here, because a program that never prints a report needs no rich.
        from batchzip.terminal.console import as_text  # noqa: PLC0415
        from batchzip.terminal.table import Table  # noqa: PLC0415

        table = Table()
        table.add_column("", rank=0)
        table.add_column("in a", rank=0, left=True, wraps=True)
        for rank, heading in ((0, self.measure), (4, "B a value"), (3, "of dict")):
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
            "Those beneath the dicts are CompressedMappings. Memory is the growth of the "
            f"{self.measure} of a fresh process for each, times are medians for one value."
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
    """Keys and values, and how much there is of them all: what is None is estimated."""

    pairs: Iterator[tuple[Any, Any]]
    total_values: int | None = None
    total_bytes: int | None = None
    is_sample: bool = False
    """Whether `pairs` leaves some out."""
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
    """Measure what the values take in a dict, in dicts of what is made of them, and in mappings.

    `values` is a mapping, or an iterable of values, whose keys are then their numbers as str. Where
    they have more than `sample_bytes` when serialised, a random sample is measured; of an iterator,
    which cannot be looked at twice, the first ones. `seed` is that of the sample.
    `progress(done, all)` is called as each is measured.

    If any value is not bytes, each serializer that takes all of them is tried, and the best one used.
    Each is measured in a fresh process, which reads the values from a file in the temporary folder:
    the classes of values have to be importable there, not of a script. Takes some seconds.

    Raises BadArgument where there are no values, NotStorable for values that cannot be pickled,
    OSError if the file cannot be written, BatchzipError if a process fails.

    Examples:
        >>> import batchzip
        >>> cache = {str(n): f'{{"mail": "{n * n}@example.org"}}'.encode() for n in range(3000)}
        >>> advice = batchzip.advise_values(cache)
        >>> print(str(advice).splitlines()[0])
        values: 3,000 values, ...
    """
    return weigh_all(source_of(values, seed), sample_bytes, progress)


def source_of(values: Any, seed: int) -> ValueSource:
    """Return pairs of values in a random order, if they can be had in it."""
    if isinstance(values, str | bytes | bytearray | memoryview):
        raise BadArgument(f"values are a mapping or an iterable of values, not {shown(values)}")
    if isinstance(values, Mapping):
        order = _shuffled(list(values), seed)
        return ValueSource(_items(values, order), len(order))
    if not isinstance(values, Iterable):
        raise BadArgument(f"values are a mapping or an iterable of values, not {shown(values)}")
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
        except KeyError:  # a cache forgets
            continue
        yield key, value


def weigh_all(
    source: ValueSource, sample_bytes: int, progress: Callable[[int, int], None] | None = None
) -> ValuesAdvice:
    """Measure the values of a source in every holder that may pay."""
    most = as_integer(sample_bytes, "sample_bytes", 1, _MOST_BYTES)
    if not Path("/proc/self/status").exists():
        raise BatchzipError("memory of a process is told by /proc, which is not mounted here")
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
        notes.append(f"There are more values: the first {spooled.values:,} were looked at.")
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
    """Return how many values there are, None where nobody knows, and their bytes."""
    if spooled.complete and not source.is_sample:
        return spooled.values, spooled.value_bytes
    each = max(spooled.value_bytes / spooled.values, 1e-9)
    count, size = source.total_values, source.total_bytes
    if count is None:
        count = None if size is None else max(spooled.values, round(size / each))
    return count, round((count or 0) * each) if size is None else size


def recommend(held: Sequence[Held], *, is_sample: bool) -> tuple[Held, str]:
    """Choose what to keep the values in, and say it in a sentence."""
    in_dict = held[0]

    def of_all(each: Held) -> str:
        return f"{'about ' if is_sample else ''}{size_text(each.total_bytes)}"

    if in_dict.bytes < _LEAST_BYTES:
        return in_dict, (
            f"Keep the dict: the values that were measured take {size_text(in_dict.bytes)} in it, too "
            f"little to compare; give some MiB of values for advice."
        )
    others = [each for each in held if each.holder.kind != "parsed"]  # values of another kind
    least = min(others, key=lambda each: each.total_bytes)
    if least.of_dict > 1 - _WORTH:
        most = "nothing takes less"
        if least is not in_dict:
            most = f"the most that anything saves is {1 - least.of_dict:.0%} ({least.name})"
        return in_dict, f"Keep the dict: the values take {of_all(in_dict)} in it, and {most}."
    chosen = best(others)
    what = {
        "pickles": "a dict of pickles",
        "lz4.block": "a dict of what lz4.block makes",
    }.get(chosen.holder.kind, f"a CompressedMapping with {chosen.name}")
    return chosen, (
        f"Use {what}: the values take {of_all(chosen)} in it, {of_all(in_dict)} in a "
        f"dict ({1 - chosen.of_dict:.0%} less); a put takes {chosen.put_us:,.1f} µs, "
        f"a get {chosen.get_us:,.1f} µs."
    )
