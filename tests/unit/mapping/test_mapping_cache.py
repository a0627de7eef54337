"""A CompressedMapping is a cache: limits, time to live, batches, dictionaries, and what it costs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from support.store_pages import noise, text

import batchzip
from batchzip import (
    BadArgument,
    ClosedError,
    CompressedMapping,
    Engine,
    NotStorable,
    StoreRejected,
    SwapStore,
    cached,
)
from batchzip.core.records import shift_clock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MIB = 1 << 20


@pytest.fixture
def zstd() -> Iterator[SwapStore]:
    with Engine("zstd", level=1, backend="sequential") as engine, SwapStore(engine) as store:
        yield store
        store.check_invariants()


def row(number: int) -> bytes:
    return json.dumps(
        {"id": number, "name": f"user {number * 7919}", "mail": f"{number * 31}@example.org"}
    ).encode()


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


def test_it_is_made_from_keys() -> None:
    with CompressedMapping.fromkeys(["a", 1, (2,)], b"value", max_bytes=MIB) as mapping:
        assert dict(mapping) == dict.fromkeys(["a", 1, (2,)], b"value")
        assert mapping.max_bytes == MIB


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"on_full": "panic"}, "on_full is 'raise', 'spill' or 'evict'"),
        ({"on_full": "spill"}, "needs a store with a backing file"),
        ({"ttl": 0}, "ttl"),
        ({"ttl": "soon"}, "ttl"),
        ({"ttl": float("nan")}, "ttl"),
        ({"on_evict": 5}, "on_evict is a function"),
        ({"key_serializer": 5}, "key_serializer is an object"),
        ({"dictionary": 5}, "dictionary is 'auto'"),
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


# Keys


class Text:
    """A serializer of keys."""

    def dumps(self, key: object, /) -> bytes:
        return repr(key).encode()

    def loads(self, data: bytes, /) -> object:
        return eval(data)


def test_other_keys_go_through_their_serializer(zstd: SwapStore) -> None:
    with CompressedMapping(zstd, key_serializer=Text()) as mapping:
        mapping[1.5] = b"float"  # type: ignore[index] # the serializer knows it
        mapping["1.5"] = b"str"
        mapping[1.0] = b"int"  # type: ignore[index]
        assert (mapping[1.5], mapping[1], 2.5 in mapping) == (b"float", b"int", False)  # type: ignore[index]
        assert list(mapping) == [1.5, "1.5", 1]
        assert mapping.pop(1.5) == b"float"  # type: ignore[arg-type]
    with CompressedMapping(zstd) as mapping, pytest.raises(NotStorable, match="key_serializer="):
        mapping[1.5] = b"value"  # type: ignore[index]


def test_objects_of_keys_go_with_their_values(zstd: SwapStore) -> None:
    class Id:
        pass

    with CompressedMapping(zstd) as mapping:
        keys = [(Id(), number) for number in range(500)]
        for key in keys:
            mapping[key] = b"value"
        assert list(mapping) == keys
        for key in keys[:-1]:
            del mapping[key]
        assert len(mapping._keys._objects) == 1
        mapping.clear()
        assert not mapping._keys.has_objects


def test_objects_of_keys_whose_time_is_over_do_not_pile_up(zstd: SwapStore) -> None:
    with CompressedMapping(zstd, ttl=1) as mapping:
        for turn in range(20):
            for number in range(50):
                mapping[(1.5, turn, number),] = b"value"
            shift_clock(2)
        shift_clock(-40)
        assert len(mapping._keys._objects) < 500


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


def test_a_cache_forgets_what_was_not_used_for_longest(zstd: SwapStore) -> None:
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


@pytest.mark.parametrize("length", [900, 20_000, 70_000])
def test_what_is_forgotten_is_told(zstd: SwapStore, length: int) -> None:
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


def test_what_a_callback_raises_goes_to_who_put_the_value_in(zstd: SwapStore) -> None:
    def fail(*item: object) -> None:
        raise ZeroDivisionError(item)

    with CompressedMapping(zstd, max_bytes=20_000, on_full="evict", on_evict=fail) as mapping:
        with pytest.raises(ZeroDivisionError):
            mapping.update((number, noise(number, 1000)) for number in range(100))
        mapping.check_invariants()


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


@pytest.fixture
def later() -> Iterator[Callable[[float], None]]:
    moved: list[float] = []

    def move(seconds: float) -> None:
        moved.append(seconds)
        shift_clock(seconds)

    yield move
    shift_clock(-sum(moved))


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


# Several at once


def test_batches_do_what_single_calls_do(zstd: SwapStore) -> None:
    values: dict[Any, bytes] = {number: row(number) for number in range(300)}
    values |= {("tuple", number): text(number, 5000) for number in range(20)}
    values |= {(0.5, number): noise(number, number) for number in range(20)}
    with CompressedMapping(zstd) as mapping:
        mapping.set_many(values)
        assert list(mapping.items()) == list(values.items())
        assert mapping.get_many([*values, "absent"]) == values
        assert mapping.delete_many([*range(100), "absent"]) == 100
        mapping.update([("x", b"1"), ("y", b"2")], z=b"3")
        assert mapping.get_many("xyz") == {"x": b"1", "y": b"2", "z": b"3"}
        with pytest.raises(NotStorable):
            mapping.update({"good": b"good", "bad": 5, "after": b"after"})
        assert "after" not in mapping
        mapping.check_invariants()


def test_a_batch_that_is_rejected_keeps_what_came_before(zstd: SwapStore) -> None:
    with CompressedMapping(zstd, max_bytes=100_000) as mapping:
        with pytest.raises(StoreRejected):
            mapping.set_many((number, noise(number, 1000)) for number in range(1000))
        kept = list(mapping)
        assert kept == list(range(len(kept)))
        assert 90 < len(kept) <= 100


def test_what_came_before_an_error_is_in(zstd: SwapStore) -> None:
    def items() -> Iterator[tuple[int, bytes]]:
        yield from ((number, row(number)) for number in range(100))
        raise ZeroDivisionError

    with CompressedMapping(zstd) as mapping:
        with pytest.raises(ZeroDivisionError):
            mapping.update(items())
        assert list(mapping.items()) == [(number, row(number)) for number in range(100)]


@pytest.mark.parametrize("learnt", [False, True])
def test_lanes_use_the_codec_of_the_mapping(learnt: bool) -> None:
    values = {number: row(number) * 3 for number in range(2000)}
    dictionary = batchzip.train_dictionary(list(values.values()), size=2048) if learnt else None
    with (
        Engine("zstd", level=1, backend="threads", workers=2) as engine,
        SwapStore(engine) as store,
        CompressedMapping(store, dictionary=dictionary) as mapping,
        CompressedMapping(store, dictionary=dictionary) as alone,
    ):
        assert engine.wait_ready()
        mapping._records.divider.generous = True  # whether it pays or not
        mapping.set_many(values)
        for key, value in values.items():
            alone[key] = value
        assert mapping.get_many(values) == values
        assert {key: mapping[key] for key in values} == values
        assert mapping.cbytes == alone.cbytes
        if dictionary is None:  # coders with one are the mapping's own, and so are their figures
            assert engine.statistics.compress.divided > 5
            assert engine.statistics.compress.pages == 2 * len(values)
        mapping.check_invariants()


def test_lanes_help_where_that_pays() -> None:
    values = {number: noise(number, 2000).hex().encode() for number in range(2000)}
    with (
        Engine("zstd", level=3, backend="threads", workers=2) as engine,
        SwapStore(engine) as store,
        CompressedMapping(store) as mapping,
    ):
        assert engine.wait_ready()
        for _ in range(5):
            mapping.set_many(values)
            mapping.get_many(values)
        assert engine.statistics.compress.divided > 5
        assert engine.statistics.decompress.divided > 5
        few = engine.statistics.compress.batches
        for number in range(100):
            mapping.set_many({number: values[number]})
            mapping.get_many([number])
        assert engine.statistics.compress.batches == few


def test_batches_in_lanes_meet_whole_values() -> None:
    wrong: list[object] = []
    made = {number: text(number, 300 + number % 700) for number in range(500)}

    def work(seed: int) -> None:
        try:
            for turn in range(8):
                keys = [(turn * 31 + seed * 7 + number) % 500 for number in range(300)]
                mapping.set_many((key, made[key]) for key in keys)
                found = mapping.get_many(keys)
                wrong.extend(key for key, value in found.items() if value != made[key])
                mapping.delete_many(keys[:50])
        except BaseException as error:  # noqa: BLE001 - told by the test
            wrong.append(error)

    with (
        Engine("zstd", level=1, backend="threads", workers=2) as engine,
        SwapStore(engine) as store,
        CompressedMapping(store, max_bytes=60_000, on_full="evict") as mapping,
    ):
        assert engine.wait_ready()
        mapping._records.divider.generous = True
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert engine.statistics.compress.divided > 0
        mapping.check_invariants()
        store.check_invariants()


def test_interrupted_batches_leave_values_whole() -> None:
    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stop

    def shoot() -> None:
        for _ in range(40):
            ready.wait()
            ready.clear()
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    made = {number: text(number, 300 + number % 700) for number in range(1000)}
    ready = threading.Event()
    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with (
            Engine("zstd", level=1, backend="threads", workers=2) as engine,
            SwapStore(engine) as store,
            CompressedMapping(store) as mapping,
            ThreadPoolExecutor(1) as pool,
        ):
            assert engine.wait_ready()
            mapping._records.divider.generous = True
            shooting = pool.submit(shoot)
            for _ in range(40):
                with contextlib.suppress(Stop):
                    ready.set()
                    while True:
                        mapping.set_many(made)
                        assert mapping.get_many(made) == made
            shooting.result()
            mapping.check_invariants()
            mapping.set_many(made)
            assert dict(mapping) == made
            assert all(ring.is_unused for ring in engine.backend.rings)
            store.check_invariants()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_batch_goes_on_where_its_engine_or_mapping_is_closed() -> None:
    made = {number: text(number, 1500) for number in range(3000)}
    with (
        Engine("zstd", level=1, backend="threads", workers=2) as engine,
        SwapStore(engine) as store,
        CompressedMapping(store) as mapping,
        ThreadPoolExecutor(1) as pool,
    ):
        assert engine.wait_ready()
        mapping._records.divider.generous = True

        def items() -> Iterator[tuple[int, bytes]]:
            for key, value in made.items():
                if key == 1500:
                    engine.close()
                yield key, value

        mapping.set_many(items())
        assert mapping.get_many(made) == made
        closing = pool.submit(mapping.close)
        with contextlib.suppress(ClosedError):
            while True:
                mapping.set_many(made)
        closing.result()
        store.check_invariants()


def test_threads_that_put_get_and_forget_meet_whole_values(zstd: SwapStore) -> None:
    wrong: list[object] = []

    def work(seed: int) -> None:
        try:
            for turn in range(300):
                key = (turn * 7 + seed) % 97
                mapping[key] = text(key, 300 + key)
                found = mapping.get_many([key, (key + 1) % 97, (key + 2) % 97])
                wrong.extend(
                    each for each, value in found.items() if value != text(each, 300 + each)
                )
                mapping.pop((key + 3) % 97, None)
        except BaseException as error:  # noqa: BLE001 - told by the test
            wrong.append(error)

    with CompressedMapping(zstd, max_bytes=8000, on_full="evict") as mapping:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        mapping.check_invariants()


# Dictionaries


def test_a_dictionary_is_learnt_and_pays(zstd: SwapStore) -> None:
    rows = {f"user:{number}": row(number) for number in range(6000)}
    with (
        CompressedMapping(zstd) as plain,
        CompressedMapping(zstd, dictionary="auto") as learnt,
    ):
        plain.update(rows)
        learnt.update(rows)
        assert dict(learnt) == rows
        assert learnt.cbytes * 1.7 < plain.cbytes  # the first thousand are as they were
        assert learnt.memory_usage().dictionaries > 0
        learnt.check_invariants()


def test_a_dictionary_is_learnt_from_values_above_a_page(zstd: SwapStore) -> None:
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefgh", k=7)).encode() for _ in range(1500)]
    values = {number: b" ".join(rng.choices(words, k=1200)) for number in range(300)}
    with (
        CompressedMapping(zstd) as plain,
        CompressedMapping(zstd, dictionary="auto") as learnt,
    ):
        for mapping in (plain, learnt):
            mapping.update(values)  # a third of them teaches
            mapping.update(values)
            assert dict(mapping) == values
            mapping.check_invariants()
        assert learnt.cbytes < 0.9 * plain.cbytes


def test_a_dictionary_is_learnt_again_when_values_change(zstd: SwapStore) -> None:
    with CompressedMapping(zstd, dictionary="auto") as mapping:
        mapping.update((number, row(number)) for number in range(12_000))
        first = mapping._trainer
        assert first is not None
        before = first.dictionary_bytes
        others = {
            -number: b"<entry><key>%d</key><language>de</language><kind>article</kind></entry>"
            % number
            for number in range(1, 40_000)
        }
        mapping.update(others)
        assert first.dictionary_bytes > before
        assert mapping[77] == row(77)
        assert mapping.get_many(others) == others


@pytest.mark.parametrize("make", [noise, lambda _, size: bytes(size)])
def test_what_teaches_nothing_is_kept_without_a_dictionary(
    zstd: SwapStore, make: Callable[[int, int], bytes]
) -> None:
    with CompressedMapping(zstd, dictionary="auto") as mapping:
        values = {number: make(number, 300) for number in range(3000)}
        mapping.update(values)
        assert mapping.memory_usage().dictionaries == 0
        assert dict(mapping) == values


def test_a_given_dictionary_is_used(zstd: SwapStore) -> None:
    trained = batchzip.train_dictionary([row(number) for number in range(2000)], size=2048, level=1)
    with CompressedMapping(zstd, dictionary=trained) as mapping:
        mapping["key"] = row(1)
        assert mapping.cbytes < len(row(1)) // 2
        assert mapping["key"] == row(1)


@pytest.mark.parametrize("dictionary", ["auto", "given"])
def test_a_dictionary_goes_with_the_engine_of_the_store(zstd: SwapStore, dictionary: str) -> None:
    given: Any = dictionary
    if dictionary == "given":
        rows = [row(number) for number in range(2000)]
        given = batchzip.train_dictionary(rows, size=2048, level=1)
    with (
        CompressedMapping(zstd, dictionary=given) as mapping,
        Engine("lz4", backend="sequential") as other,
        Engine("zstd", level=3, backend="sequential") as third,
    ):
        mapping.update((number, row(number)) for number in range(2000))
        for engine in (other, third):
            zstd.engine = engine
            mapping.update((-number, row(number)) for number in range(2000))
            codec: Any = zstd._resources.objects.codec(mapping._records.number)
            assert (getattr(codec, "dictionary", None) is not None) == (engine is third)
        assert mapping.get_many(range(2000)) == {number: row(number) for number in range(2000)}


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


# cached


def test_a_function_is_called_once_for_each_key(zstd: SwapStore) -> None:
    calls: list[object] = []
    with CompressedMapping(zstd, serializer="pickle") as mapping:

        @cached(mapping)
        def square(x: int, *, offset: int = 0) -> int | None:
            """Square it."""
            calls.append((x, offset))
            return x * x + offset if x else None

        assert [square(3), square(3), square(3, offset=1), square(0), square(0)] == [
            9,
            9,
            10,
            None,
            None,
        ]
        assert calls == [(3, 0), (3, 1), (0, 0)]
        assert square.__doc__ == "Square it."
        assert square.cache is mapping  # type: ignore[attr-defined]
        del mapping[square.cache_key(3)]  # type: ignore[attr-defined]
        square(3)
        assert calls[-1] == (3, 0)


def test_a_key_of_ones_own_and_a_time_are_used(
    zstd: SwapStore, later: Callable[[float], None]
) -> None:
    calls: list[str] = []
    with CompressedMapping(zstd) as mapping:

        @cached(mapping, key=str.lower, ttl=5)
        def page(url: str) -> bytes:
            calls.append(url)
            return url.encode()

        assert page("A") == page("a") == b"A"
        later(6)
        assert page("a") == b"a"
        assert calls == ["A", "a"]
        assert list(mapping) == ["a"]


def test_what_a_function_raises_is_not_kept(zstd: SwapStore) -> None:
    with CompressedMapping(zstd) as mapping:

        @cached(mapping)
        def fail() -> bytes:
            raise KeyError("it failed")

        for _ in range(2):
            with pytest.raises(KeyError, match="it failed"):
                fail()
        assert len(mapping) == 0


def test_coroutines_wait_for_the_first_of_their_key(zstd: SwapStore) -> None:
    calls: list[int] = []
    with CompressedMapping(zstd, serializer="pickle") as mapping:

        @cached(mapping)
        async def slow(number: int) -> int:
            calls.append(number)
            await asyncio.sleep(0)
            if not number and calls.count(0) == 1:
                raise ZeroDivisionError
            return number

        async def work() -> list[Any]:
            return await asyncio.gather(
                *(slow(number % 2) for number in range(20)), return_exceptions=True
            )

        found = asyncio.run(work())
        assert sum(isinstance(each, ZeroDivisionError) for each in found) == 1
        assert len(calls) == 3
        assert all(each == number % 2 for number, each in enumerate(found) if isinstance(each, int))


@pytest.mark.parametrize("options", [{"key": 5}, {"mapping": {}}])
def test_odd_arguments_of_cached_are_refused(zstd: SwapStore, options: dict[str, Any]) -> None:
    with CompressedMapping(zstd) as mapping, pytest.raises(BadArgument):
        cached(options.pop("mapping", mapping), **options)


def test_values_of_a_store_that_is_closed_are_not_there(zstd: SwapStore) -> None:
    mapping = CompressedMapping(zstd)
    mapping["key"] = b"value"
    zstd.drop_group(mapping.group.name)
    for call in (lambda: mapping["key"], lambda: mapping.update(a=b"a"), lambda: "key" in mapping):
        with pytest.raises(ClosedError):
            call()
    with contextlib.suppress(ClosedError):
        mapping.close()
