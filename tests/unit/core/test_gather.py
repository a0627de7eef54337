"""The core writes a page only where there is room for one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from batchzip import BadArgument, Engine, SwapStore
from batchzip.core.gather import gather, load, load_many

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("size", [0, 1, 32, 4095, 4097])
@pytest.mark.parametrize(
    "page", [bytes(4096), bytes(range(256)) * 16], ids=["filled", "compressed"]
)
def test_a_page_is_loaded_into_as_many_bytes_as_it_has(
    store: SwapStore, page: bytes, size: int
) -> None:
    store.store(0, [page])
    out = bytearray(size)
    with pytest.raises(BadArgument, match=f"out must have 4096 bytes, not {size}"):
        load(store._entries, 0, out)
    assert out == bytes(size)
    room = bytearray(4096)
    assert load(store._entries, 0, room) is room
    assert room == page


@pytest.mark.parametrize("count", [0, 1, 3])
def test_pages_are_loaded_into_as_many_pages_as_there_are_indices(
    store: SwapStore, count: int
) -> None:
    page = bytes(range(256)) * 16
    store.store(0, [page, bytes(4096)])
    where, coders = np.arange(2), store._resources.writer.engine.backend.coders
    number = store._resources.writer.number
    out = np.zeros((count, 4096), np.uint8)
    with pytest.raises(BadArgument, match=f"must have 8192 bytes, not {count * 4096}"):
        load_many(store._entries, where, out, coders, number)
    gathered = gather(store._entries, where)
    for call in (
        lambda: gathered.check(out),
        lambda: gathered.restore(coders, number, out),
    ):
        with pytest.raises(BadArgument, match="must have 8192 bytes"):
            call()
    assert not out.any()
    room = np.empty((2, 4096), np.uint8)
    assert load_many(store._entries, where, room, coders, number).is_checked
    assert room.tobytes() == page + bytes(4096)


def test_pages_are_gathered_first_if_one_is_in_the_file(engine: Engine, tmp_path: Path) -> None:
    page = bytes(range(256)) * 16
    with SwapStore(engine, backing=tmp_path) as store:
        store.store(0, [page] * 3)
        store.writeback([1])
        where, number = np.arange(3), store._resources.writer.number
        room = np.zeros((3, 4096), np.uint8)
        gathered = load_many(store._entries, where, room, engine.backend.coders, number)
        assert not gathered.is_checked
        assert not room.any()
        assert store.load_many(where).tobytes() == page * 3


def test_a_codec_of_lanes_is_left_to_them(store: SwapStore) -> None:
    page = bytes(range(256)) * 16
    store.store(0, [page, bytes(4096)])
    room = np.full((2, 4096), 7, np.uint8)
    number = store._resources.writer.number
    gathered = load_many(store._entries, np.arange(2), room, None, number)
    assert gathered.is_checked
    assert gathered.pending() == {number: 1}
    assert not room[1].any()
    assert (room[0] == 7).all()
