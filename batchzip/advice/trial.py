"""Trial: measure one setting on the parts of a sample, in stores of its own."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from batchzip.advice.option import Option
from batchzip.codecs import make_codec
from batchzip.codecs.dictionary import train_dictionary
from batchzip.codecs.shuffled import ELEMENT_SIZES, FLOATS, Shuffled, as_elements
from batchzip.engine import Engine
from batchzip.errors import BadArgument
from batchzip.store import SwapStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import ExitStack
    from typing import Any

    from batchzip.arguments.buffers import Bytes

BLOCK_BYTES = 64 << 10
"""Bytes per block of the sample: the largest page size to try."""

TABLE_BYTES = 26
"""Bytes in tables per stored page: 16 in the store's, 10 in the pool's."""

_LEVELS: dict[str, tuple[dict[str, Any], ...]] = {"zstd": ({"level": 1}, {"level": 3})}
"""Parameters to try. Other algorithms are tried with their defaults."""

LEAST_TO_TRAIN = 10
"""Minimum number of blocks of a sample for which a fifth is set aside for training."""


@dataclass(slots=True)
class Trial:
    """One setting, and the sums over the parts measured so far."""

    engine: Engine
    algorithm: str
    parameters: dict[str, Any]
    shuffle: int | str | None
    dictionary: bool
    pages: int = 0
    same_filled: int = 0
    raw: int = 0
    compressed_bytes: int = 0
    pool_bytes: int = 0
    store_us: list[float] = field(default_factory=list)
    load_us: list[float] = field(default_factory=list)

    def run(self, part: Bytes, order: Sequence[int]) -> None:
        """Store the blocks (n, BLOCK_BYTES) of a part, then load their pages in the given order."""
        size = self.engine.page_size
        each = BLOCK_BYTES // size
        folios = [block.reshape(each, size) for block in part]
        # The processor time of this thread only: other threads are not a cost of compressing.
        clock = time.thread_time
        with SwapStore(self.engine, max_batch=each) as store:
            # Warm up: memory that the first folio allocates and touches is not timed.
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
            # Partly filled zspages are negligible in a large pool.
            self.pool_bytes += sum(line.bytes - line.freeable for line in store.classes())
        count = len(folios) * each
        self.pages += count
        self.same_filled += counters.same_filled_pages
        self.raw += counters.stored_incompressible_pages
        self.store_us.append((stored - start) / count * 1e6)
        self.load_us.append((loaded - stored) / count * 1e6)

    def as_option(self, total_bytes: int) -> Option:
        """Return the result over all parts."""
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


def trials_of(
    names: Sequence[str],
    page_size: int,
    training: Bytes,
    notes: list[str],
    stack: ExitStack,
    *,
    apart: bool,
) -> Iterator[Trial]:
    """Yield every trial with pages of one size. `stack` closes their engines.

    Dictionaries are trained on `training`, if it is set `apart` from the measured data. Settings
    that cannot be tried are added to `notes`.
    """
    pages = training.reshape(-1, page_size)
    shuffles = (
        None,
        _best_shuffle(pages, "lz4", ELEMENT_SIZES),
        _best_shuffle(pages, "zstd", FLOATS),
    )
    for shuffle in shuffles:
        floats = shuffle in FLOATS
        # Only zstd gains from shuffling floats.
        for name in ["zstd"] * ("zstd" in names) if floats else names:
            for parameters in _LEVELS.get(name, ({},))[: 1 if floats else None]:
                tables: list[dict[str, Any]] = [{}]
                if not floats:
                    tables += _dictionary(name, parameters, pages, shuffle, notes, apart=apart)
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
                    yield Trial(engine, name, parameters, shuffle, bool(table))


def _best_shuffle(pages: Bytes, name: str, shuffles: Sequence[int] | Sequence[str]) -> int | str:
    """Return the shuffle with which an algorithm compresses the pages the most.

    The algorithm is the one that gains the most from such shuffles.
    """
    flat = [page.tobytes() for page in pages[:: 1 + len(pages) // 256]]
    lengths: dict[int | str, int] = {}
    for shuffle in shuffles:
        compress = Shuffled(make_codec(name), *as_elements(shuffle)).compressor(pages.shape[1])
        lengths[shuffle] = sum(len(compress(page)) for page in flat)
    return min(lengths, key=lambda shuffle: lengths[shuffle])


def _dictionary(
    name: str,
    parameters: dict[str, Any],
    pages: Bytes,
    shuffle: int | str | None,
    notes: list[str],
    *,
    apart: bool,
) -> list[dict[str, Any]]:
    if name != "zstd":
        return []
    if not apart:
        notes.append(f"no dictionary was tried: the sample has fewer than {LEAST_TO_TRAIN} blocks")
        return []
    try:
        trained = train_dictionary(pages, shuffle=shuffle, **parameters)
    except BadArgument as error:
        notes.append(f"no dictionary for pages of {pages.shape[1]} bytes: {error}")
        return []
    return [{"dictionary": trained}]
