"""PageTable: whatever is put, cleared and asked for, it answers as a dict does."""

import multiprocessing
import os
from collections.abc import Callable
from typing import cast

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from share_readers import look_at_word

from batchzip.errors import BadArgument
from batchzip.store.arguments import MAX_INDEX, as_range
from batchzip.store.page_table import (
    ABSENT,
    BACKED,
    COMPRESSED,
    ENTRY,
    RAW,
    SAME_FILLED,
    PageTable,
)

spawn = multiprocessing.get_context("spawn")

BLOCK = 512
"""Indices a block of the table covers."""

ABSENT_ENTRY = (0, 0, ABSENT, 0, 0)

Entry = tuple[int, int, int, int, int]

INDICES = st.builds(
    lambda base, offset: min(base + offset, MAX_INDEX),
    st.sampled_from([0, BLOCK - 3, 2 * BLOCK - 3, 1 << 32, (1 << 52) - 5, MAX_INDEX - 60]),
    st.integers(0, 60),
)

LIVE = st.tuples(
    st.integers(0, (1 << 64) - 1),
    st.integers(0, (1 << 32) - 1),
    st.sampled_from([COMPRESSED, RAW, SAME_FILLED, BACKED]),
    st.integers(0, 255),
    st.integers(0, (1 << 16) - 1),
)


def as_array(entries: list[Entry]) -> np.ndarray:
    return np.array(entries, ENTRY)


def as_list(entries: np.ndarray) -> list[Entry]:
    return cast("list[Entry]", entries.tolist())


class PageTableAgainstADict(RuleBasedStateMachine):
    """Every answer of the table is that of a dict from index to entry."""

    def __init__(self) -> None:
        super().__init__()
        self.table = PageTable()
        self.model: dict[int, Entry] = {}

    @rule(index=INDICES, entries=st.lists(LIVE, min_size=1, max_size=8), times=st.integers(1, 100))
    def replace(self, index: int, entries: list[Entry], times: int) -> None:
        entries = (entries * times)[: MAX_INDEX - index + 1]
        old = as_list(self.table.replace(index, as_array(entries)))
        where = range(index, index + len(entries))
        assert old == [self.model.get(at, ABSENT_ENTRY) for at in where]
        self.model.update(zip(where, entries, strict=True))

    @rule(index=INDICES, count=st.one_of(st.integers(1, 1100), st.integers(1, MAX_INDEX)))
    def clear(self, index: int, count: int) -> None:
        count = min(count, MAX_INDEX - index + 1)
        removed = as_list(self.table.clear(index, count))
        gone = [at for at in self.model if index <= at < index + count]
        assert sorted(removed) == sorted(self.model.pop(at) for at in gone)

    @rule(index=INDICES)
    def get(self, index: int) -> None:
        assert self.table.get(index) == self.model.get(index, ABSENT_ENTRY)

    @rule(indices=st.lists(INDICES, min_size=1, max_size=50))
    def get_many(self, indices: list[int]) -> None:
        entries = as_list(self.table.get_many(np.array(indices, np.int64)))
        assert entries == [self.model.get(at, ABSENT_ENTRY) for at in indices]

    @rule(index=INDICES, epoch=st.integers(0, (1 << 16) - 1))
    def use(self, index: int, epoch: int) -> None:
        assert self.table.use(index, epoch) == self.model.get(index, ABSENT_ENTRY)
        if index in self.model:
            self.model[index] = (*self.model[index][:4], epoch)

    @rule(indices=st.lists(INDICES, min_size=1, max_size=50), epoch=st.integers(0, (1 << 16) - 1))
    def use_many(self, indices: list[int], epoch: int) -> None:
        found = as_list(self.table.use_many(np.array(indices, np.int64), epoch))
        assert found == [self.model.get(at, ABSENT_ENTRY) for at in indices]
        for index in self.model.keys() & set(indices):
            self.model[index] = (*self.model[index][:4], epoch)

    @rule(indices=st.sets(INDICES, min_size=1, max_size=50), new=LIVE, changed=st.integers(0, 3))
    def exchange(self, indices: set[int], new: Entry, changed: int) -> None:
        where = sorted(indices)
        old = [self.model.get(at, (1, 2, RAW, 3, 4)) for at in where]
        # Some are not what they are thought to be; another epoch does not matter.
        old = [
            (value ^ (number % 4 < changed), check, kind, codec, 9)
            for number, (value, check, kind, codec, _) in enumerate(old)
        ]
        same = self.table.exchange(np.array(where), as_array(old), as_array([new] * len(where)))
        for at, entry, exchanged in zip(where, old, same.tolist(), strict=True):
            now = self.model.get(at)
            assert exchanged == (now is not None and now[:4] == entry[:4])
            if exchanged and now is not None:
                self.model[at] = (*new[:4], now[4])

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        if not self.model:
            return
        chosen = sorted(data.draw(st.sets(st.sampled_from(sorted(self.model)), min_size=1)))
        removed = as_list(self.table.remove(np.array(chosen)))
        assert removed == [self.model.pop(at) for at in chosen]

    @rule(data=st.data())
    def rows_name_their_indices(self, data: st.DataObject) -> None:
        if self.model:
            chosen = np.array(data.draw(st.lists(st.sampled_from(sorted(self.model)))), np.int64)
            assert (self.table.indices(self.table.rows(chosen)) == chosen).all()

    @invariant()
    def is_whole(self) -> None:
        self.table.check_invariants()

    @invariant()
    def stored_blocks_are_those_of_the_dict(self) -> None:
        found = {
            first + offset: entry
            for first, entries in self.table.blocks()
            for offset, entry in enumerate(as_list(entries))
            if entry[2] != ABSENT
        }
        assert found == self.model


TestPageTableAgainstADict = PageTableAgainstADict.TestCase
TestPageTableAgainstADict.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, derandomize=True, database=None
)


def entries_of(count: int) -> np.ndarray:
    return as_array([(number, number, RAW, 0, 0) for number in range(1, count + 1)])


def test_an_empty_table_has_nothing_anywhere() -> None:
    table = PageTable()
    assert table.get(0) == ABSENT_ENTRY
    assert table.get(MAX_INDEX) == ABSENT_ENTRY
    assert as_list(table.get_many(np.array([0, MAX_INDEX]))) == [ABSENT_ENTRY] * 2
    assert len(table.clear(0, MAX_INDEX + 1)) == 0
    assert list(table.blocks()) == []


def test_the_first_and_the_last_index_there_are_can_be_used() -> None:
    table = PageTable()
    table.replace(0, entries_of(1))
    table.replace(MAX_INDEX, entries_of(1))
    assert table.get(0) == table.get(MAX_INDEX) == (1, 1, RAW, 0, 0)
    table.check_invariants()
    assert len(table.clear(0, MAX_INDEX + 1)) == 2
    table.check_invariants()


@pytest.mark.parametrize("start", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1])
@pytest.mark.parametrize("count", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_entries_keep_their_order_across_block_boundaries(start: int, count: int) -> None:
    table = PageTable()
    table.replace(start, entries_of(count))
    assert [table.get(start + at)[0] for at in range(count)] == list(range(1, count + 1))
    assert table.get(start + count) == ABSENT_ENTRY
    assert as_list(table.clear(start, count)) == as_list(entries_of(count))


def test_entries_that_were_given_back_do_not_change_with_the_table() -> None:
    table = PageTable()
    table.replace(0, entries_of(4))
    seen = table.get_many(np.arange(4))
    old = table.replace(0, as_array([(9, 9, COMPRESSED, 1, 0)] * 4))
    removed = table.clear(0, 4)
    table.replace(0, as_array([(7, 7, RAW, 0, 0)] * 4))
    assert as_list(seen) == as_list(old) == as_list(entries_of(4))
    assert as_list(removed) == [(9, 9, COMPRESSED, 1, 0)] * 4


def test_a_full_table_costs_at_most_32_bytes_a_page() -> None:
    table = PageTable()
    count = 200 * BLOCK
    for start in range(0, count, BLOCK):
        table.replace(start, entries_of(BLOCK))
    assert table.nbytes <= 32 * count


def test_blocks_that_were_emptied_are_used_again_before_the_table_grows() -> None:
    table = PageTable()
    for block in range(20):
        table.replace(block * BLOCK, entries_of(BLOCK))
    size = table.nbytes
    table.clear(0, 20 * BLOCK)
    for block in range(20):
        table.replace((1 << 40) + block * BLOCK, entries_of(BLOCK))
    assert table.nbytes == size


def test_clearing_everything_takes_the_time_of_what_is_stored_not_of_what_could_be() -> None:
    table = PageTable()
    table.replace(1 << 50, entries_of(3))
    assert len(table.clear(1, MAX_INDEX)) == 3  # 2⁵⁴ blocks one by one would never end


def test_memory_that_runs_out_leaves_the_table_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    table = PageTable()
    table.replace(0, entries_of(BLOCK))

    def refuse(_parts: object) -> np.ndarray:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(np, "concatenate", refuse)
        with pytest.raises(MemoryError):
            table.replace(5 * BLOCK, entries_of(1))
    table.check_invariants()
    assert table.get(0) == (1, 1, RAW, 0, 0)
    assert table.get(5 * BLOCK) == ABSENT_ENTRY


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


@pytest.mark.parametrize("index", [1.0, "1", None, b"1", [1]])
def test_what_is_no_integer_is_no_index(index: object) -> None:
    with pytest.raises(BadArgument, match="integer"):
        as_range(cast("int", index), 1)


def test_numpy_integers_at_the_very_end_are_refused_as_plain_ones_are() -> None:
    with pytest.raises(BadArgument):
        as_range(np.int64(MAX_INDEX), 2)


# Shared with other processes

ONE = (0x1111111111111111, 0x22222222, COMPRESSED, 1, 0x0101)
OTHER = (0xEEEEEEEEEEEEEEEE, 0xDDDDDDDD, RAW, 0, 0x0202)


def second_word(entry: Entry) -> int:
    return int(as_array([entry]).view(np.uint64)[1])


def put(table: PageTable, entry: Entry, count: int) -> None:
    table.replace(0, as_array([entry] * count))


def exchange(table: PageTable, entry: Entry, count: int) -> None:
    indices = np.arange(count)
    old = table.use_many(indices, entry[4])
    assert table.exchange(indices, old, as_array([entry] * count)).all()


def remove(table: PageTable, entry: Entry, count: int) -> None:
    table.remove(np.arange(count))
    put(table, entry, count)


def clear(table: PageTable, entry: Entry, count: int) -> None:
    table.clear(0, count)
    put(table, entry, count)


@pytest.mark.parametrize("count", [1, BLOCK - 1])
@pytest.mark.parametrize("change", [put, exchange, remove, clear])
def test_other_processes_see_no_word_that_nobody_wrote(
    change: Callable[[PageTable, Entry, int], None], count: int
) -> None:
    table = PageTable()
    put(table, OTHER, BLOCK)  # whose last row stays, so that the block does
    segment = table.share()
    here, there = spawn.Pipe()
    looker = spawn.Process(target=look_at_word, args=(os.getpid(), segment.fd, 0, there))
    looker.start()
    assert here.recv() == "ready"
    for _ in range(1000):
        for entry in (ONE, OTHER):
            change(table, entry, count)
    here.send("stop")
    seen = here.recv()
    looker.join()
    looker.close()
    here.close()
    there.close()
    table.close()
    written = {0, second_word(ONE), second_word(OTHER)}
    if change is exchange:  # the epoch comes first, and alone
        written |= {second_word((*ONE[:4], OTHER[4])), second_word((*OTHER[:4], ONE[4]))}
    assert {hex(word) for word in seen - written} == set()
