"""SwapStore against a dict: whatever is done to a store, it holds what a dict would hold."""

import errno
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from batchzip import BadArgument, Engine, PageNotStored, StoreRejected, SwapStore

MAX_INDEX = (1 << 63) - 1

SAME, SHRINKS, RANDOM = "same-filled", "shrinks", "incompressible"

MAKES = {
    "zeros": SAME,
    "word": SAME,
    "byte": SAME,
    "text": SHRINKS,
    "nearly zeros": SHRINKS,
    "long pattern": SHRINKS,
    "random": RANDOM,
}


@dataclass(frozen=True)
class Page:
    """A page as the model knows it: its bytes, and what must become of them."""

    data: bytes
    kind: str


def make_page(make: str, seed: int, size: int) -> Page:
    rng = random.Random(f"{make} {seed}")
    if make == "zeros":
        data = bytes(size)
    elif make == "word":
        data = rng.randbytes(8) * (size // 8)
    elif make == "byte":
        data = rng.randbytes(1) * size
    elif make == "text":
        data = (b"%d is the number of this page. " % seed * size)[:size]
    elif make == "nearly zeros":
        changed = bytearray(size)
        changed[rng.randrange(size)] = 1
        data = bytes(changed)
    elif make == "long pattern":
        data = rng.randbytes(16) * (size // 16)
    else:
        data = rng.randbytes(size)
    return Page(data, MAKES[make])


def forms(pages: Sequence[Page], size: int) -> dict[str, object]:
    """Make every form of input there is of the same pages."""
    data = [page.data for page in pages]
    flat = b"".join(data)
    return {
        "bytes": flat,
        "bytearray": bytearray(flat),
        "matrix": np.frombuffer(flat, np.uint8).reshape(-1, size),
        "flat array": np.frombuffer(flat, np.uint8),
        "odd address": memoryview(b"x" + flat)[1:],
        "list of bytes": data,
        "tuple of views": tuple(memoryview(page) for page in data),
        "list of arrays": [np.frombuffer(page, np.uint8) for page in data],
        "list of all kinds": [
            (bytes, bytearray, memoryview)[number % 3](page) for number, page in enumerate(data)
        ],
    }


FORMS = list(forms([make_page("zeros", 0, 512)], 512))

INDICES = st.builds(
    int.__add__,
    st.sampled_from([0, 480, 500, 1000, (1 << 40) - 20, MAX_INDEX - 55]),
    st.integers(0, 55),
)

LIMITS = st.sampled_from([None, 0, 4096, 16384, 32768, 65536, 1 << 20])


class StoreAgainstADict(RuleBasedStateMachine):
    """Every answer and gauge of the store is that of a dict from index to page."""

    @initialize(
        algorithm=st.sampled_from(["lz4", "zstd"]),
        page_size=st.sampled_from([512, 512, 512, 4096]),
        max_batch=st.sampled_from([1, 3, 8, 256]),
        limit=LIMITS,
        threshold=st.sampled_from([0, 50, 90, 100]),
        keeps=st.sampled_from([True, True, False]),
    )
    def open(
        self,
        algorithm: str,
        page_size: int,
        max_batch: int,
        limit: int | None,
        threshold: int,
        keeps: bool,
    ) -> None:
        self.size = page_size
        self.keeps = keeps
        self.threshold = threshold
        self.limit = limit
        self.full = False
        self.model: dict[int, Page] = {}
        self.poor = 0
        self.engine = Engine(algorithm, backend="sequential", page_size=page_size)
        self.swap = SwapStore(
            self.engine,
            max_pool_bytes=limit,
            accept_threshold_percent=threshold,
            max_batch=max_batch,
            keep_incompressible=keeps,
        )

    def teardown(self) -> None:
        if hasattr(self, "swap"):
            indices = list(self.model)
            random.Random(1).shuffle(indices)
            assert self.swap.load_many(indices).tobytes() == b"".join(
                self.model[index].data for index in indices
            )
            assert self.swap.invalidate(0, MAX_INDEX + 1) == len(indices)
            assert self.swap.compressed_bytes == 0
            self.swap.check_invariants()
            self.swap.close()
            self.engine.close()

    @rule(
        index=INDICES,
        count=st.integers(1, 40),
        makes=st.lists(st.sampled_from(list(MAKES)), min_size=1, max_size=5),
        seed=st.integers(0, 99),
        form=st.sampled_from(FORMS),
    )
    def store(self, index: int, count: int, makes: list[str], seed: int, form: str) -> None:
        pages = [
            make_page(makes[number % len(makes)], seed + number, self.size)
            for number in range(count)
        ]
        where = range(index, index + count)
        given_pages = cast("bytes", forms(pages, self.size)[form])
        if where[-1] > MAX_INDEX:
            with pytest.raises(BadArgument):
                self.swap.store(index, given_pages)
            return
        must_refuse = self.finds_the_pool_full()
        try:
            self.swap.store(index, given_pages)
        except StoreRejected as rejection:
            for at in where:
                self.model.pop(at, None)
            self.justify(rejection, pages, must_refuse=must_refuse)
        else:
            assert not must_refuse
            assert self.keeps or all(page.kind != RANDOM for page in pages)
            self.model.update(zip(where, pages, strict=True))

    def finds_the_pool_full(self) -> bool:
        """Do zswap's limit check on the model, hysteresis included."""
        if self.limit is None:
            return False
        if self.swap.counters.pool_total_size >= self.limit:
            self.swap.compact()  # or the store would, if an eighth of the pool is holes
        held = self.swap.counters.pool_total_size
        if held >= self.limit:
            self.full = True
        elif held * 100 <= self.limit * self.threshold:
            self.full = False
        return self.full

    def justify(self, rejection: StoreRejected, pages: list[Page], *, must_refuse: bool) -> None:
        if rejection.reason == "pool_limit_hit":
            assert self.limit is not None
            assert rejection.errors is None
            self.full = True
            return
        assert not must_refuse
        assert rejection.reason == "reject_compress_poor"
        assert not self.keeps
        errors = rejection.errors or ()
        failed = {number for number, code in enumerate(errors) if code}
        assert failed
        assert len(errors) == len(pages)
        assert failed <= {number for number, page in enumerate(pages) if page.kind == RANDOM}
        assert {errors[number] for number in failed} == {-errno.ENOSPC}
        self.poor += len(failed)

    @rule(
        index=INDICES,
        count=st.one_of(st.integers(1, 60), st.integers(500, 1100), st.integers(1, MAX_INDEX)),
    )
    def invalidate(self, index: int, count: int) -> None:
        if index + count - 1 > MAX_INDEX:
            with pytest.raises(BadArgument):
                self.swap.invalidate(index, count)
            return
        gone = [at for at in self.model if index <= at < index + count]
        assert self.swap.invalidate(index, count) == len(gone)
        for at in gone:
            del self.model[at]

    @rule(index=INDICES, nth=st.none() | st.integers(0, 999), into=st.sampled_from("bav-"))
    def load(self, index: int, nth: int | None, into: str) -> None:
        if nth is not None and self.model:
            index = list(self.model)[nth % len(self.model)]
        assert (index in self.swap) == (index in self.model)
        if index not in self.model:
            with pytest.raises(PageNotStored) as missing:
                self.swap.load(index)
            assert missing.value.index == index
            return
        if into == "-":
            assert self.swap.load(index) == self.model[index].data
            return
        room = bytearray(b"\x55" * (self.size + 2))
        out = {
            "b": bytearray(self.size),
            "a": np.empty(self.size, np.uint8),
            "v": memoryview(room)[1:-1],
        }[into]
        assert self.swap.load(index, out=cast("bytearray", out)) is out
        assert bytes(cast("bytearray", out)) == self.model[index].data
        assert room[0] == room[-1] == 0x55

    @precondition(lambda self: self.model)
    @rule(
        picks=st.lists(st.integers(0, 999), min_size=1, max_size=40),
        form=st.sampled_from(["list", "array", "iterator"]),
        into=st.sampled_from(["nothing", "matrix", "flat"]),
    )
    def load_many(self, picks: list[int], form: str, into: str) -> None:
        known = list(self.model)
        indices = [known[pick % len(known)] for pick in picks]
        out: bytearray | np.ndarray | None = None
        if into == "matrix":
            out = np.full((len(indices), self.size), 0x55, np.uint8)
        elif into == "flat":
            out = bytearray(len(indices) * self.size)
        pages = self.swap.load_many(self.as_form(indices, form), out)
        assert pages.shape == (len(indices), self.size)
        expected = b"".join(self.model[index].data for index in indices)
        assert pages.tobytes() == expected
        if out is not None:
            assert bytes(out) == expected

    @staticmethod
    def as_form(indices: list[int], form: str) -> list[int] | np.ndarray | Iterator[int]:
        if form == "array":
            return np.array(indices, np.int64)
        return iter(indices) if form == "iterator" else indices

    @rule(indices=st.lists(INDICES.filter(lambda at: at <= MAX_INDEX), min_size=1, max_size=8))
    def load_many_of_any(self, indices: list[int]) -> None:
        absent = [index for index in indices if index not in self.model]
        if absent:
            with pytest.raises(PageNotStored) as missing:
                self.swap.load_many(indices)
            assert missing.value.index == absent[0]
        else:
            assert len(self.swap.load_many(indices)) == len(indices)

    @rule(limit=LIMITS)
    def change_the_limit(self, limit: int | None) -> None:
        self.swap.max_pool_bytes = self.limit = limit
        assert self.swap.max_pool_bytes == limit

    @invariant()
    def is_whole(self) -> None:
        if hasattr(self, "swap"):
            self.swap.check_invariants()

    @invariant()
    def gauges_are_those_of_the_model(self) -> None:
        if not hasattr(self, "swap"):
            return
        kinds = [page.kind for page in self.model.values()]
        counters = self.swap.counters
        assert len(self.swap) == counters.stored_pages == len(kinds)
        assert counters.same_filled_pages == kinds.count(SAME)
        assert counters.stored_incompressible_pages == kinds.count(RANDOM)
        assert counters.reject_compress_poor == self.poor
        assert counters.reject_alloc_fail == counters.reject_compress_fail == 0
        assert counters.decompress_fail == counters.written_back_pages == 0
        assert counters.reject_reclaim_fail == 0
        assert self.swap.compressed_bytes <= counters.pool_total_size
        raw = kinds.count(RANDOM) * self.size
        assert raw <= self.swap.compressed_bytes <= raw + kinds.count(SHRINKS) * (self.size - 1)


TestStoreAgainstADict = pytest.mark.slow(StoreAgainstADict.TestCase)
TestStoreAgainstADict.settings = settings(
    max_examples=200,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
