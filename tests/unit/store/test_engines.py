"""What is stored stays as it is when a store's engine changes, wherever it lies."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.entries import codec
from support.store_pages import SIZE, ZEROS, noise, text

from batchzip import BadArgument, ClosedError, Engine, PageNotStored, SwapStore, train_dictionary

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("lz4", {}),
    ("zstd", {"level": 1}),
    ("zstd", {"level": 9}),
    ("lz4", {"shuffle": 2}),
    ("zstd", {"shuffle": 8}),
]


def engines() -> Iterator[Engine]:
    for name, parameters in KINDS:
        yield Engine(name, backend="sequential", **parameters)
    for first in (0, 500):
        samples = [text(number) for number in range(first, first + 100)]
        dictionary = train_dictionary(samples, size=4096)
        yield Engine("zstd", backend="sequential", dictionary=dictionary)


def test_pages_of_every_engine_live_side_by_side_and_outlive_it(tmp_path: Path) -> None:
    expected: dict[int, bytes] = {}
    with ExitStack() as stack:
        first = stack.enter_context(Engine("lz4", backend="sequential"))
        store = stack.enter_context(SwapStore(first, backing=tmp_path, shrinker_enabled=False))
        for number, engine in enumerate(engines()):
            store.engine = engine
            assert store.engine is engine
            pages = [text(number), noise(number), ZEROS, text(number + 100)]
            store.store(10 * number, pages)
            expected |= {10 * number + place: page for place, page in enumerate(pages)}
            store.engine = first
            engine.close()
        assert len({codec(store, index) for index in expected}) == 1 + len(KINDS) + 2
        everything = b"".join(expected.values())
        assert b"".join(store.load(index) for index in expected) == everything
        assert store.load_many(list(expected)).tobytes() == everything
        assert store.check().ok
        store.writeback(expected)
        assert store.load_many(list(expected)).tobytes() == everything
        assert store.check().ok
        store.check_invariants()
        for index, page in expected.items():
            assert store.load(index, exclusive=True) == page
            with pytest.raises(PageNotStored):
                store.load(index)


def test_equal_engines_share_a_number() -> None:
    with (
        Engine("zstd", level=3, backend="sequential") as first,
        Engine("zstd", level=3, backend="sequential") as second,
        SwapStore(first) as store,
    ):
        store.store(0, text(0))
        store.engine = second
        store.store(1, text(1))
        assert len({codec(store, 0), codec(store, 1)}) == 1


def test_an_engine_of_other_pages_is_refused_and_the_old_one_stays() -> None:
    with (
        Engine("lz4", backend="sequential") as first,
        Engine("lz4", backend="sequential", page_size=512) as other,
        SwapStore(first) as store,
    ):
        with pytest.raises(BadArgument, match="512"):
            store.engine = other
        assert store.engine is first
        store.store(0, text(0))


def test_without_its_engine_a_store_gives_what_it_has_until_it_gets_another() -> None:
    with Engine("zstd", backend="sequential") as first:
        store = SwapStore(first)
        store.store(0, [text(0), noise(1)])
    assert store.load_many([0, 1]).tobytes() == text(0) + noise(1)
    with pytest.raises(ClosedError):
        store.store(2, text(2))
    with Engine("lz4", backend="sequential") as second:
        store.engine = second
        store.store(2, text(2))
        assert store.load_many([0, 1, 2]).tobytes() == text(0) + noise(1) + text(2)
        store.close()


def test_more_codecs_than_numbers_over_time_and_never_one_for_another() -> None:
    with Engine("lz4", backend="sequential") as first, SwapStore(first) as store:
        store.store(0, text(0))
        kept = {0: text(0)}
        for turn, level in enumerate(range(-600, 0)):
            with Engine("zstd", backend="sequential", level=level) as engine:
                store.engine = engine
                if turn % 40 == 0:
                    kept[turn + 1] = text(turn)
                    store.store(turn + 1, text(turn))
        store.engine = first
        assert store._resources.objects.reused > 0
        assert store.load_many(list(kept)).tobytes() == b"".join(kept.values())


def test_more_codecs_at_a_time_than_numbers_are_refused_and_nothing_is_lost() -> None:
    with ExitStack() as stack:
        first = stack.enter_context(Engine("lz4", backend="sequential"))
        store = stack.enter_context(SwapStore(first))
        store.store(0, text(0))
        others = [
            stack.enter_context(Engine("zstd", backend="sequential", level=level))
            for level in range(-255, 0)
        ]
        stored = 255
        for number, engine in enumerate(others[: stored - 1], 1):
            store.engine = engine
            store.store(number, text(number))
        with pytest.raises(BadArgument, match="255 codecs"):
            store.engine = others[-1]
        assert store.load_many(range(stored)).tobytes() == b"".join(map(text, range(stored)))
        assert len(store.load(3)) == SIZE
