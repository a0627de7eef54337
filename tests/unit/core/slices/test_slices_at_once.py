"""Threads and asynchronous calls that read and replace values above a page meet whole ones."""

from __future__ import annotations

import asyncio
import itertools
import threading
from typing import TYPE_CHECKING

import pytest
from support.sample_values import mixed
from support.store_pages import text

from batchzip import (
    ClosedError,
    CompressedMapping,
    SwapStore,
)

if TYPE_CHECKING:
    from collections.abc import Callable


# At once


@pytest.mark.slow
def test_threads_that_replace_read_and_spill_meet_whole_values(  # noqa: C901 - three of them
    mapping: CompressedMapping,
) -> None:
    values = {mixed(n, 5000 + 3000 * n) for n in range(12)} | {text(n, 30_000) for n in range(6)}
    keys = list("abc")
    wrong: list[object] = []
    done = threading.Event()

    def until_done(work: Callable[[], object]) -> None:
        while not done.is_set():
            try:
                if (found := work()) is not None:
                    wrong.append(found)
            except BaseException as error:  # noqa: BLE001 - told by the test
                wrong.append(error)

    def read() -> object:
        single = mapping.get(keys[0]), mapping.get(keys[1])
        many = mapping.get_many(keys).values()
        return next((each for each in (*single, *many) if each not in values), None)

    def spill() -> None:
        mapping.group.writeback(5)

    def write() -> None:
        for turn, value in enumerate([*values] * 60):
            mapping[keys[turn % 3]] = value

    mapping.update(dict.fromkeys(keys, text(1, 30_000)))
    others = [threading.Thread(target=until_done, args=(work,)) for work in (read, read, spill)]
    writers = [threading.Thread(target=write) for _ in range(2)]
    for thread in others + writers:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in others:
        thread.join()
    assert not wrong


def test_asynchronous_calls_find_them(mapping: CompressedMapping) -> None:
    async def work() -> None:
        await mapping.aset("key", mixed(1, 30_000))
        assert await mapping.aget("key") == mixed(1, 30_000)
        mapping.group.writeback(1000)
        assert await mapping.aget("key") == mixed(1, 30_000)
        assert await mapping.aget_many(["key"]) == {"key": mixed(1, 30_000)}
        assert await mapping.apop("key") == mixed(1, 30_000)

    asyncio.run(work())


@pytest.mark.slow
def test_a_mapping_that_is_closed_while_others_use_it_leaves_nothing(store: SwapStore) -> None:
    values = [mixed(n, 3000 + 6000 * n) for n in range(8)]
    wrong: list[BaseException] = []

    def work(mapping: CompressedMapping, number: int, begun: threading.Event) -> None:
        try:
            for turn in itertools.count(number):
                mapping[turn % 5] = values[turn * 7 % 8]
                begun.set()
                mapping.get(turn * 3 % 5)
                mapping.group.writeback(2)
                mapping.pop(turn * 2 % 5, None)
        except ClosedError:
            pass
        except BaseException as error:  # noqa: BLE001 - told by the test
            wrong.append(error)

    for _ in range(20):
        mapping = CompressedMapping(store, max_bytes=100_000, on_full="evict")
        begun = [threading.Event() for _ in range(3)]
        threads = [
            threading.Thread(target=work, args=(mapping, number, event))
            for number, event in enumerate(begun)
        ]
        for thread, event in zip(threads, begun, strict=True):
            thread.start()
            event.wait()
        mapping.close()
        for thread in threads:
            thread.join()
        assert not wrong
        assert store.compressed_bytes == 0
        store.check_invariants()
