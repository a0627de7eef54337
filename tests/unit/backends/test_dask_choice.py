"""Where batches are done: what was not done anywhere says nothing of a place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchzip_dask import choice
from batchzip_dask.choice import SENT, Choices

if TYPE_CHECKING:
    import pytest

SIZE = 1 << 20


class Clock:
    """A clock that stands still until it is set."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_a_trial_that_was_refused_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(choice, "time", clock)
    choices = Choices(lambda: True)
    for _ in range(10):  # more than a trial takes
        turn = choices.begin(0, SIZE, lambda: 1e6)
        assert (turn.place, turn.is_trial) == (SENT, True)
        clock.now += 100
        turn.drop()
        turn.end(SIZE)  # nothing more is noted
    (placement,) = choices.placements()
    assert (placement.trials, placement.sent_bytes, placement.sent_speed) == (1, 0, None)
    turns = [choices.begin(0, SIZE, lambda: 1e6) for _ in range(4)]
    for turn in turns:
        assert turn.place == SENT
        clock.now += 1
        turn.end(SIZE)
    (placement,) = choices.placements()
    assert placement.sent_speed == SIZE


def test_time_of_what_was_dropped_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(choice, "time", clock)
    choices = Choices(lambda: False)
    turn = choices.begin(0, SIZE, lambda: 1e6)
    dropped = choices.begin(0, SIZE, lambda: 1e6)
    clock.now += 1
    turn.end(SIZE)
    clock.now += 50
    dropped.drop()
    turn = choices.begin(0, SIZE, lambda: 1e6)
    clock.now += 1
    turn.end(SIZE)
    (placement,) = choices.placements()
    assert placement.local_bytes == 2 * SIZE
    assert placement.local_speed == SIZE
