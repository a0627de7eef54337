"""Arena against a plain model: arrays never share a byte, and where each lies is where it lies."""

from __future__ import annotations

import gc
import os
import random
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from batchzip.system.arena import Arena
from batchzip.system.segment import PAGE

if TYPE_CHECKING:
    from batchzip.arguments.buffers import Bytes


NUMBERS = st.integers(0, 1000)


@dataclass
class Block:
    """An array as the model knows it: its bytes, and the views of it that are kept."""

    expected: bytearray
    width: int
    views: list[tuple[Bytes, int]] = field(default_factory=list)
    """Views, and the byte of the array at which each begins."""

    @property
    def held(self) -> int:
        return -(-len(self.expected) // PAGE) * PAGE


class ArenaAgainstModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.arena = Arena()
        self.file = os.dup(self.arena.fd)
        self.blocks: list[Block] = []
        self.closed = False

    def teardown(self) -> None:
        self.blocks.clear()
        gc.collect()
        assert os.fstat(self.file).st_blocks == 0
        os.close(self.file)
        self.arena.close()

    @precondition(lambda self: not self.closed)
    @rule(
        rows=st.integers(1, 5),
        width=st.sampled_from([1, 13, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE]),
        seed=st.integers(0, 1 << 30),
    )
    def make(self, rows: int, width: int, seed: int) -> None:
        array = self.arena.array(rows, width)
        assert not array.any()
        content = random.Random(seed).randbytes(rows * width)
        array.reshape(-1)[:] = np.frombuffer(content, np.uint8)
        self.blocks.append(Block(bytearray(content), width, [(array, 0)]))

    def pick(self, number: int) -> tuple[Block, int]:
        """Choose a view, by numbers: Hypothesis keeps what it draws, and so would keep arrays."""
        block = self.blocks[number % len(self.blocks)]
        return block, number // 7 % len(block.views)

    @precondition(lambda self: self.blocks)
    @rule(number=NUMBERS, first=st.integers(0, 4), rows=st.integers(1, 5))
    def keep_a_view(self, number: int, first: int, rows: int) -> None:
        block, at = self.pick(number)
        view, start = block.views[at]
        first = min(first, len(view) - 1)
        block.views.append((view[first : first + rows], start + first * block.width))

    @precondition(lambda self: self.blocks)
    @rule(number=NUMBERS, value=st.integers(0, 255))
    def write(self, number: int, value: int) -> None:
        block, at = self.pick(number)
        view, start = block.views[at]
        view[:] = value
        block.expected[start : start + view.nbytes] = bytes([value]) * view.nbytes

    @precondition(lambda self: self.blocks)
    @rule(number=NUMBERS)
    def drop_a_view(self, number: int) -> None:
        block, at = self.pick(number)
        del block.views[at]
        if not block.views:
            self.blocks.remove(block)

    @rule(count=st.integers(1, 20))
    def look_for_arrays_of_others(self, count: int) -> None:
        others = [np.frombuffer(bytearray(8), np.uint8) for _ in range(count)]
        assert all(self.arena.locate(other) == -1 for other in others)

    @precondition(lambda self: len(self.blocks) > 2 and not self.closed)
    @rule()
    def close(self) -> None:
        self.arena.close()
        self.closed = True

    @invariant()
    def every_array_has_its_own_bytes(self) -> None:
        for block in self.blocks:
            for view, start in block.views:
                assert view.tobytes() == block.expected[start : start + view.nbytes]

    @invariant()
    def each_lies_where_it_is_said_to_lie(self) -> None:
        spans = []
        for block in self.blocks:
            starts = {self.arena.locate(view) - start for view, start in block.views}
            assert len(starts) == 1
            begin = starts.pop()
            assert begin >= 0
            assert os.pread(self.file, len(block.expected), begin) == block.expected
            spans.append((begin, begin + block.held))
        spans.sort()
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))

    @invariant()
    def memory_is_that_of_the_arrays_that_live(self) -> None:
        held = os.fstat(self.file).st_blocks * 512
        assert held == sum(block.held for block in self.blocks)
        assert len(self.arena.blocks) == len(self.blocks)


TestArenaAgainstAModel = pytest.mark.slow(ArenaAgainstModel.TestCase)
TestArenaAgainstAModel.settings = settings(
    max_examples=50,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
