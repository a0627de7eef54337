"""Advice: find out whether compressing some data pays, and with which settings.

Each setting is tried on a sample with a real store of its own, in this process. Ratios and memory
are those of its pool. Costs are those of its store() and load(). Pages are loaded one at a time.

    blocks of 64 KiB ─┬─ every fifth ──▶ trains dictionaries, chooses how to shuffle
                      └─ the others, in eight parts ─▶ each part through all trials in turn

Costs are processor time of the calling thread, which never waits. The parts make the costs
comparable: disturbances of caches and clocks affect all trials alike, and the cost of a trial is
the median of its parts. A dictionary is never measured with the data that it was trained on.

option.py      the results: Option and Advice
trial.py       the measurement of one setting
judgement.py   the Pareto front and the recommendation
values.py      the memory of values in a dict and in a mapping: `batchzip.advise_values`
weighing.py    chooses the containers to measure for some values
suiting.py     finds the serializers that accept the values
holder.py      measures one container in a fresh process
spool.py       the file from which that process reads the values
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
"""Page sizes to try, in bytes: the machine's, and larger ones, which pay for colder data."""

MAX_LOAD_US = 25.0
"""Longest load, in microseconds, of a recommended setting: a quarter of a read from a fast SSD."""

_MOST_BYTES = 1 << 63

_PARTS = 8
"""Number of parts of the sample: enough for a median, and each takes several milliseconds."""


def advise(
    blocks: Buffer | Sequence[Buffer],
    *,
    total_bytes: int | None = None,
    algorithms: Sequence[str] | None = None,
    max_load_us: float = MAX_LOAD_US,
    progress: Callable[[int, int], None] | None = None,
) -> Advice:
    """Measure how algorithms and page sizes compress a sample. Return them and a recommendation.

    `blocks`       is the sample: (n, 65536) uint8, or as many bytes. It is only read.
    `total_bytes`  is the size of all data, for the estimated saving. By default, the sample's.
    `algorithms`   are the names to try. By default, all that are available.
    `max_load_us`  is the longest load of a page, in microseconds, of a recommended setting.
    `progress`     is called as progress(done, all) after each trial of a part.

    It runs in the calling thread, takes about 0.5 s per MiB of the sample, and needs the memory of
    one compressed part. Raise BadBatch for another shape, BadArgument, UnknownAlgorithm and
    MissingExtra.

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
        make_codec(name)  # raises before anything is measured
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
