"""Advice: what compressing some data would bring, and with what.

Every way to compress is tried on a sample with a real store of its own, in process: ratios and memory
are those of that pool, costs those of its store() and load(), one page loaded at a time.

    blocks of 64 KiB ─┬─ every fifth ──▶ dictionary, bytes of the elements to shuffle
                      └─ the others, in four parts ──▶ each part through all trials in turn

The parts are what makes costs comparable: what else the machine does in a while hits all trials
alike, and a trial's cost is the median of its parts. What a dictionary was trained on is not what
it is judged by.

A setting is on the Pareto front where no other is at least as good in memory saved, time of a store
and time of a load, and better in one of them.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from batchzip.buffers import as_matrix
from batchzip.codecs import algorithms as usable_algorithms
from batchzip.codecs import make_codec
from batchzip.codecs.dictionary import train_dictionary
from batchzip.codecs.shuffled import ELEMENT_SIZES, shuffle_bytes
from batchzip.engine import Engine
from batchzip.errors import BadArgument
from batchzip.store import SwapStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from batchzip.buffers import Buffer, Bytes

BLOCK_BYTES = 64 << 10
"""Bytes of a block of the sample: the largest page that is tried."""

PAGE_SIZES = (4 << 10, 16 << 10, BLOCK_BYTES)
"""Bytes of the pages that are tried: the machine's, and what pays for colder data."""

TABLE_BYTES = 26
"""Bytes of tables for a stored page: 16 of the store's, 10 of the pool's."""

MAX_LOAD_US = 25.0
"""Microseconds that a load may take to be recommended: a quarter of a read from a fast SSD."""

_LEVELS: dict[str, tuple[dict[str, Any], ...]] = {"zstd": ({"level": 1}, {"level": 3})}
"""Parameters to try, where the default is not all that is of interest."""

_PARTS = 4
"""Parts the sample is measured in: enough for a median, each still long beside the clock."""

_LEAST_TO_TRAIN = 10
"""Blocks of a sample of which a fifth is put aside."""

_NEAR = 0.02
"""Share of memory that is not worth a slower algorithm: of settings so near to the best one, the
quickest is recommended."""

_ALIKE = 1.1
"""Costs within so much of each other are noise: the simpler setting is recommended then."""

_WORTH = 0.1
"""Share of memory that has to be saved for compression to be recommended at all."""


@dataclass(frozen=True, slots=True)
class Option:
    """One way to compress, and what it brought. Shares are of 1, times of one page."""

    algorithm: str
    parameters: dict[str, Any]
    page_size: int
    shuffle: int | None
    dictionary: bool
    same_filled_share: float
    """Pages of one repeated word, which take no memory in the pool."""
    incompressible_share: float
    """Pages that do not get smaller and are kept raw."""
    ratio: float | None
    """Bytes of the pages ÷ compressed bytes, those of same-filled pages 0; None: all are."""
    saved_share: float
    """Memory saved: of the pool with its rounding, and of all tables."""
    saved_bytes: int
    """The same of all the data that the sample is of; the dictionary's own bytes are not counted."""
    store_us: float
    load_us: float
    on_front: bool = False

    @property
    def name(self) -> str:
        """The algorithm with its parameters, for people."""
        words = [self.algorithm, *(f"{key} {value}" for key, value in self.parameters.items())]
        if self.shuffle is not None:
            words.append(f"shuffle {self.shuffle}")
        return " ".join([*words, "dictionary"] if self.dictionary else words)

    @property
    def call(self) -> str:
        """The engine that does this, as code."""
        arguments = [repr(self.algorithm)]
        arguments += [f"{key}={value!r}" for key, value in self.parameters.items()]
        arguments.append(f"page_size={self.page_size}")
        if self.shuffle is not None:
            arguments.append(f"shuffle={self.shuffle}")
        if self.dictionary:
            training = [f"{key}={value!r}" for key, value in self.parameters.items()]
            if self.shuffle is not None:
                training.append(f"shuffle={self.shuffle}")
            trained = ", ".join(["pages", *training])
            arguments.append(f"dictionary=batchzip.train_dictionary({trained})")
        return f"batchzip.Engine({', '.join(arguments)})"


@dataclass(frozen=True, slots=True)
class Advice:
    """What `advise` found: every option, those with the smallest pages first."""

    total_bytes: int
    sample_bytes: int
    """Bytes that were stored and loaded with each option."""
    options: tuple[Option, ...]
    recommended: Option | None
    """None where compression is not worth it."""
    sentence: str
    """The recommendation, for people."""
    notes: tuple[str, ...]
    """What could not be tried, and why."""


@dataclass(slots=True)
class _Trial:
    engine: Engine
    algorithm: str
    parameters: dict[str, Any]
    shuffle: int | None
    dictionary: bool
    pages: int = 0
    same_filled: int = 0
    raw: int = 0
    compressed_bytes: int = 0
    pool_bytes: int = 0
    store_us: list[float] = field(default_factory=list)
    load_us: list[float] = field(default_factory=list)

    def run(self, part: Bytes, order: Sequence[int]) -> None:
        """Store the blocks (n, BLOCK_BYTES) of a part, and load each of their pages in that order."""
        size = self.engine.page_size
        each = BLOCK_BYTES // size
        folios = [block.reshape(each, size) for block in part]
        clock = time.perf_counter
        with SwapStore(self.engine, max_batch=each) as store:
            # What is touched and made with the first folio is not on the clock.
            store.store(0, folios[0])
            store.load(0)
            store.invalidate(0, each)
            start = clock()
            for number, folio in enumerate(folios):
                store.store(number * each, folio)
            stored = clock()
            for index in order:
                store.load(index)
            loaded = clock()
            counters = store.counters
            self.compressed_bytes += store.compressed_bytes
            # What the pool holds has a part-filled span a class, which is nothing in a large pool.
            self.pool_bytes += sum(line.size * line.used for line in store.classes())
        count = len(folios) * each
        self.pages += count
        self.same_filled += counters.same_filled_pages
        self.raw += counters.stored_incompressible_pages
        self.store_us.append((stored - start) / count * 1e6)
        self.load_us.append((loaded - stored) / count * 1e6)

    def as_option(self, total_bytes: int) -> Option:
        """Sum up the parts."""
        size = self.engine.page_size
        in_bytes = self.pages * size
        saved = 1 - (self.pool_bytes + self.pages * TABLE_BYTES) / in_bytes
        return Option(
            algorithm=self.algorithm,
            parameters=self.parameters,
            page_size=size,
            shuffle=self.shuffle,
            dictionary=self.dictionary,
            same_filled_share=self.same_filled / self.pages,
            incompressible_share=self.raw / self.pages,
            ratio=in_bytes / self.compressed_bytes if self.compressed_bytes else None,
            saved_share=saved,
            saved_bytes=round(saved * total_bytes),
            store_us=float(np.median(self.store_us)),
            load_us=float(np.median(self.load_us)),
        )


def advise(
    blocks: Buffer | Sequence[Buffer],
    *,
    total_bytes: int | None = None,
    algorithms: Sequence[str] | None = None,
    max_load_us: float = MAX_LOAD_US,
    progress: Callable[[int, int], None] | None = None,
) -> Advice:
    """Try what compresses the sample `blocks`, (n, 65536) uint8 or flat bytes of so many.

    `total_bytes` is the size of what the sample is of (default: the sample's), for what would be
    saved. `algorithms` are names to try (default: all that can be used here). `max_load_us` is what
    the load of a page may take at most to be recommended. `progress(done, all)` is called
    now and then.

    Blocks are only read. Takes about 0.5 s for each MiB of them, in the calling thread, and the memory
    of a compressed part. Raises BadBatch for another shape, UnknownAlgorithm, MissingExtra.
    """
    matrix = as_matrix(blocks, "blocks", rows=None, width=BLOCK_BYTES)
    names = usable_algorithms() if algorithms is None else list(dict.fromkeys(algorithms))
    for name in names:
        make_codec(name)  # before anything is measured
    if not max_load_us > 0:
        raise BadArgument(f"max_load_us must be above 0, not {max_load_us!r}")
    total = matrix.nbytes if total_bytes is None else total_bytes
    apart = len(matrix) >= _LEAST_TO_TRAIN
    training = np.ascontiguousarray(matrix[::5]) if apart else matrix
    measured = matrix[np.arange(len(matrix)) % 5 != 0] if apart else matrix
    notes: list[str] = []
    with ExitStack() as stack:
        trials = [
            trial
            for page_size in PAGE_SIZES
            for trial in _trials(names, page_size, training, notes, stack, apart=apart)
        ]
        _measure(trials, measured, progress)
        options = [trial.as_option(total) for trial in trials]
    options = _with_front(options)
    recommended, sentence = _recommend(options, total, max_load_us)
    return Advice(
        total, measured.nbytes, tuple(options), recommended, sentence, tuple(dict.fromkeys(notes))
    )


def _trials(
    names: Sequence[str],
    page_size: int,
    training: Bytes,
    notes: list[str],
    stack: ExitStack,
    *,
    apart: bool,
) -> Iterator[_Trial]:
    pages = training.reshape(-1, page_size)
    for shuffle in (None, _best_shuffle(pages)):
        for name in names:
            for parameters in _LEVELS.get(name, ({},)):
                tables = [{}, *_dictionary(name, parameters, pages, shuffle, notes, apart=apart)]
                for table in tables:
                    engine = Engine(
                        name,
                        backend="sequential",
                        page_size=page_size,
                        shuffle=shuffle,
                        **parameters,
                        **table,
                    )
                    stack.enter_context(engine)
                    yield _Trial(engine, name, parameters, shuffle, bool(table))


def _best_shuffle(pages: Bytes) -> int:
    """Bytes of the elements for which lz4, which gains the most from it, makes the least."""
    compress = make_codec("lz4").compressor(pages.shape[1])
    flat = [page.tobytes() for page in pages[:: 1 + len(pages) // 256]]
    lengths = {
        size: sum(len(compress(shuffle_bytes(page, size))) for page in flat)
        for size in ELEMENT_SIZES
    }
    return min(lengths, key=lambda size: lengths[size])


def _dictionary(
    name: str,
    parameters: dict[str, Any],
    pages: Bytes,
    shuffle: int | None,
    notes: list[str],
    *,
    apart: bool,
) -> list[dict[str, Any]]:
    if name != "zstd":
        return []
    if not apart:
        notes.append(f"no dictionary was tried: the sample has less than {_LEAST_TO_TRAIN} blocks")
        return []
    try:
        trained = train_dictionary(pages, shuffle=shuffle, **parameters)
    except BadArgument as error:
        notes.append(f"no dictionary for pages of {pages.shape[1]} bytes: {error}")
        return []
    return [{"dictionary": trained}]


def _measure(
    trials: Sequence[_Trial], blocks: Bytes, progress: Callable[[int, int], None] | None
) -> None:
    rng = np.random.default_rng(0)
    parts = [blocks[first::_PARTS] for first in range(min(_PARTS, len(blocks)))]
    for number, part in enumerate(parts):
        orders = {
            size: rng.permutation(part.nbytes // size).tolist()
            for size in {trial.engine.page_size for trial in trials}
        }
        for done, trial in enumerate(trials, start=1):
            trial.run(part, orders[trial.engine.page_size])
            if progress is not None:
                progress(number * len(trials) + done, len(parts) * len(trials))


def _with_front(options: Sequence[Option]) -> list[Option]:
    costs = np.array([(-o.saved_share, o.store_us, o.load_us) for o in options])
    front = [not ((costs <= mine).all(axis=1) & (costs < mine).any(axis=1)).any() for mine in costs]
    return [replace(o, on_front=best) for o, best in zip(options, front, strict=True)]


def _recommend(
    options: Sequence[Option], total: int, max_load_us: float
) -> tuple[Option | None, str]:
    most = max(options, key=lambda option: option.saved_share)
    if most.saved_share < _WORTH:
        return None, (
            f"Leave it uncompressed: {most.name} with pages of {most.page_size >> 10} KiB, the most "
            f"of what was tried, would save {most.saved_share:.1%}."
        )
    quick = [option for option in options if option.load_us <= max_load_us]
    if not quick:
        quickest = min(options, key=lambda option: option.load_us)
        return None, (
            f"Nothing loads a page within {max_load_us:g} µs here; the quickest, {quickest.name} "
            f"with pages of {quickest.page_size >> 10} KiB, takes {quickest.load_us:.1f} µs."
        )
    best = max(option.saved_share for option in quick)
    if best < _WORTH:
        return None, (
            f"Nothing that loads a page within {max_load_us:g} µs saves {_WORTH:.0%}; {most.name} "
            f"with pages of {most.page_size >> 10} KiB saves {most.saved_share:.1%} and takes "
            f"{most.load_us:.1f} µs."
        )
    near = [option for option in quick if option.saved_share >= best - _NEAR]
    least = min(map(_cost, near))
    # The cheapest is on the front: what is as good in all would be cheaper.
    cheap = [option for option in near if option.on_front and _cost(option) <= least * _ALIKE]
    chosen = min(cheap, key=lambda o: (o.dictionary + (o.shuffle is not None), -o.saved_share))
    left = total - chosen.saved_bytes
    return chosen, (
        f"Use {chosen.name} with pages of {chosen.page_size >> 10} KiB: {amount(total)} would take "
        f"{amount(left)} of RAM ({chosen.saved_share:.0%} less), a page takes {chosen.store_us:.1f} µs "
        f"to store and {chosen.load_us:.1f} µs to load."
    )


def _cost(option: Option) -> float:
    """Time to store and load a byte."""
    return (option.store_us + option.load_us) / option.page_size


def amount(size: int) -> str:
    """Bytes for people, in the unit of 2^10, 2^20 … that fits."""
    value = size / 1024
    for unit in ("KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:,.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} TiB"
