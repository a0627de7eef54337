"""The core writes a page only where there is room for one."""

from __future__ import annotations

import pytest

from batchzip import BadArgument, SwapStore
from batchzip.core.gather import load


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
