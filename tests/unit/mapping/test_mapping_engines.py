"""The engine changes while threads use a mapping: each value keeps its codec and its form."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from support.store_pages import noise

from batchzip import CompressedMapping, Engine, SwapStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECONDS = 1.5


@pytest.fixture
def switches_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def while_engines_change(
    engines: tuple[Engine, Engine], *works: Callable[[CompressedMapping], object]
) -> None:
    """Call each of `works` again and again in a thread of its own, while the engine changes."""
    failures: list[BaseException] = []
    over = threading.Event()

    def repeat(work: Callable[[CompressedMapping], object]) -> None:
        try:
            while not over.is_set():
                work(mapping)
        except BaseException as failure:  # noqa: BLE001 - raised in the main thread
            failures.append(failure)

    with SwapStore(engines[0]) as store, CompressedMapping(store) as mapping:
        threads = [threading.Thread(target=repeat, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        end, turn = time.monotonic() + SECONDS, 0
        while time.monotonic() < end and not failures:
            turn += 1
            store.engine = engines[turn % 2]
            mapping["short"] = b"%d" % turn
        over.set()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        mapping.check_invariants()
        store.check_invariants()


@pytest.mark.slow
@pytest.mark.parametrize("length", [60_000, 3 << 20])
def test_readers_do_not_keep_a_put_from_ending(length: int) -> None:
    """Its codec may have no coders by then, until the put goes on. Readers used to wait with the
    GIL, which the put needs."""
    value = noise(1, length // 2) + bytes(length // 2)

    def put(mapping: CompressedMapping) -> None:
        mapping["key"] = value
        del mapping["key"]

    def read(mapping: CompressedMapping) -> None:
        assert mapping.get("key") in (value, None)

    with (
        Engine("zstd", level=9, backend="sequential") as one,
        Engine("lz4", backend="sequential") as other,
    ):
        while_engines_change((one, other), put, read, read)


@pytest.mark.slow
@pytest.mark.usefixtures("switches_often")
def test_a_value_keeps_its_form_if_a_codec_in_python_takes_over() -> None:
    """What one call takes and whether there are chunks used to change one after the other."""
    value = noise(1, 5000) + bytes(5000)

    def work(key: str) -> Callable[[CompressedMapping], Any]:
        def put_and_get(mapping: CompressedMapping) -> None:
            mapping[key] = value
            assert mapping[key] == value
            mapping.update({key: value, key * 2: value})
            assert mapping.get_many([key, key * 2]) == {key: value, key * 2: value}

        return put_and_get

    with (
        Engine("zstd", level=1, backend="sequential") as one,
        Engine("deflate", backend="sequential") as other,
    ):
        while_engines_change((one, other), work("a"), work("b"), work("c"))


def test_a_copy_under_an_engine_without_dictionaries_has_none() -> None:
    with (
        Engine("zstd", level=1, backend="sequential") as zstd,
        Engine("lz4", backend="sequential") as lz4,
        SwapStore(zstd) as store,
        CompressedMapping(store, dictionary="auto") as mapping,
    ):
        mapping["key"] = noise(1, 300)
        store.engine = lz4
        with mapping.copy() as copy, mapping | {"more": b"more"} as more:
            assert dict(copy) == dict(mapping)
            assert len(more) == 2
            copy["other"] = b"other"
            store.engine = zstd
            copy["other"] = b"another"
            assert copy["other"] == b"another"
