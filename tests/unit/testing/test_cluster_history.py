"""The check of a store's history believes a store that is right, and finds each planted fault."""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.cluster.history import PAGE, Log, Verdict, check, page_of, version_of
from support.cluster.load import STRIPE, Load, Options

from batchzip import PageNotStored, PagesLost

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

STRIPES = 4
SECONDS = 0.4
LIMIT_S = 60.0
CHANCES = {"hangs": 1000, "mixes up": 1, "keeps": 2, "says yes": 1}
"""One call in this many has the fault, if it can; of other faults, one in ten."""
ENOUGH = {"hangs": 1}
"""Faults until the check must have seen one; of other faults, 60.

A fault is seen only if the pages are read before they are stored again or lost. At least one in
five is.
"""


class DictStore:
    """A dict with a sharded store's promises. It loses a stripe now and then, or has a fault."""

    page_size = PAGE

    def __init__(self, fault: str | None = None) -> None:
        self._pages: dict[int, bytes] = {}
        self._lost: set[int] = set()
        self._old: dict[int, bytes] = {}
        self._fault = fault
        self._lock = threading.Lock()
        self._chances = 0
        self.planted = 0

    def _planted(self, fault: str) -> bool:
        """Whether a fault is due, which is counted."""
        self._chances += self._fault == fault
        due = self._fault == fault and self._chances % CHANCES.get(fault, 10) == 0
        self.planted += due
        return due

    def _always_planted(self, fault: str) -> bool:
        self.planted += self._fault == fault
        return self._fault == fault

    def enough(self) -> bool:
        """Whether the store has no fault, or had it so often that the check must have seen it."""
        return self._fault is None or self.planted >= ENOUGH.get(self._fault, 60)

    def lose(self, stripe: int) -> None:
        with self._lock:
            self._lost.add(stripe)

    def _refuse(self, indices: Iterable[int]) -> None:
        time.sleep(0)
        for stripe in {index // STRIPE for index in indices} & self._lost:
            ranges = [range(i, i + 1) for i in self._pages if i // STRIPE in self._lost]
            if self._always_planted("names nothing"):
                ranges = []
            raise PagesLost(f"tcp://of-{stripe}", "it was said to be", ranges)

    def store(self, index: int, pages: bytes) -> None:
        with self._lock:
            if self._planted("raises its own"):
                raise RuntimeError("planted")
            cut = [pages[at : at + PAGE] for at in range(0, len(pages), PAGE)]
            indices = range(index, index + len(cut))
            self._refuse(indices)
            if self._planted("does not store"):
                return
            new = dict(zip(indices, cut, strict=True))
            if self._planted("tears"):
                new[index] = (
                    new[index][: PAGE // 2] + self._pages.get(index, bytes(PAGE))[PAGE // 2 :]
                )
            if len(new) > 1 and self._planted("mixes up"):
                new[index] = new[index + 1]
            self._pages.update(new)
            if self._planted("forgets"):
                del self._pages[index]

    def load(self, index: int) -> bytes:
        with self._lock:
            if self._planted("hangs"):
                time.sleep(0.2)
            self._refuse([index])
            if index not in self._pages:
                raise PageNotStored(index)
            return self._pages[index]

    def load_many(self, indices: list[int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
        pages = b"".join(map(self.load, indices))
        return np.frombuffer(pages, np.uint8).reshape(-1, PAGE)

    def __contains__(self, index: int) -> bool:
        with self._lock:
            self._refuse([index])
            return index in self._pages or self._planted("says yes")

    def invalidate(self, index: int, count: int = 1) -> int:
        with self._lock:
            gone = [i for i in range(index, index + count) if i in self._pages]
            if gone and self._planted("keeps"):
                return 0
            for i in gone:
                del self._pages[i]
            return len(gone)

    def recover(self) -> list[range]:
        with self._lock:
            gone = {i: page for i, page in self._pages.items() if i // STRIPE in self._lost}
            self._lost.clear()
            if not (gone and self._always_planted("raises the dead")):
                for index in gone:
                    del self._pages[index]
            if gone and self._always_planted("recovers too much"):
                self._pages.clear()
            return [range(i, i + 1) for i in gone]

    def rebalance(self) -> int:
        return 0


def verdict_on(
    store: DictStore, folder: Path, *, lose: bool = True, limit_s: float = 60.0
) -> Verdict:
    """Use a store from several threads, and check what they saw."""
    path = folder / "client"
    log = Log(path)
    options = Options("", str(path), stripes=STRIPES, lost_pause_s=0.002, limit_s=limit_s)
    options.kinds = {**options.kinds, "folio": 1, "recover": 2}
    load = Load(store, log, options)
    threads = [threading.Thread(target=load.use, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    begun = time.monotonic()
    while (lasted := time.monotonic() - begun) < SECONDS or not store.enough():
        if lasted > LIMIT_S:
            break
        time.sleep(0.03)
        if lose:
            store.lose(random.randrange(STRIPES))
    load.over.set()
    for thread in threads:
        thread.join()
    load.recover()
    if lose:  # however slow the machine is, one call meets a loss
        load.store_folio(0, 1)
        store.lose(0)
        load.load(0)
        load.recover()
    load.read_all()
    log.close()
    assert store.enough(), f"the fault came {store.planted} times in {LIMIT_S} s"
    return check([path], losses=lose, limit_s=limit_s)


def test_a_page_knows_its_index_and_version() -> None:
    for version in (1 << 40 | 4, 1 << 40 | 5):
        page = page_of(7, version)
        assert len(page) == PAGE
        assert version_of(page, 7) == version
        assert version_of(page, 8) is None
        assert version_of(page[:-1] + b"x", 7) is None
        assert version_of(page[: PAGE // 2] + page_of(7, version + 4)[PAGE // 2 :], 7) is None


@pytest.mark.slow
@pytest.mark.parametrize("lose", [False, True])
def test_a_store_that_is_right_is_believed(tmp_path: Path, lose: bool) -> None:
    verdict = verdict_on(DictStore(), tmp_path, lose=lose)
    assert verdict.wrong == []
    assert verdict.unnamed == []
    assert verdict.stored > 0
    assert (verdict.named > 0) == lose
    assert (verdict.calls["load: PagesLost"] > 0) == lose


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        *("does not store", "forgets", "tears", "mixes up", "keeps", "says yes"),
        *("raises its own", "raises the dead", "recovers too much", "names nothing"),
    ],
)
def test_a_fault_that_is_planted_is_found(tmp_path: Path, fault: str) -> None:
    verdict = verdict_on(DictStore(fault), tmp_path)
    absent = {"forgets", "recovers too much", "names nothing"}
    assert verdict.unnamed if fault in absent else verdict.wrong, str(verdict)


@pytest.mark.slow
def test_a_call_that_takes_too_long_is_found(tmp_path: Path) -> None:
    verdict = verdict_on(DictStore("hangs"), tmp_path, limit_s=0.1)
    assert any("took" in line for line in verdict.wrong)


@pytest.mark.slow
def test_a_loss_that_nothing_explains_is_found(tmp_path: Path) -> None:
    store = DictStore()
    store.store(0, page_of(0, 1))
    store.lose(0)
    verdict = verdict_on(store, tmp_path, lose=False)
    assert any("named lost" in line for line in verdict.wrong)
