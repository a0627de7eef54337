"""Owned: closed once, refused afterwards, and refused in a forked child."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from batchzip import ClosedError
from batchzip.system.lifetime import Owned


class Thing(Owned):
    def __init__(self) -> None:
        super().__init__()
        self.released = 0

    def use(self) -> int:
        if self._unusable:
            self._refuse()
        return self.released

    def _close(self) -> None:
        self.released += 1


def test_an_open_one_is_used_as_a_context_manager_and_released_once() -> None:
    with Thing() as thing:
        before = thing.closed
        assert thing.use() == 0
    assert (before, thing.closed) == (False, True)
    thing.close()
    thing.close()
    assert thing.released == 1


def test_it_is_released_when_the_block_raises() -> None:
    thing = Thing()
    with pytest.raises(KeyError), thing:
        raise KeyError
    assert thing.released == 1


def test_use_after_close_says_what_is_closed() -> None:
    thing = Thing()
    thing.close()
    with pytest.raises(ClosedError, match="this Thing is closed"):
        thing.use()
    with pytest.raises(ValueError, match="closed"), thing:
        pass


FORK = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from batchzip import ClosedError, ForkedProcess
from test_lifetime import Thing

opened, closed = Thing(), Thing()
closed.close()

def refusal(thing):
    try:
        thing.use()
    except (ClosedError, ForkedProcess) as error:
        return type(error).__name__, str(error)

def child():
    assert opened.closed
    kind, text = refusal(opened)
    assert kind == "ForkedProcess", text
    assert f"process {{os.getppid()}}" in text and "new one" in text, text
    assert refusal(closed)[0] == "ClosedError"
    opened.close()
    assert opened.released == 0, "a child released what is the parent's"
    mine = Thing()
    assert mine.use() == 0
    grandchild = os.fork()
    if grandchild == 0:
        os._exit(0 if refusal(mine)[0] == "ForkedProcess" else 1)
    assert os.waitpid(grandchild, 0)[1] == 0
    mine.close()
    assert mine.released == 1

pid = os.fork()
if pid == 0:
    child()
    sys.exit()
assert os.waitpid(pid, 0)[1] == 0
assert opened.use() == 0 and not opened.closed
"""


@pytest.mark.slow
def test_in_a_forked_child_it_is_refused_and_not_released() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
