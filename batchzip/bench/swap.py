"""swap: store a whole working set and load it again, with each contender that stores pages.

In a round, a contender stores all pages in folios, reports the memory that it holds, loads all
pages in random order in batches, and loads single pages at random, each of which is timed. In the
warm-up round, loaded pages are compared with the stored ones.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import numpy as np

from batchzip.bench.pages import PAGE
from batchzip.bench.peer_stores import contenders
from batchzip.bench.rounds import in_turns
from batchzip.errors import BatchzipError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batchzip.bench.algorithm import Algorithm
    from batchzip.bench.figure import Labels, Result
    from batchzip.bench.kernel_swap import KernelSwap
    from batchzip.bench.pages import Pages
    from batchzip.bench.stores import Store

BASELINE = "dict"

BATCH_PAGES = 256
SINGLE_LOADS = 10_000
"""Single loads per round. Ten of them are beyond the percentile 99.9."""

STORE, LOAD = "store, µs per page", "load, µs per page"
PERCENTILES = {"single p50, µs": 50.0, "single p99, µs": 99.0, "single p99.9, µs": 99.9}
HELD = "held ÷ size"
"""Bytes of memory held per byte of the pages."""

QUANTITIES = (STORE, LOAD, *PERCENTILES, HELD)


def swap(
    result: Result,
    pages: Pages,
    algorithms: Sequence[Algorithm],
    rounds: int,
    *,
    zram: bool = False,
    kernel: KernelSwap | None = None,
    singles: int = SINGLE_LOADS,
    advance: Callable[[], object] = lambda: None,
) -> None:
    """Measure all contenders and add the figures to `result`. Call `advance` per algorithm.

    `kernel` is the kernel's swap, if it is to be measured. It needs room for all pages.
    Raise BatchzipError if a contender loads a page that differs from the stored one.
    """
    for algorithm in algorithms:
        with contextlib.ExitStack() as stack:
            everybody = {
                one.name: stack.enter_context(one)
                for one in contenders(algorithm, pages, result, zram=zram, kernel=kernel)
            }
            values: dict[str, dict[str, list[float]]] = {
                name: {quantity: [] for quantity in QUANTITIES} for name in everybody
            }
            for turn, name in in_turns(everybody, rounds):
                found = _round(everybody[name], pages, singles, compare=not turn)
                if turn:
                    for quantity, value in found.items():
                        values[name][quantity].append(value)
                everybody[name].open()  # frees its memory before the next contender's turn
            labels: Labels = {"benchmark": "swap", "algorithm": algorithm.label}
            for name, by_quantity in values.items():
                for quantity, numbers in by_quantity.items():
                    result.add(labels, name, quantity, numbers)
        advance()


def _round(store: Store, pages: Pages, singles: int, *, compare: bool) -> dict[str, float]:
    store.open()
    count = len(pages)
    clock = time.perf_counter
    put = store.store
    started = clock()
    folio = store.folio_pages
    for at in range(0, count, folio):
        put(at, pages[at : at + folio])
    store.flush()
    found = {STORE: (clock() - started) / count * 1e6, HELD: store.held_bytes / pages.nbytes}
    rng = np.random.default_rng(5)
    order = rng.permutation(count)
    out = np.zeros((BATCH_PAGES, PAGE), np.uint8)
    spent = 0.0
    for at in range(0, count, BATCH_PAGES):
        indices = order[at : at + BATCH_PAGES]
        room = out[: len(indices)]
        started = clock()
        store.load_many(indices, room)
        spent += clock() - started
        if compare and not np.array_equal(room, pages[indices]):
            raise BatchzipError(f"{store.name} loaded pages that differ from the stored ones")
        store.put_back(indices)
    found[LOAD] = spent / count * 1e6
    load, nanoseconds = store.load, time.perf_counter_ns
    durations = []
    drawn = rng.integers(0, count, singles)
    for at, index in enumerate(drawn.tolist()):
        begun = nanoseconds()
        load(index)
        durations.append(nanoseconds() - begun)
        store.put_back(drawn[at : at + 1])
    for quantity, percent in PERCENTILES.items():
        found[quantity] = float(np.percentile(durations, percent)) / 1e3
    return found
