"""Hysteresis: full at the limit, and open again at the threshold."""

import pytest

from batchzip.store.hysteresis import Hysteresis


def test_it_is_full_at_the_limit_until_the_threshold_is_reached() -> None:
    state = Hysteresis()
    assert state.check(99, 100, 90) == (False, False)
    assert state.check(100, 100, 90) == (True, True)
    assert state.check(99, 100, 90) == (False, True)
    assert state.check(91, 100, 90) == (False, True)
    assert state.check(90, 100, 90) == (False, False)
    assert state.check(99, 100, 90) == (False, False)
    assert state.check(101, 100, 90) == (True, True)


@pytest.mark.parametrize("percent", [0, 1, 50, 99, 100])
def test_the_threshold_is_a_share_of_the_limit(percent: int) -> None:
    state = Hysteresis()
    assert state.check(1000, 1000, percent) == (True, True)
    assert state.check(10 * percent, 1000, percent) == (percent == 100, percent == 100)
    if percent < 100:
        assert state.check(1000, 1000, percent) == (True, True)
        assert state.check(10 * percent + 1, 1000, percent) == (False, True)


def test_without_a_limit_nothing_is_full() -> None:
    state = Hysteresis()
    assert state.check(1 << 60, None, 90) == (False, False)
    assert state.check(0, 0, 90) == (True, True)
    assert state.check(1 << 60, None, 90) == (False, False)
