"""Tables of a group: any index there is, in any order, as a dict has them; and what they cost."""

import mmap
import multiprocessing
import os
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support.store_pages import word

from batchzip import BadArgument, Engine, PageNotStored, SwapStore
from batchzip.store.arguments import MAX_INDEX, as_range


def look_at_word(owner: int, fd: int, row: int, out: Connection) -> None:
    """Read the second word of a table's row until it changes. Send all values that were seen."""
    at = (4096 + (8 << 20)) // 8 + 2 * row + 1
    seen: set[int] = set()
    with Path(f"/proc/{owner}/fd/{fd}").open("rb") as file:
        table = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)).cast("Q")
    out.send("ready")
    while not out.poll():
        seen.update(table[at] for _ in range(1000))
    out.send(seen)
    out.close()


spawn = multiprocessing.get_context("spawn")

SIZE = 512
BLOCK = 512
"""Indices that have a row of the table together."""

INDICES = st.builds(
    lambda base, offset: min(base + offset, MAX_INDEX),
    st.sampled_from([0, BLOCK - 3, 2 * BLOCK - 3, 1 << 32, (1 << 52) - 5, MAX_INDEX - 60]),
    st.integers(0, 60),
)
SPREAD = st.integers(0, MAX_INDEX >> 9).map(lambda block: block << 9)
GROUPS = st.integers(0, 2)


@pytest.fixture
def store() -> Iterator[SwapStore]:
    with (
        Engine("lz4", backend="sequential", page_size=SIZE) as engine,
        SwapStore(engine) as store,
    ):
        yield store
        store.check_invariants()


def same_filled(seeds: range) -> list[bytes]:
    """Make pages that need the table alone."""
    return [word(seed, SIZE) for seed in seeds]


class TablesAgainstDicts(RuleBasedStateMachine):
    """Three groups, each with a table of its own, hold what three dicts would."""

    @initialize()
    def open(self) -> None:
        self.engine = Engine("lz4", backend="sequential", page_size=SIZE)
        self.swap = SwapStore(self.engine)
        self.groups = [self.swap, self.swap.group("a"), self.swap.group("b")]
        self.models: list[dict[int, bytes]] = [{}, {}, {}]
        self.seed = 0

    def teardown(self) -> None:
        for group, model in zip(self.groups, self.models, strict=True):
            assert group.load_many(list(model)).tobytes() == b"".join(model.values())
        self.swap.close()
        self.engine.close()

    @rule(where=GROUPS, index=INDICES | SPREAD, count=st.integers(1, 3) | st.integers(500, 1100))
    def store(self, where: int, index: int, count: int) -> None:
        count = min(count, MAX_INDEX - index + 1)
        pages = same_filled(range(self.seed, self.seed + count))
        self.seed += count
        self.groups[where].store(index, pages)
        self.models[where].update(zip(range(index, index + count), pages, strict=True))

    @rule(where=GROUPS, start=SPREAD, step=st.sampled_from([BLOCK, 8 * BLOCK, 1 << 20, 1 << 33]))
    def store_far_apart(self, where: int, start: int, step: int) -> None:
        for index in range(start, min(start + 40 * step, MAX_INDEX), step):
            self.store(where, index, 1)

    @rule(
        where=GROUPS,
        index=INDICES,
        count=st.one_of(st.integers(1, 1100), st.integers(1, MAX_INDEX)),
    )
    def invalidate(self, where: int, index: int, count: int) -> None:
        count = min(count, MAX_INDEX - index + 1)
        model = self.models[where]
        gone = [at for at in model if index <= at < index + count]
        assert self.groups[where].invalidate(index, count) == len(gone)
        for at in gone:
            del model[at]

    @rule(where=GROUPS, data=st.data())
    def take(self, where: int, data: st.DataObject) -> None:
        model = self.models[where]
        if model:
            index = data.draw(st.sampled_from(sorted(model)))
            assert self.groups[where].load(index, exclusive=True) == model.pop(index)

    @rule(where=GROUPS, index=INDICES | SPREAD)
    def load(self, where: int, index: int) -> None:
        group, model = self.groups[where], self.models[where]
        assert (index in group) == (index in model)
        if index in model:
            assert group.load(index) == model[index]
        else:
            with pytest.raises(PageNotStored):
                group.load(index)

    @rule(where=st.integers(1, 2))
    def drop(self, where: int) -> None:
        assert self.swap.drop_group("ab"[where - 1]) == len(self.models[where])
        self.groups[where] = self.swap.group("ab"[where - 1])
        self.models[where] = {}

    @rule()
    def share(self) -> None:
        self.swap.share()  # tables move to shared memory when they are asked for
        for group in self.groups:
            group._entries.share()

    @invariant()
    def is_whole(self) -> None:
        if hasattr(self, "swap"):
            self.swap.check_invariants()
            assert [len(group) for group in self.groups] == [len(model) for model in self.models]


TestTablesAgainstDicts = pytest.mark.slow(TablesAgainstDicts.TestCase)
TestTablesAgainstDicts.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, derandomize=True, database=None
)


@pytest.mark.parametrize("start", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1])
@pytest.mark.parametrize("count", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_pages_keep_their_order_across_blocks(store: SwapStore, start: int, count: int) -> None:
    pages = same_filled(range(count))
    store.store(start, pages)
    assert store.load_many(range(start, start + count)).tobytes() == b"".join(pages)
    assert start + count not in store
    assert store.invalidate(start, count) == count
    assert len(store) == 0


def test_a_full_table_costs_little_more_than_16_bytes_a_page(store: SwapStore) -> None:
    group = store.group("dense")
    count = 1000 * BLOCK
    for start in range(0, count, BLOCK):
        group.store(start, bytes(BLOCK * SIZE))
    assert group.table_bytes <= 18.5 * count  # an eighth of it for the next


def test_rows_of_blocks_that_are_empty_are_used_before_the_table_grows(store: SwapStore) -> None:
    group = store.group("moving")
    for block in range(20):
        group.store(block * BLOCK, word(block, SIZE))
    size = group.table_bytes
    for turn in range(1, 5):
        group.invalidate(0, MAX_INDEX + 1)
        for block in range(20):
            group.store((turn << 40) + block * BLOCK, word(block, SIZE))
    assert group.table_bytes == size


def test_forgetting_everything_takes_the_time_of_what_is_stored(store: SwapStore) -> None:
    store.store(1 << 50, bytes(3 * SIZE))
    assert store.invalidate(1, MAX_INDEX) == 3  # 2⁵⁴ blocks one by one would never end


def test_thousands_of_groups_have_tables_of_their_own(store: SwapStore) -> None:
    count = 3000
    for number in range(count):
        store.group(f"group {number}").store(number, word(number, SIZE))
    store.check_invariants()
    assert store.counters.stored_pages == count
    for number in range(0, count, 7):
        assert store.group(f"group {number}").load(number) == word(number, SIZE)
        assert store.drop_group(f"group {number}") == 1
    assert store.counters.stored_pages == len(store.groups) == count - len(range(0, count, 7))


@pytest.mark.parametrize(("index", "count"), [(0, 1), (0, MAX_INDEX + 1), (MAX_INDEX, 1)])
def test_indices_reach_from_0_to_2_to_the_63_less_1(index: int, count: int) -> None:
    as_range(index, count)


@pytest.mark.parametrize(
    ("index", "count"),
    [
        (-1, 1),
        (MAX_INDEX + 1, 1),
        (MAX_INDEX, 2),
        (0, MAX_INDEX + 2),
        (1 << 70, 1),
        (0, 0),
        (5, -1),
    ],
)
def test_indices_beyond_are_refused(index: int, count: int) -> None:
    with pytest.raises(BadArgument):
        as_range(index, count)


def test_numpy_integers_at_the_very_end_are_refused_as_plain_ones_are() -> None:
    with pytest.raises(BadArgument):
        as_range(np.int64(MAX_INDEX), 2)


# Shared with other processes


def put(store: SwapStore, seed: int, count: int) -> None:
    store.store(0, [word(seed, SIZE)] * count)


def take(store: SwapStore, seed: int, count: int) -> None:
    store.load_many(range(count), exclusive=True)
    put(store, seed, count)


def invalidate(store: SwapStore, seed: int, count: int) -> None:
    store.invalidate(0, count)
    put(store, seed, count)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, BLOCK - 1])
@pytest.mark.parametrize("change", [put, take, invalidate])
def test_other_processes_see_no_word_that_nobody_wrote(
    store: SwapStore, change: Callable[[SwapStore, int, int], None], count: int
) -> None:
    """The checksum, kind and codec of an entry, whose epoch is another thing."""
    written = {0}
    put(store, 0, BLOCK)  # whose last page stays, so that the block does
    store.share()
    here, there = spawn.Pipe()
    looker = spawn.Process(
        target=look_at_word, args=(os.getpid(), store._entries.share(), 0, there)
    )
    looker.start()
    assert here.recv() == "ready"
    for turn in range(2000):
        change(store, turn % 2, count)
    here.send("stop")
    seen = {found & (1 << 48) - 1 for found in here.recv()}
    looker.join()
    looker.close()
    here.close()
    there.close()
    assert len(seen - written) <= 2
