"""Where a store and a load spend their time, function by function.

    python examples/benchmarks/steps.py [--folio 256] [--pages 4096] [--rounds 20] [--least 0.02]
                                        [--pid N | --file PATH | --workload KIND]

Each function of the store, the pool and the engine's way to the codec is wrapped by one that takes the time of
the call without that of wrapped ones within. Pages are stored again over their old versions, in folios, and loaded
one by one in random order, with lz4 in this process. What a wrapper takes itself is measured before and taken
off; what is left of the whole is Python's own work between the calls, and the error of this.

Functions below `--least` µs a page are added up.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from batchzip import Engine, SwapStore
from batchzip.bench.pages import add_source, source_of, work_pages
from batchzip.bench.table import console

if TYPE_CHECKING:
    from collections.abc import Callable

PARTS = (
    "batchzip.store",
    "batchzip.pool",
    "batchzip.batch",
    "batchzip.codecs",
    "batchzip.engine",
    "batchzip_sequential",
)

_CALIBRATION_CALLS = 20_000


class Clock:
    """Own time by function. Not thread-safe."""

    def __init__(self) -> None:
        self.own: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self._within = [0.0]
        self._inner_s = self._outer_s = 0.0
        self._calibrate()

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Make a function that does the same and is timed."""
        clock, within, own, calls = time.perf_counter, self._within, self.own, self.calls

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            within.append(0.0)
            begun = clock()
            try:
                return function(*args, **kwargs)
            finally:
                spent = clock() - begun
                below = within.pop()
                within[-1] += spent + self._outer_s
                own[name] = own.get(name, 0.0) + spent - below - self._inner_s
                calls[name] = calls.get(name, 0) + 1

        return timed

    def _calibrate(self) -> None:
        """Measure what a wrapper adds, to the time it takes and around it."""

        def nothing() -> None: ...

        timed = self.wrap("nothing", nothing)
        begun = time.perf_counter()
        for _ in range(_CALIBRATION_CALLS):
            nothing()
        bare = time.perf_counter() - begun
        begun = time.perf_counter()
        for _ in range(_CALIBRATION_CALLS):
            timed()
        whole = time.perf_counter() - begun
        inner = self.own["nothing"]
        self._inner_s = (inner - bare) / _CALIBRATION_CALLS
        self._outer_s = (whole - inner) / _CALIBRATION_CALLS
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.own.clear()
        self.calls.clear()

    def wrap_everything(self) -> None:
        """Wrap the functions and methods of all modules that are loaded."""
        for module_name, module in list(sys.modules.items()):
            if not module_name.startswith(PARTS):
                continue
            for name, found in list(vars(module).items()):
                if getattr(found, "__module__", None) != module_name:
                    continue
                if inspect.isfunction(found):
                    self._replace(found, name)
                elif inspect.isclass(found):
                    for method, function in list(vars(found).items()):
                        if inspect.isfunction(function) and not method.startswith("__"):
                            setattr(found, method, self.wrap(f"{name}.{method}", function))

    def _replace(self, function: Callable[..., Any], name: str) -> None:
        """Put a wrapped function wherever it was imported."""
        timed = self.wrap(name, function)
        for module_name, module in list(sys.modules.items()):
            if module_name.startswith(PARTS) and getattr(module, name, None) is function:
                setattr(module, name, timed)


def show(clock: Clock, title: str, whole_s: float, pages: int, least: float) -> None:
    """Print the functions with their own time, longest first."""
    table = Table(title=f"{title}: µs a page", title_justify="left")
    table.add_column("")
    table.add_column("own", justify="right")
    table.add_column("calls a page", justify="right")
    rest = 0.0
    for name, own in sorted(clock.own.items(), key=lambda pair: -pair[1]):
        us = own / pages * 1e6
        if us < least:
            rest += us
        else:
            table.add_row(name, f"{us:.2f}", f"{clock.calls[name] / pages:.3f}")
    table.add_row("others", f"{rest:.2f}", "", end_section=True)
    told = sum(clock.own.values())
    wrappers = whole_s - told
    table.add_row("all", f"{told / pages * 1e6:.2f}", "")
    table.add_row("wrappers, and the loop", f"{wrappers / pages * 1e6:.2f}", "")
    console().print(table)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_source(parser)
    parser.add_argument("--folio", type=int, default=256, help="pages stored together")
    parser.add_argument("--pages", type=int, default=4096, help="at most so many")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--least", type=float, default=0.02, help="µs a page to be listed")
    options = parser.parse_args()
    pages = work_pages(source_of(options), options.pages)
    pages = pages[: len(pages) - len(pages) % options.folio]
    clock = Clock()
    clock.wrap_everything()
    with (
        Engine("lz4", backend="sequential") as engine,
        SwapStore(engine) as store,
    ):
        store.store(0, pages)

        def store_again() -> None:
            for first in range(0, len(pages), options.folio):
                store.store(first, pages[first : first + options.folio])

        def load() -> None:
            for index in order:
                store.load(index)

        order = np.random.default_rng(1).permutation(len(pages)).tolist()
        for title, work in (
            (f"stored again in folios of {options.folio}", store_again),
            ("single loads", load),
        ):
            clock.reset()
            begun = time.perf_counter()
            for _ in range(options.rounds):
                work()
            whole = time.perf_counter() - begun
            show(clock, title, whole, len(pages) * options.rounds, options.least)


if __name__ == "__main__":
    main()
