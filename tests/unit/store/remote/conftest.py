"""A store that is shared, and a reader of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.share_readers import page

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batchzip import StoreView, SwapStore


@pytest.fixture
def view(store: SwapStore) -> Iterator[StoreView]:
    with store.share().attach() as view:
        yield view


@pytest.fixture
def shared(store: SwapStore) -> SwapStore:
    store.store(0, [page(index, 1) for index in range(100)])
    store.share()
    return store
