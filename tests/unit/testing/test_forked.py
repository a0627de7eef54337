"""The helper that forks: a child is never a second test run, whatever happens in it."""

import os
import time
from collections.abc import Callable

import pytest
from support.forked import in_forked_child


def fails() -> None:
    raise ZeroDivisionError("in the child")


def ends() -> None:
    raise SystemExit


def dies() -> None:
    os._exit(3)


@pytest.mark.parametrize(
    ("work", "words"),
    [(fails, "ZeroDivisionError: in the child"), (ends, "SystemExit"), (dies, "said nothing")],
)
def test_what_goes_wrong_in_a_child_fails_in_the_parent(
    work: Callable[[], None], words: str
) -> None:
    with pytest.raises(pytest.fail.Exception, match=words):
        in_forked_child(work)


def test_a_child_that_hangs_is_killed() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"not done in 0\.1 s"):
        in_forked_child(lambda: time.sleep(60), timeout_s=0.1)


def test_a_child_that_does_well_is_no_failure() -> None:
    parent = os.getpid()

    def compare() -> None:
        assert os.getpid() != parent

    in_forked_child(compare)
