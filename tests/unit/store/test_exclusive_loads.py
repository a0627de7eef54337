"""An exclusive load takes a page out wherever it lies, and takes nothing when it fails."""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.entries import in_file
from support.gate import Gate
from support.store_pages import PAGES, SIZE, text

from batchzip import (
    CorruptPage,
    Engine,
    PageNotStored,
    SwapStore,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def store(engine: Engine, tmp_path: Path) -> Iterator[SwapStore]:
    with SwapStore(engine, backing=tmp_path) as made:
        yield made
        if not made.closed:
            made.check_invariants()
            assert made.check().ok


# Exclusive loads


def test_an_exclusive_load_takes_the_page_out_wherever_it_is(store: SwapStore) -> None:
    store.store(0, PAGES)
    store.writeback([0, 1])
    for index, page in enumerate(PAGES):
        assert store.load(index, exclusive=True) == page
        assert index not in store
        with pytest.raises(PageNotStored):
            store.load(index, exclusive=True)
    assert store.compressed_bytes == 0


def test_an_exclusive_load_of_many_takes_all_or_none(store: SwapStore) -> None:
    store.store(0, PAGES)
    store.writeback([0, 6])
    with pytest.raises(PageNotStored):
        store.load_many([1, 2, 99], exclusive=True)
    assert len(store) == len(PAGES)
    taken = store.load_many([6, 1, 2, 1], exclusive=True)
    assert taken.tobytes() == PAGES[6] + PAGES[1] + PAGES[2] + PAGES[1]
    assert [index for index in range(len(PAGES)) if index in store] == [0, 3, 4, 5, 7]


def test_25cd241408a2_a_page_that_cannot_be_restored_is_not_dropped(engine: Engine) -> None:
    gate = Gate()
    with SwapStore(engine, backing=gate) as store:
        store.store(0, [text(0), text(1)])
        store.writeback(2)
        gate.memory[in_file(store, 0)[0]] ^= 1
        with pytest.raises(CorruptPage):
            store.load(0, exclusive=True)
        with pytest.raises(CorruptPage):
            store.load_many([1, 0], exclusive=True)
        assert 0 in store
        assert 1 in store


def test_of_many_that_take_a_page_one_gets_it(engine: Engine) -> None:
    rounds, takers = 200, 4
    with SwapStore(engine) as store:
        taken: list[int] = []

        def take() -> None:
            for index in range(rounds):
                try:
                    page = store.load(index, exclusive=True)
                except PageNotStored:
                    continue
                assert page == text(index)
                taken.append(index)

        store.store(0, [text(number) for number in range(rounds)])
        threads = [threading.Thread(target=take) for _ in range(takers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(taken) == list(range(rounds))
        assert len(store) == 0


def test_an_exclusive_load_that_fails_takes_nothing(engine: Engine) -> None:
    """lkml 2403.3/03624: zswap dropped a page whose load was then thrown away."""
    with SwapStore(engine, backing=io.BytesIO()) as store:
        store.store(0, [text(number) for number in range(4)])
        store.writeback([0])
        for out in (bytearray(10), b"x" * SIZE, np.empty(2 * SIZE, np.uint8)[::2]):
            with pytest.raises(ValueError, match="out"):
                store.load(1, out, exclusive=True)
        with pytest.raises(PageNotStored):
            store.load_many([0, 1, 99], exclusive=True)
        assert store.load_many(range(4)).tobytes() == b"".join(map(text, range(4)))
