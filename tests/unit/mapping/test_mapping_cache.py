"""A CompressedMapping is a cache: limits, time to live, figures, and what it costs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from support.sample_values import IN_CHUNKS_OR_PAGES, row
from support.store_pages import noise, text

from batchzip import (
    BadArgument,
    ClosedError,
    CompressedMapping,
    Engine,
    StoreRejected,
    SwapStore,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MIB = 1 << 20


# Eviction


@pytest.mark.slow
@IN_CHUNKS_OR_PAGES
@pytest.mark.parametrize("is_told", [False, True], ids=["unseen", "on_evict"])
def test_values_of_thousands_of_pages_are_evicted(engine: Engine, is_told: bool) -> None:
    """The coldest entries are those of slices or pages. Looking for a value among them never
    ended."""
    evicted: list[Any] = []
    with (
        SwapStore(engine) as store,
        CompressedMapping(
            store,
            max_bytes=13 * MIB,
            on_full="evict",
            on_evict=(lambda key, _: evicted.append(key)) if is_told else None,
        ) as mapping,
    ):
        for number in range(5):
            mapping[number] = noise(number, 5 * MIB)
        assert list(mapping) == [3, 4]
        assert evicted == ([0, 1, 2] if is_told else [])
        for _ in range(2):  # the pages of the first time begin an epoch, which the second one has
            assert mapping[3] == noise(3, 5 * MIB)
        mapping["short"] = b"short"
        mapping.max_bytes = 6 * MIB
        assert list(mapping) == [3, "short"]
        mapping.check_invariants()


@IN_CHUNKS_OR_PAGES
def test_the_pages_of_large_values_are_written_back_again_and_again(
    engine: Engine, tmp_path: Path
) -> None:
    with (
        SwapStore(engine, backing=tmp_path, shrinker_enabled=False) as store,
        CompressedMapping(store) as mapping,
    ):
        values = {number: noise(number, 70_000) for number in range(40)}
        mapping.update(values)
        moved = [mapping.group.writeback(100) for _ in range(9)]
        assert sum(moved) >= 40 * 17
        assert mapping.group.writeback(100) == 0
        assert dict(mapping) == values


# Without a store


def test_a_mapping_of_its_own_store_is_closed_with_it() -> None:
    with CompressedMapping() as mapping:
        mapping["key"] = b"value"
        mapping["large"] = text(1, 50_000)
        with mapping.copy() as copy, mapping | {"more": b"more"} as more:
            mapping.clear()
            assert dict(copy) == {"key": b"value", "large": text(1, 50_000)}
            assert len(more) == 3
    calls: list[Callable[[], object]] = [
        lambda: mapping["key"],
        lambda: mapping.set("key", b""),
        lambda: list(mapping),
    ]
    for call in calls:
        with pytest.raises(ClosedError):
            call()


def test_a_mapping_that_is_lost_takes_its_own_store_along() -> None:
    mapping = CompressedMapping()
    mapping["key"] = text(1, 100_000)
    del mapping  # the check for leaks sees the rest


def test_fromkeys_makes_a_mapping() -> None:
    with CompressedMapping.fromkeys(["a", 1, (2,)], b"value", max_bytes=MIB) as mapping:
        assert dict(mapping) == dict.fromkeys(["a", 1, (2,)], b"value")
        assert mapping.max_bytes == MIB


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"on_full": "panic"}, "on_full must be 'raise', 'spill' or 'evict'"),
        ({"on_full": "spill"}, "needs a store with a backing file"),
        ({"ttl": 0}, "ttl"),
        ({"ttl": "soon"}, "ttl"),
        ({"ttl": float("nan")}, "ttl"),
        ({"on_evict": 5}, "on_evict must be a function"),
        ({"key_serializer": 5}, "key_serializer must be an object"),
        ({"dictionary": 5}, "dictionary must be 'auto'"),
        ({"dictionary": b"no dictionary"}, "dictionary"),
        ({"max_bytes": -1}, "max_bytes"),
    ],
)
def test_odd_options_are_refused_and_leave_no_group(
    zstd: SwapStore, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(BadArgument, match=match):
        CompressedMapping(zstd, **options)
    assert not zstd.groups


def test_a_dictionary_needs_zstd(store: SwapStore) -> None:
    with pytest.raises(BadArgument, match=r"lz4 has no dictionaries.*Engine\('zstd'"):
        CompressedMapping(store, dictionary="auto")
    assert not store.groups


# Full


def test_a_full_mapping_says_what_to_do(zstd: SwapStore) -> None:
    with CompressedMapping(zstd, max_bytes=64 << 10) as mapping:
        with pytest.raises(StoreRejected) as rejection:
            mapping.update((number, noise(number, 1000)) for number in range(1000))
        assert rejection.value.reason == "pool_limit_hit"
        for word in ("65536 bytes", "below 90 %", "on_full='evict'"):
            assert word in str(rejection.value)
        assert 60 < len(mapping) <= 65
        assert list(mapping) == list(range(len(mapping)))
        for key in list(mapping)[10:]:
            del mapping[key]
        mapping["again"] = b"value"


def test_a_cache_evicts_the_least_recently_used_values(zstd: SwapStore) -> None:
    with CompressedMapping(zstd, max_bytes=256 << 10, on_full="evict") as mapping:
        for number in range(2000):
            mapping[number] = noise(number, 1000)
            if number >= 7:
                assert mapping.get(7) is not None  # it is used all the time
        stats = mapping.stats()
        assert stats.pool_bytes <= 256 << 10
        assert stats.evictions == 2000 - len(mapping)
        assert 240 < len(mapping) <= 262
        newest = list(range(2000 - 200, 2000))
        assert [key for key in newest if key not in mapping] == []
        mapping.check_invariants()


@pytest.mark.slow
@pytest.mark.parametrize("length", [900, 20_000, 70_000])
def test_on_evict_gets_every_evicted_value(zstd: SwapStore, length: int) -> None:
    gone: dict[Any, bytes] = {}

    def note(key: Any, value: bytes) -> None:
        gone[key] = value
        mapping["count"] = b"%d" % len(gone)  # it may use the mapping

    with CompressedMapping(zstd, max_bytes=200_000, on_full="evict", on_evict=note) as mapping:
        values = {("key", 0.5, number): noise(number, length) for number in range(400)}
        for key, value in values.items():
            mapping[key] = value
        gone.pop("count", None)
        kept = {key: value for key, value in mapping.items() if key != "count"}
        assert kept | gone == values
        assert not kept.keys() & gone.keys()
        assert len(gone) > 150
        assert mapping.stats().evictions >= len(gone)


def test_an_error_of_on_evict_reaches_the_caller_who_put_the_value(zstd: SwapStore) -> None:
    def fail(*item: object) -> None:
        raise ZeroDivisionError(item)

    with CompressedMapping(zstd, max_bytes=20_000, on_full="evict", on_evict=fail) as mapping:
        with pytest.raises(ZeroDivisionError):
            mapping.update((number, noise(number, 1000)) for number in range(100))
        mapping.check_invariants()


@pytest.mark.slow
def test_a_cache_forgets_its_own_where_the_store_is_full() -> None:
    with (
        Engine("lz4", backend="sequential") as engine,
        SwapStore(engine, max_pool_bytes=MIB) as store,
    ):
        store.store(0, [noise(number) for number in range(64)])
        with CompressedMapping(store, on_full="evict") as mapping:
            for number in range(3000):
                mapping[number] = noise(number, 1000)
                mapping["longer", number % 50] = noise(number, 9000)
                if number % 20 == 0:
                    mapping["on pages", number % 60] = noise(number, 70_000)
            assert store.load(5) == noise(5)
            assert 100 < len(mapping) < 900
            with pytest.raises(StoreRejected):
                mapping["huge"] = noise(1, 2 * MIB)
            mapping["small"] = b"value"
            mapping.check_invariants()
        store.check_invariants()


@pytest.mark.slow
@pytest.mark.parametrize("length", [700, 9000, 70_000])
def test_cold_values_go_to_the_file(tmp_path: Path, length: int) -> None:
    with (
        Engine("zstd", level=1, backend="sequential") as engine,
        SwapStore(engine, backing=tmp_path) as store,
        CompressedMapping(store, max_bytes=200_000) as mapping,
    ):
        values = {f"key {number}": noise(number, length) for number in range(600)}
        mapping.update(values)
        stats = mapping.stats()
        assert stats.pool_bytes <= 200_000
        assert stats.file_bytes > 150_000
        assert dict(mapping.items()) == values
        assert store.check().ok
        for key in list(values)[::2]:
            assert mapping.pop(key) == values.pop(key)
        mapping.check_invariants()
        store.check_invariants()
        store.compact()
        assert mapping.get_many(values) == values


def test_values_go_back_to_the_limit_when_it_is_lowered(zstd: SwapStore) -> None:
    with CompressedMapping(zstd, max_bytes=MIB, on_full="evict") as mapping:
        mapping.update({number: noise(number, 1000) for number in range(500)})
        mapping.max_bytes = 100_000
        assert mapping.stats().pool_bytes <= 100_000
        assert mapping.max_bytes == 100_000


# Time


def test_values_have_their_time(zstd: SwapStore, later: Callable[[float], None]) -> None:
    with CompressedMapping(zstd, ttl=10) as mapping:
        mapping["ten"] = b"value"
        mapping.set("five", b"value", ttl=5)
        mapping.set("large", text(1, 50_000), ttl=5)
        mapping.set_many({"a": b"1", "b": b"2"}, ttl=20)
        later(6)
        assert list(mapping) == ["ten", "a", "b"]
        assert mapping.get("five") is None
        assert mapping.setdefault("five", b"new") == b"new"
        later(6)
        assert dict(mapping) == {"a": b"1", "b": b"2", "five": b"new"}
        assert mapping.expire() >= 1
        assert len(mapping.group) == 3
        assert mapping.stats().expirations == 3
        with pytest.raises(KeyError):
            del mapping["ten"]


def test_a_time_to_live_may_be_as_long_as_one_likes(zstd: SwapStore) -> None:
    with CompressedMapping(zstd, ttl=1e300) as mapping:
        mapping["key"] = b"value"
        mapping.set("other", b"value", ttl=10**18)
        assert len(mapping.get_many(["key", "other"])) == 2


def test_another_engine_of_the_store_reads_what_is_there(zstd: SwapStore) -> None:
    with CompressedMapping(zstd) as mapping, Engine("lz4", backend="sequential") as other:
        mapping["old"] = text(1)
        zstd.engine = other
        mapping["new"] = text(2)
        assert (mapping["old"], mapping["new"]) == (text(1), text(2))
        assert mapping.get_many(["old", "new"]) == {"old": text(1), "new": text(2)}


@pytest.mark.slow
def test_an_isolated_engine_keeps_its_codec_out_of_the_process() -> None:
    with (
        Engine("zstd", backend="workers", workers=1, isolate=True) as engine,
        SwapStore(engine) as store,
        CompressedMapping(store) as mapping,
    ):
        mapping["key"] = text(1, 300)
        assert mapping["key"] == text(1, 300)
        assert engine.statistics.compress.pages == 1


# What it costs


@pytest.mark.slow
def test_memory_usage_is_beside_a_dict(zstd: SwapStore) -> None:
    with CompressedMapping(zstd) as mapping:
        assert mapping.cratio == 1.0
        mapping.update((f"user:{number}", row(number) * 4) for number in range(20_000))
        usage = mapping.memory_usage()
        assert usage.total == usage.values + usage.tables + usage.index + usage.dictionaries
        assert mapping.cratio == usage.in_dict / usage.total > 2
        beside = (usage.total - mapping.cbytes) / len(mapping) - len("user:12345")
        assert beside <= 96


def test_hits_and_misses_are_counted(zstd: SwapStore) -> None:
    with CompressedMapping(zstd) as mapping:
        assert mapping.stats().hit_ratio == 0.0
        mapping["key"] = b"value"
        mapping["long"] = noise(1, 9000)
        mapping["large"] = text(1, 90_000)
        mapping.get_many(["key", "long", "large", "absent"])
        mapping.get("key")
        mapping.get("absent")
        assert "key" in mapping
        stats = mapping.stats()
        assert (stats.hits, stats.misses, stats.values) == (4, 2, 3)
        assert stats.hit_ratio == 4 / 6
        assert stats.nbytes == 99_005


# asyncio


def test_every_call_has_a_form_that_leaves_the_loop_free(tmp_path: Path) -> None:
    async def work(mapping: CompressedMapping) -> None:
        await mapping.aset("a", text(1, 300))
        await mapping.aset("large", text(2, 50_000), ttl=100)
        assert await mapping.aget("a") == text(1, 300)
        assert await mapping.aget("large") == text(2, 50_000)
        assert await mapping.aget("absent", 5) == 5
        assert await mapping.asetdefault("b", b"b") == b"b"
        await mapping.aset_many({"c": b"c", "d": b"d"})
        await mapping.aupdate({"e": b"e"}, f=b"f")
        mapping.group.writeback(1000)
        assert await mapping.aget("c") == b"c"
        assert await mapping.aget_many(["c", "d", "x"]) == {"c": b"c", "d": b"d"}
        assert await mapping.adelete_many(["c", "d", "x"]) == 2
        await mapping.adelete("e")
        with pytest.raises(KeyError):
            await mapping.adelete("e")
        assert await mapping.apop("f") == b"f"
        assert await mapping.apop("f", None) is None
        with pytest.raises(KeyError):
            await mapping.apop("f")

    with (
        Engine("zstd", level=1, backend="sequential") as engine,
        SwapStore(engine, backing=tmp_path) as store,
        CompressedMapping(store) as mapping,
    ):
        asyncio.run(work(mapping))
        assert list(mapping) == ["a", "large", "b"]
