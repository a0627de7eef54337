"""Threads and interrupts at any line leave the old value or the new one."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING

import pytest
from support.interrupt_lines import interrupted_at
from support.sample_values import IN_CHUNKS_OR_PAGES
from support.store_pages import noise, text

from batchzip import (
    BatchzipError,
    CompressedMapping,
    Engine,
    SwapStore,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


MOST = 64 << 10
"""Bytes of a value that is compressed in one call; longer ones lie in chunks, or on pages."""


# At once, cut short, at the end


@IN_CHUNKS_OR_PAGES
def test_threads_that_read_and_replace_one_key_get_whole_values(
    mapping: CompressedMapping,
) -> None:
    values = {text(n, 9000 + n) for n in range(20)} | {text(n, MOST + n) for n in range(1, 20)}
    mapping["key"] = next(iter(values))
    wrong: list[object] = []
    done = threading.Event()

    def write() -> None:
        for value in [*values] * 5:
            mapping["key"] = value

    def read() -> None:
        while not done.is_set():
            try:
                if (value := mapping["key"]) not in values:
                    wrong.append(value)
            except BaseException as error:  # noqa: BLE001 - told by the test
                wrong.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    writers = [threading.Thread(target=write) for _ in range(2)]
    for thread in readers + writers:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    assert not wrong


def test_of_threads_that_pop_or_set_a_default_one_gets_it(mapping: CompressedMapping) -> None:
    got: list[object] = []
    start = threading.Barrier(4)

    def work() -> None:
        for turn in range(50):
            start.wait()
            mapping.setdefault("key", b"%d" % turn)
            start.wait()
            got.append(mapping.pop("key", None))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(value for value in got if isinstance(value, bytes)) == sorted(
        b"%d" % turn for turn in range(50)
    )
    assert len(got) == 200


def of_the_mapping(file: Path) -> bool:
    return file.parent.name == "mapping"


# In chunks, or on pages: what is shorter is stored in one step.
OLD, NEW = noise(1, MOST + 9000), text(2, MOST + 5000)

INTERRUPTED: dict[str, tuple[Callable[[CompressedMapping], object], list[object]]] = {
    "replace": (lambda m: m.__setitem__("key", NEW), [OLD, NEW]),
    "new": (lambda m: m.__setitem__("new", NEW), [OLD]),
    "get": (lambda m: m["key"], [OLD]),
    "delete": (lambda m: m.__delitem__("key"), [OLD, None]),
    "pop": (lambda m: m.pop("key"), [OLD, None]),
    "popitem": (lambda m: m.popitem(), [OLD, None]),
    "setdefault": (lambda m: m.setdefault("new", NEW), [OLD]),
    "clear": (lambda m: m.clear(), [OLD, None]),
}


@pytest.mark.slow
@IN_CHUNKS_OR_PAGES
@pytest.mark.parametrize("call", INTERRUPTED)
def test_an_interrupt_at_any_line_leaves_the_old_value_or_the_new_one(
    engine: Engine, call: str
) -> None:
    work, allowed = INTERRUPTED[call]
    torn = []
    for step in itertools.count(1):
        with SwapStore(engine) as store, CompressedMapping(store) as mapping:
            mapping["gap"] = NEW
            mapping["other"] = NEW
            mapping["key"] = OLD
            del mapping["gap"]
            place = interrupted_at(
                step,
                lambda mapping=mapping: work(mapping),  # type: ignore[misc]
                of_the_mapping,
            )
            try:
                assert mapping.get("key") in allowed
                assert mapping.get("new") in (NEW, None)
                assert mapping.get("other", NEW) == NEW
                mapping.check_invariants()
                mapping["key"] = mapping["after"] = OLD
                assert mapping["key"] == mapping["after"] == OLD
                mapping.check_invariants()
                store.check_invariants()
            except (AssertionError, BatchzipError) as error:
                torn.append(f"{place}: {error}")
        if place is None:
            break
    assert not torn, "\n".join(torn)
