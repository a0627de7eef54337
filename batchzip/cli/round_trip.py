"""RoundTrip: stores the same pages in several stores, loads them back, compares and times.

The stores take turns of a few MiB each, and the order changes with every round. So other load on
the machine affects all of them alike, and ratios are meaningful even where absolute figures are
not. Only the calls of store() and load() are timed; reading the source, comparing and drawing
progress bars are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from batchzip.cli.side import WorkerCpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from numpy.typing import NDArray

    from batchzip.cli.side import Pages, Side

ROUND_BYTES = 4 << 20
"""Bytes of pages per turn. A turn takes tens of milliseconds, which is short beside the machine's
noise."""

SINGLE_LOADS = 4096
"""Loads that are timed one by one, before all pages are loaded in batches. 40 of them are beyond
the 99th percentile."""

_SINGLES_PER_TURN = 256


class PageSource(Protocol):
    """Where pages come from: `chunks()` once, then `read()` for the comparison."""

    kind: str
    name: str
    page_size: int
    pages: int
    padded_bytes: int

    def chunks(self) -> Iterator[Pages]:
        """Yield all pages in order. Each array is valid until the next one."""

    def read(self, indices: NDArray[np.int64]) -> Pages:
        """Return the pages at `indices`, as `chunks()` gave them."""

    def where(self, index: int) -> str:
        """Return where a page is in the source."""

    def check_unchanged(self) -> None:
        """Raise OSError if the source has changed, so that it cannot be compared."""

    def details(self) -> dict[str, Any]:
        """Return details of the source, with the keys of the JSON report."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A page that came back different."""

    page: int
    backend: str
    where: str
    what: str

    def __str__(self) -> str:
        return f"page {self.page} ({self.where}), backend {self.backend}: {self.what}"


class RoundTrip:
    """Stores all pages of `source` on every side, loads them back in random order, compares.

    `folio` pages are stored together, and `batch` pages are loaded together. `advance(pages)` is
    called after each round and is not timed. `difference` is the lowest page that differs, if any.
    """

    def __init__(
        self, source: PageSource, sides: Sequence[Side], *, folio: int, batch: int, seed: int
    ) -> None:
        self.source = source
        self.sides = sides
        self.pages = 0
        self.difference: Difference | None = None
        self._folio = folio
        self._batch = batch
        self._rng = np.random.default_rng(seed)
        self._cpu = {side.name: WorkerCpu(side.engine.worker_pids) for side in sides}
        self._turn = 0

    def store_all(self, advance: Callable[[int], None]) -> None:
        """Store every page of the source."""
        for chunk in self.source.chunks():
            folios = [
                (self.pages + at, chunk[at : at + self._folio])
                for at in range(0, len(chunk), self._folio)
            ]
            for side in self._taking_turns():
                side.store_folios(folios)
            self.pages += len(chunk)
            advance(len(chunk))

    def load_all(self, advance: Callable[[int], None]) -> None:
        """Load every kept page and compare it with the source. Call `store_all` first.

        Raise OSError if pages differ because the source itself has changed.
        """
        for side in self.sides:
            side.differing = np.zeros(self.pages, np.bool_)
        order = self._rng.permutation(self.pages)
        singles = order[:SINGLE_LOADS]
        kept = {side.name: np.concatenate(side.kept) for side in self.sides}
        for first in range(0, len(singles), _SINGLES_PER_TURN):
            block = singles[first : first + _SINGLES_PER_TURN]
            results = [
                (side, mine, *side.load_singly(block[mine]))
                for side in self._taking_turns()
                for mine in [kept[side.name][block]]
            ]
            self._compare(block, results)
        page_size = self.source.page_size
        turn = max(1, ROUND_BYTES // page_size // self._batch) * self._batch
        # The buffers are touched here, so that the first turn does not pay for fresh memory.
        buffers = {side.name: np.zeros((turn, page_size), np.uint8) for side in self.sides}
        for first in range(0, len(order), turn):
            block = order[first : first + turn]
            results = [
                (side, mine, *side.load_in_batches(block[mine], self._batch, buffers[side.name]))
                for side in self._taking_turns()
                for mine in [kept[side.name][block]]
            ]
            self._compare(block, results)
            advance(len(block))
        if self.difference is not None:
            self.source.check_unchanged()

    def _taking_turns(self) -> Sequence[Side]:
        for side in self.sides:
            side.worker_cpu_s = self._cpu[side.name].spent_s(side.engine.worker_pids)
        self._turn += 1
        first = self._turn % len(self.sides)
        return [*self.sides[first:], *self.sides[:first]]

    def _compare(
        self,
        block: NDArray[np.int64],
        results: Sequence[tuple[Side, NDArray[np.bool_], Pages, dict[int, str]]],
    ) -> None:
        expected = self.source.read(block)
        for side, mine, got, failed in results:
            side.worker_cpu_s = self._cpu[side.name].spent_s(side.engine.worker_pids)
            want = expected if mine.all() else expected[mine]
            # Compared as words: every page is a multiple of 512 bytes.
            wrong = (got.view(np.uint64) != want.view(np.uint64)).any(axis=1)
            wrong[list(failed)] = True
            for row in np.flatnonzero(wrong).tolist():
                self._differs(side, int(block[mine][row]), got[row], want[row], failed.get(row))

    def _differs(self, side: Side, page: int, got: Any, want: Any, failure: str | None) -> None:
        side.differing[page] = True
        if self.difference is not None and self.difference.page <= page:
            return
        what = failure
        if what is None:
            byte = int(np.flatnonzero(got != want)[0])
            what = f"byte {byte} is {got[byte]:#04x} instead of {want[byte]:#04x}"
        self.difference = Difference(page, side.name, self.source.where(page), what)
