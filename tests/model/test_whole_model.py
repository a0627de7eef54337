"""Pool, store, groups and backing file together against dicts, with a file whose calls fail."""

import errno
import random
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support.faulty_file import FaultyFile
from support.store_pages import noise, text, word

from batchzip import CorruptPage, Engine, PageError, PageNotStored, StoreRejected, SwapStore

if TYPE_CHECKING:
    from batchzip.store.group import Group

SIZE = 512
NAMES = ["", "a", "b"]
INDICES = st.integers(0, 40) | st.integers(505, 520)
ENGINES: list[tuple[str, dict[str, Any]]] = [
    ("lz4", {}),
    ("zstd", {"level": 3}),
    ("lz4", {"shuffle": 4}),
]
CALLS = st.sampled_from(["pwrite", "pread", "sync", "truncate"])


class WholeStore(RuleBasedStateMachine):
    """Whatever is done, and whichever call of the file fails, each page is as in a dict."""

    @initialize(
        limit=st.sampled_from([None, 0, 8192, 65536]),
        backing_limit=st.sampled_from([None, 20_000]),
        keeps=st.booleans(),
        batch=st.sampled_from([2, 16]),
    )
    def open(self, limit: int | None, backing_limit: int | None, keeps: bool, batch: int) -> None:
        self.file = FaultyFile()
        self.engines = [
            Engine(name, backend="sequential", page_size=SIZE, **parameters)
            for name, parameters in ENGINES
        ]
        self.swap = SwapStore(
            self.engines[0],
            max_pool_bytes=limit,
            backing=self.file,
            max_backing_bytes=backing_limit,
            shrinker_enabled=False,
            max_batch=batch,
            keep_incompressible=keeps,
        )
        self.groups: dict[str, Group] = {"": self.swap}
        self.groups |= {name: self.swap.group(name) for name in NAMES[1:]}
        self.model: dict[str, dict[int, bytes]] = {name: {} for name in NAMES}

    def teardown(self) -> None:
        if not hasattr(self, "swap"):
            return
        self.file.faults.clear()
        for name, pages in self.model.items():
            found = self.groups[name].load_many(list(pages))
            assert found.tobytes() == b"".join(pages.values())
        self.swap.close()
        for engine in self.engines:
            engine.close()

    @rule(
        name=st.sampled_from(NAMES),
        index=INDICES,
        makes=st.lists(st.sampled_from([text, noise, word]), min_size=1, max_size=12),
        seed=st.integers(0, 9999),
    )
    def store(self, name: str, index: int, makes: list[Any], seed: int) -> None:
        pages = [make(seed + number, SIZE) for number, make in enumerate(makes)]
        try:
            self.groups[name].store(index, pages)
        except StoreRejected:
            for at in range(index, index + len(pages)):
                self.model[name].pop(at, None)
        else:
            self.model[name].update(zip(range(index, index + len(pages)), pages, strict=True))

    def is_the_file_s(self, error: PageError) -> None:
        """See that it is the fault that was ordered; the page stays then."""
        assert error.errno == -errno.EIO
        assert "pread" in self.file.faults

    @rule(name=st.sampled_from(NAMES), index=INDICES, exclusive=st.booleans())
    def load(self, name: str, index: int, exclusive: bool) -> None:
        expected = self.model[name].get(index)
        try:
            found = self.groups[name].load(index, exclusive=exclusive)
        except PageNotStored:
            assert expected is None
        except CorruptPage:
            raise
        except PageError as error:
            self.is_the_file_s(error)
            assert expected is not None
        else:
            assert found == expected
            if exclusive:
                del self.model[name][index]

    @rule(name=st.sampled_from(NAMES), seed=st.integers(0, 99), exclusive=st.booleans())
    def load_many(self, name: str, seed: int, exclusive: bool) -> None:
        known = list(self.model[name])
        picks = random.Random(seed).sample(known, min(len(known), 7))
        try:
            found = self.groups[name].load_many(picks, exclusive=exclusive)
        except PageError as error:
            self.is_the_file_s(error)
            return
        assert found.tobytes() == b"".join(self.model[name][at] for at in picks)
        if exclusive:
            for at in picks:
                del self.model[name][at]

    @rule(name=st.sampled_from(NAMES), index=INDICES, count=st.integers(1, 30))
    def invalidate(self, name: str, index: int, count: int) -> None:
        gone = [at for at in self.model[name] if index <= at < index + count]
        assert self.groups[name].invalidate(index, count) == len(gone)
        for at in gone:
            del self.model[name][at]

    @rule(name=st.sampled_from(NAMES), what=st.integers(0, 20) | st.lists(INDICES, max_size=20))
    def writeback(self, name: str, what: int | list[int]) -> None:
        before = self.groups[name].counters
        try:
            moved = self.groups[name].writeback(what)
        except OSError:
            return
        assert self.groups[name].counters.backed_pages == before.backed_pages + moved

    @rule()
    def shrink(self) -> None:
        try:
            self.swap.shrink()
        except OSError:
            assert self.file.faults or self.swap.counters.backing_file_size

    @rule()
    def compact(self) -> None:
        try:
            self.swap.compact()
        except OSError:
            assert self.file.faults or self.swap.counters.backing_file_size

    @rule(name=st.sampled_from(NAMES), which=st.integers(0, 2))
    def recompress(self, name: str, which: int) -> None:
        before = self.groups[name].counters
        done = self.groups[name].recompress(self.engines[which])
        assert done.recompressed <= done.pages
        after = self.groups[name].counters
        assert after.stored_pages == before.stored_pages
        assert after.pool_total_size == before.pool_total_size - done.saved_bytes

    @rule(which=st.integers(0, 2))
    def change_the_engine(self, which: int) -> None:
        self.swap.engine = self.engines[which]

    @rule(limit=st.sampled_from([None, 0, 4096, 8192, 65536]))
    def change_the_limit(self, limit: int | None) -> None:
        self.swap.max_pool_bytes = limit

    @rule(name=st.sampled_from(NAMES[1:]), limit=st.sampled_from([None, 0, 2048, 16384]))
    def limit_a_group(self, name: str, limit: int | None) -> None:
        self.groups[name].max_bytes = limit

    @rule(name=st.sampled_from(NAMES[1:]))
    def drop(self, name: str) -> None:
        assert self.swap.drop_group(name) == len(self.model[name])
        self.groups[name] = self.swap.group(name)
        self.model[name] = {}

    @rule(call=CALLS, times=st.integers(0, 3), half=st.booleans())
    def make_calls_fail(self, call: str, times: int, half: bool) -> None:
        self.file.faults = {call: (0 if half else errno.EIO, times)} if times else {}

    @invariant()
    def all_is_whole(self) -> None:
        if not hasattr(self, "swap"):
            return
        self.swap.check_invariants()
        faults, self.file.faults = self.file.faults, {}
        assert self.swap.check().ok
        self.file.faults = faults
        for name, pages in self.model.items():
            assert len(self.groups[name]) == len(pages)
        counters = self.swap.counters
        assert counters.stored_pages + counters.backed_pages == sum(map(len, self.model.values()))


TestWholeStore = pytest.mark.slow(WholeStore.TestCase)
TestWholeStore.settings = settings(
    max_examples=120,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
