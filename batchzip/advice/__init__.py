"""Advice: what compressing some data would bring, and with what.

Every way to compress is tried on a sample with a real store of its own, in process: ratios and memory
are those of that pool, costs those of its store() and load(), one page loaded at a time.

    blocks of 64 KiB ─┬─ every fifth ──▶ dictionary, bytes of the elements to shuffle
                      └─ the others, in eight parts ─▶ each part through all trials in turn

Costs are processor time of the calling thread, which waits for nothing. The parts make them
comparable: what else the machine does in a while, to caches and clocks, hits all trials alike, and a
trial's cost is the median of its parts. What a dictionary was trained on is not what
it is judged by.

option.py      what is found, and how it is said
trial.py       one way to compress, tried
judgement.py   the Pareto front and the recommendation
values.py      what values take in a dict, and in a mapping: `batchzip.advise_values`
weighing.py    what they can be kept in, and which of it is tried
suiting.py     the serializers that take them
holder.py      each measured in a fresh process
spool.py       the file from which such a process reads them
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np

from batchzip.advice.judgement import recommend, with_front
from batchzip.advice.option import Advice, Option
from batchzip.advice.trial import BLOCK_BYTES, LEAST_TO_TRAIN, TABLE_BYTES, trials_of
from batchzip.arguments.buffers import as_matrix
from batchzip.arguments.checks import as_integer, as_positive
from batchzip.codecs import algorithms as usable_algorithms
from batchzip.codecs import make_codec
from batchzip.errors import BadArgument

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batchzip.advice.trial import Trial
    from batchzip.arguments.buffers import Buffer, Bytes

__all__ = ["BLOCK_BYTES", "TABLE_BYTES", "Advice", "Option", "advise"]

PAGE_SIZES = (4 << 10, 16 << 10, BLOCK_BYTES)
"""Bytes of the pages that are tried: the machine's, and what pays for colder data."""

MAX_LOAD_US = 25.0
"""Microseconds that a load may take to be recommended: a quarter of a read from a fast SSD."""

_MOST_BYTES = 1 << 63

_PARTS = 8
"""Parts the sample is measured in: enough for a median, each some milliseconds with the fastest."""


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

    Examples:
        >>> import batchzip.advice
        >>> rows = "".join(f'{{"id": {n}, "mail": "{n * n}@example.org"}}' for n in range(20_000))
        >>> advice = batchzip.advice.advise(rows.encode()[: 8 << 16], algorithms=["lz4", "zstd"])
        >>> advice.recommended.algorithm in ("lz4", "zstd")
        True
    """
    matrix = as_matrix(blocks, "blocks", rows=None, width=BLOCK_BYTES)
    names = usable_algorithms() if algorithms is None else list(dict.fromkeys(algorithms))
    if not names:
        raise BadArgument("algorithms must name at least one")
    for name in names:
        make_codec(name)  # before anything is measured
    max_load_us = as_positive(max_load_us, "max_load_us")
    total = matrix.nbytes
    if total_bytes is not None:
        total = as_integer(total_bytes, "total_bytes", 0, _MOST_BYTES)
    apart = len(matrix) >= LEAST_TO_TRAIN
    training = np.ascontiguousarray(matrix[::5]) if apart else matrix
    measured = matrix[np.arange(len(matrix)) % 5 != 0] if apart else matrix
    notes: list[str] = []
    with ExitStack() as stack:
        trials = [
            trial
            for page_size in PAGE_SIZES
            for trial in trials_of(names, page_size, training, notes, stack, apart=apart)
        ]
        _measure(trials, measured, progress)
        options = [trial.as_option(total) for trial in trials]
    options = with_front(options)
    recommended, sentence = recommend(options, total, max_load_us)
    return Advice(
        total, measured.nbytes, tuple(options), recommended, sentence, tuple(dict.fromkeys(notes))
    )


def _measure(
    trials: Sequence[Trial], blocks: Bytes, progress: Callable[[int, int], None] | None
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
