"""Values in chunks: every length and number of parts, lanes, limits, damage and lost memory."""

from __future__ import annotations

import errno
import mmap
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.entries import in_pool, records_in
from support.sample_values import mixed
from support.store_pages import noise, text

from batchzip import BadArgument, CompressedMapping, Engine, PageError, StoreRejected, SwapStore
from batchzip.core.chunks import MOST_CHUNKED, Chunked
from batchzip.core.memory import allocations, fail_allocation
from batchzip.core.records import MISSING, Found, Records
from batchzip.core.table import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchzip.core.ring import Ring

PAGE = 4096
MOST = 64 << 10
CHUNK = 128 << 10


@pytest.fixture
def records(store: SwapStore) -> Records:
    return records_in(store)


def put(records: Records, key: str, parts: Sequence[bytes], rings: tuple[Ring, ...] = ()) -> int:
    return records.put_chunked(key, records.compress([*parts], rings=rings))


def get(records: Records, key: str, rings: tuple[Ring, ...] = ()) -> list[bytes]:
    """Return the parts of a value."""
    found = records.get(key)
    assert isinstance(found, Found)
    assert not found.indices
    parts = records.finish(found, rings=rings)
    return [parts] if isinstance(parts, bytes) else [bytes(part) for part in parts or ()]


# Round trips

LENGTHS = [0, 1, 17, PAGE, MOST - 1, MOST + 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5]


@pytest.mark.slow
@pytest.mark.parametrize("page_size", [512, PAGE, 2 * CHUNK])
@pytest.mark.parametrize("algorithm", ["lz4", "lz4hc", "zstd"])
def test_values_of_several_parts_come_back(algorithm: str, page_size: int) -> None:
    rng = random.Random(1)
    with (
        Engine(algorithm, backend="sequential", page_size=page_size, verify=True) as engine,
        SwapStore(engine) as store,
    ):
        records = records_in(store)
        for turn in range(20):
            made = [rng.choice((text, noise, mixed)) for _ in range(rng.randrange(1, 9))]
            parts = [make(turn, rng.choice(LENGTHS)) for make in made]
            parts.append(noise(turn, 2 * CHUNK + 1 + turn))
            assert put(records, "key", parts) == 0
            assert get(records, "key") == parts
            assert records.figures()["raw_bytes"] == sum(map(len, parts))
            assert records.fault() is None
        store.check_invariants()


def test_a_value_of_one_part_is_bytes_and_others_are_writable(records: Records) -> None:
    put(records, "one", [text(1, 100_000)])
    put(records, "two", [text(1, 100_000), b""])
    one, two = records.get("one"), records.get("two")
    assert isinstance(one, Found)
    assert isinstance(two, Found)
    assert records.finish(one) == text(1, 100_000)
    parts = records.finish(two)
    assert isinstance(parts, list)
    assert [part.readonly for part in parts] == [False, False]
    assert bytes(parts[0]) == text(1, 100_000)


def test_chunks_take_less_than_pages(store: SwapStore, records: Records) -> None:
    files = sorted(Path(__file__).parent.glob("**/test_*.py"))
    source = b"".join(file.read_bytes() for file in files)
    source = source[: len(source) // PAGE * PAGE]
    assert len(source) > MOST
    put(records, "source", [source])
    in_chunks = records.entries.figures()["pool_bytes"]
    store.store(0, np.frombuffer(source, np.uint8).reshape(-1, PAGE))
    assert in_chunks < 0.85 * (store.compressed_bytes - in_chunks)


def test_a_form_of_up_to_a_page_is_one_object(store: SwapStore, records: Records) -> None:
    put(records, "zeros", [bytes(CHUNK + 1)])
    figures = records.entries.figures()
    assert (figures["records"], figures["sliced"], figures["slices"]) == (1, 0, 0)
    assert figures["pool_bytes"] < 700
    assert get(records, "zeros") == [bytes(CHUNK + 1)]
    assert store.check().ok


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["lz4", "zstd"])
def test_lanes_do_chunks(algorithm: str) -> None:
    with (
        Engine(algorithm, backend="threads", workers=3) as engine,
        SwapStore(engine) as store,
    ):
        records, rings = records_in(store), engine.backend.rings
        assert engine.wait_ready()
        records.chunk_divider.generous = True  # whether it pays or not
        for length in (CHUNK + 1, 40 * CHUNK + 7):
            parts = [mixed(length, length), b"", noise(2, 3 * CHUNK)]
            assert put(records, "key", parts, rings) == 0
            assert get(records, "key", rings) == get(records, "key") == parts
        found = engine.statistics
        assert found.compress.divided >= 2
        assert found.decompress.divided >= 2
        assert records.fault() is None
        for ring in rings:
            assert ring.is_unused


@pytest.mark.slow
def test_a_mapping_uses_the_lanes_for_a_large_value() -> None:
    value = mixed(1, 8 << 20)
    with (
        Engine("zstd", backend="threads", workers=2) as engine,
        SwapStore(engine) as store,
        CompressedMapping(store) as mapping,
    ):
        assert engine.wait_ready()
        mapping._records.chunk_divider.generous = True
        mapping["key"] = value
        assert mapping["key"] == mapping.get_many(["key"])["key"] == value
        assert engine.statistics.compress.divided >= 1
        assert engine.statistics.decompress.divided >= 2


@pytest.mark.slow
def test_worker_processes_get_the_pages_of_large_values() -> None:
    with (
        Engine("zstd", backend="workers", workers=1) as engine,
        SwapStore(engine) as store,
        CompressedMapping(store) as mapping,
    ):
        mapping["key"] = mixed(1, 100_000)
        assert mapping.group._entries.figures()["large"] == 1
        assert mapping["key"] == mixed(1, 100_000)


# Codecs and limits


def test_a_codec_that_changes_between_two_steps_is_still_known(store: SwapStore) -> None:
    records = records_in(store)
    value = [mixed(1, 200_000)]
    made = records.compress([*value])
    old = store.engine
    with Engine("zstd", backend="sequential") as other:
        store.engine = other
        records.use_codec(store._resources.writer.number, other.backend.coders)
        assert records.put_chunked("old", made) == 0
        put(records, "new", value)
        assert get(records, "old") == get(records, "new") == value
        store.engine = old


def test_a_limit_rejects_a_value_and_keeps_the_old_one(records: Records) -> None:
    old, new = [noise(1, 100_000)], [noise(2, 300_000)]
    put(records, "key", old)
    made = records.compress([*new])
    assert records.put_chunked("key", made, limit=250_000) == -errno.EDQUOT
    assert get(records, "key") == old
    assert records.put_chunked("key", made, if_absent=True) == -errno.EEXIST
    assert records.put_chunked("key", made, limit=301_000) == 0
    assert get(records, "key") == new
    assert records.fault() is None


def test_a_full_pool_keeps_the_old_value(engine: Engine) -> None:
    with SwapStore(engine, max_pool_bytes=1 << 20) as store:
        records = records_in(store)
        put(records, "key", [noise(1, 300_000)])
        assert put(records, "key", [noise(2, 2 << 20)]) == -errno.ENOSPC
        assert get(records, "key") == [noise(1, 300_000)]
        assert records.fault() is None
        store.check_invariants()


def test_a_value_above_the_bound_is_refused(records: Records) -> None:
    # Only address space: no byte of it is read.
    with (
        mmap.mmap(-1, MOST_CHUNKED + 1, prot=mmap.PROT_READ) as space,
        pytest.raises(BadArgument, match="4026531841 bytes in 1 parts is too large"),
    ):
        records.compress([memoryview(space)])


def test_objects_that_no_call_returned_are_refused(records: Records) -> None:
    with pytest.raises(BadArgument, match="was not compressed"):
        records.put_chunked("key", Chunked())
    with pytest.raises(BadArgument, match="needs its gathered objects"):
        records.finish(Found())
    records.put("key", b"short")
    found = records.get("key", peek=True)
    assert isinstance(found, Found)
    with pytest.raises(BadArgument, match="needs its gathered objects"):
        records.finish(found)


def test_a_value_that_one_call_takes_is_refused(records: Records) -> None:
    with pytest.raises(BadArgument, match="65536 bytes is too short"):
        records.compress([bytes(MOST - 1), b"1"])


def test_values_are_evicted_whole(engine: Engine) -> None:
    with (
        SwapStore(engine) as store,
        CompressedMapping(store, max_bytes=1 << 20, on_full="evict") as mapping,
    ):
        for number in range(20):
            mapping[number] = noise(number, 200_000)
            assert mapping.stats().pool_bytes <= 1 << 20
        assert dict(mapping) == {number: noise(number, 200_000) for number in range(15, 20)}
        mapping.check_invariants()


def test_a_value_that_is_replaced_between_two_steps_is_whole(records: Records) -> None:
    put(records, "key", [mixed(1, 200_000)])
    found = records.get("key")
    assert isinstance(found, Found)
    put(records, "key", [mixed(2, 200_000)])
    assert records.finish(found) == mixed(1, 200_000)
    assert not records.remove("key", found)
    assert get(records, "key") == [mixed(2, 200_000)]
    records.put("key", b"short")
    assert records.get("key") == b"short"
    assert records.remove("key")
    assert records.get("key") is MISSING


# Damage


def slices_of(store: SwapStore) -> list[memoryview]:
    """View the slices of the only value, in order: they are numbered from the last one."""
    group = store.group("values")
    indices = np.frombuffer(group._entries.choose((Kind.SLICE,)), np.uint64)
    return [in_pool(group, int(index)) for index in indices[::-1]]


@pytest.mark.slow
def test_a_bit_that_is_flipped_is_told_or_harmless(store: SwapStore, records: Records) -> None:
    parts = [mixed(1, CHUNK + 1000), noise(2, 5000)]  # the last chunk is stored raw
    put(records, "key", parts)
    slices = slices_of(store)
    head = 2 + 2 + 2 * 3  # words
    length = sum(map(len, slices))
    gaps, told = 0, 0
    rng = random.Random(1)
    for at in (*range(4 * head + 8), *(rng.randrange(length) for _ in range(2000))):
        stored, place = slices[at // PAGE], at % PAGE
        bit = 1 << rng.randrange(8)
        stored[place] ^= bit
        try:
            assert get(records, "key") == parts
            gaps += 1
        except PageError as error:
            assert error.errno == -errno.EBADMSG  # noqa: PT017 - a gap has no error
            told += 1
        stored[place] ^= bit
    assert told > 4 * head
    assert 4 <= gaps < 12, "only the bytes in front of a chunk have no checksum here"
    assert get(records, "key") == parts


def test_slices_in_another_order_are_told(store: SwapStore, records: Records) -> None:
    put(records, "key", [noise(1, 4 * CHUNK)])
    one, two = slices_of(store)[3:5]
    one[:], two[:] = bytes(two), bytes(one)
    with pytest.raises(PageError):
        get(records, "key")


def test_a_damaged_slice_is_found_by_a_check(store: SwapStore, records: Records) -> None:
    put(records, "key", [noise(1, 4 * CHUNK)])
    slices_of(store)[5][7] ^= 1
    assert len(store.check().damaged) == 1


# Memory


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 1000], ids=["one", "all that follow"])
def test_an_allocation_that_fails_leaves_values_whole(count: int) -> None:
    values = [np.frombuffer(noise(step, 70_000 + 90_000 * step), np.uint8) for step in range(5)]
    number = 0
    while True:
        number += 1
        with (
            Engine("zstd", backend="sequential", page_size=PAGE) as engine,
            SwapStore(engine) as store,
            CompressedMapping(store, serializer="numpy") as mapping,
        ):
            model: dict[int, Any] = {}
            before = allocations()
            fail_allocation(number, count)
            try:
                for step, value in enumerate(values):
                    key = step % 3
                    mapping[key] = value
                    model[key] = value
                    assert (mapping[key] == value).all()
            except (MemoryError, StoreRejected):
                pass
            except PageError as error:  # the look-up had no memory
                assert error.errno == -errno.ENOMEM  # noqa: PT017 - others are allowed
            reached = allocations() - before >= number
            fail_allocation(0)
            mapping.check_invariants()
            store.check_invariants()
            assert mapping.keys() == model.keys()
            assert all((mapping[key] == model[key]).all() for key in model)
        if not reached:
            break
    assert number > 5


def test_slices_go_with_their_value(store: SwapStore, records: Records) -> None:
    for turn in range(30):
        put(records, f"key {turn % 4}", [noise(turn, MOST + 70_000 * (turn % 5) + 1)])
        if turn % 7 == 6:
            records.remove(f"key {turn % 4}")
        assert records.fault() is None
    records.clear()
    assert store.compressed_bytes == 0
    assert records.entries.figures()["slices"] == 0
    assert not len(np.frombuffer(records.entries.choose((Kind.SLICE,)), np.uint64))
