"""compress: measure the µs per page of each contender, per algorithm and batch size."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from batchzip.bench.compressors import Load
from batchzip.bench.peers import contenders
from batchzip.bench.rounds import seconds, timed
from batchzip.errors import BadArgument

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batchzip.bench.algorithm import Algorithm
    from batchzip.bench.figure import Labels, Result
    from batchzip.bench.pages import Pages

BASELINE = "bare"

QUANTITY = "µs per page"


def compress(
    result: Result,
    pages: Pages,
    algorithms: Sequence[Algorithm],
    batches: Sequence[int],
    rounds: int,
    *,
    zram: bool = False,
    advance: Callable[[], object] = lambda: None,
) -> None:
    """Measure all contenders and add the figures to `result`. Call `advance` after each step.

    A step is one algorithm, operation and batch size. Only whole batches are measured. Raise
    BadArgument if there are fewer pages than in the largest batch.
    """
    count = len(pages) - len(pages) % max(batches)
    if not count:
        raise BadArgument(
            f"{len(pages)} pages are fewer than a batch of {max(batches)}: use smaller batches"
        )
    for algorithm in algorithms:
        load = Load(algorithm, pages[:count])
        with contextlib.ExitStack() as stack:
            everybody = [stack.enter_context(one) for one in contenders(load, result, zram=zram)]
            for operation in ("compress", "decompress"):
                for size in batches:
                    work = {
                        one.name: timed(
                            one.compressing(size)
                            if operation == "compress"
                            else one.restoring(size)
                        )
                        for one in everybody
                    }
                    labels: Labels = {
                        "benchmark": "compress",
                        "algorithm": algorithm.label,
                        "operation": operation,
                        "batch": size,
                    }
                    spent = seconds(work, rounds)
                    for one in everybody:
                        values = [s / count * 1e6 for s in spent[one.name]]
                        result.add(labels, one.name, QUANTITY, values, one.ratio)
                    advance()
