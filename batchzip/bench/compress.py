"""Compress: batchzip and its peers side by side, for each algorithm and size of batch.

All contenders of one algorithm and batch take turns in the same rounds. Each row has the compression ratio
of what that contender made, so that nobody is compared at another ratio unawares.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from batchzip.bench import zram
from batchzip.bench.inputs import PAGE
from batchzip.bench.peers import CPUS, contenders
from batchzip.bench.result import Row
from batchzip.bench.rounds import Timing, measure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batchzip.buffers import Bytes

_ZRAM_BLOCKS = (8, 256)
"""Batches at which zram is measured: 32 KiB, a folio, and 1 MiB, as much as one request takes."""


def compress(
    pages: Bytes,
    algorithms: Sequence[str],
    batches: Sequence[int],
    rounds: int,
    *,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """Measure; `tell` is called with what is about to be measured."""
    rows = []
    for algorithm in algorithms:
        for batch in batches:
            tell(f"{algorithm}, batches of {batch}")
            rows += _situation(pages, algorithm, batch, rounds)
    return rows


def _situation(pages: Bytes, algorithm: str, batch: int, rounds: int) -> list[Row]:
    rows = []
    with ExitStack() as stack:
        compressing: dict[str, Callable[[], object]] = {}
        decompressing: dict[str, Callable[[], object]] = {}
        ratios: dict[str, float | None] = {}
        for name, kind in contenders(algorithm):
            contender = stack.enter_context(kind(algorithm, pages, batch))
            ratios[name] = contender.prepare()
            compressing[name] = contender.compress
            decompressing[name] = contender.decompress
        if algorithm == "lz4" and batch in _ZRAM_BLOCKS and not zram.why_not():
            device = stack.enter_context(zram.Zram(pages.nbytes))
            data = zram.aligned(pages)
            block = batch * PAGE
            for lanes in (1, CPUS):
                name = f"zram, {lanes} at once"
                compressing[name] = partial(device.write, data, block, lanes)
                decompressing[name] = partial(device.read, data, block, lanes)
            device.write(data, block)
            # Same-filled pages, of which it keeps a word, have no ratio.
            became = device.compressed_bytes
            for lanes in (1, CPUS):
                ratios[f"zram, {lanes} at once"] = pages.nbytes / became if became else None
        for operation, calls in (("compress", compressing), ("decompress", decompressing)):
            found = measure(calls, rounds)
            rows += [
                _row(operation, algorithm, batch, name, timing, len(pages), ratios[name])
                for name, timing in found.items()
            ]
    return rows


def _row(
    operation: str,
    algorithm: str,
    batch: int,
    name: str,
    timing: Timing,
    pages: int,
    ratio: float | None,
) -> Row:
    us = [seconds * 1e6 / pages for seconds in (timing.median, timing.low, timing.high)]
    return Row("compress", operation, algorithm, batch, name, us[0], us[1], us[2], ratio)
