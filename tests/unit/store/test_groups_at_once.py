"""Two calls that make the same group at once get one group, and nothing else is left of it."""

from __future__ import annotations

from typing import Any

import pytest

from batchzip import ClosedError, Engine, Group, SwapStore


def test_the_group_that_came_second_is_closed(engine: Engine) -> None:
    made: list[Group] = []
    with SwapStore(engine) as store:

        class Slow(Group):
            def __init__(self, *arguments: Any) -> None:
                super().__init__(*arguments)
                made.append(self)
                store.group("one").store(0, bytes(4096))

        assert store._new_group("one", None, Slow) is None
        (second,) = made
        assert second.closed
        assert store.groups["one"] is not second
        assert store.group("one").load(0) == bytes(4096)


def test_a_group_of_a_store_that_is_closed_meanwhile_is_closed(engine: Engine) -> None:
    store = SwapStore(engine)
    made: list[Group] = []

    class Slow(Group):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)
            store.close()

    with pytest.raises(ClosedError):
        store._new_group("one", None, Slow)
    assert made[0].closed
