"""A thread of batchzip that has no memory at any line goes on, and loses nothing it was given."""

from __future__ import annotations

import itertools
import linecache
import sys
import threading
import time
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.dividing import divide_always

from batchzip import CompressBatch, Engine, WorkerWarning
from batchzip.testing.plain import SLACK_S, make_pages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

PAGES = make_pages(20, seed=1)

_FREE = (
    *("if ", "elif ", "else:", "return", "try:", "except ", "with ", "while ", "del "),
    *(
        "goes_on = True",
        "begun = ",
        "signal.",
        "place.",
        "popen.",
        "memory = sentinel",
        "popen = None",
    ),
)
"""How lines begin that need no memory of their own, or come again where they end."""


class MemoryOut:
    """Raises MemoryError at the n-th line of some files, in threads that are started meanwhile."""

    def __init__(self, number: int, *names: str) -> None:
        self._left = number
        self._names = names
        self.place: str | None = None

    def _on_call(self, frame: FrameType, _event: str, _arg: object) -> Any:
        return self._on_line if Path(frame.f_code.co_filename).name in self._names else None

    def _on_line(self, frame: FrameType, event: str, _arg: object) -> Any:
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        if event == "line" and not line.startswith(_FREE) and self.place is None:
            self._left -= 1
            if self._left == 0:
                self.place = f"{frame.f_code.co_name}: {line}"
                raise MemoryError
        return self._on_line

    def end(self) -> None:
        """Raise nothing any more."""
        self._left = 0

    @contextmanager
    def under_way(self) -> Iterator[None]:
        threading.settrace(self._on_call)
        try:
            yield
        finally:
            threading.settrace(sys.gettrace())


@pytest.mark.slow
def test_requests_end_whatever_line_of_their_thread_has_no_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    divide_always(monkeypatch)
    reached, number = set[str](), 0
    while True:
        number += 1
        out = MemoryOut(number, "dispatcher.py", "queue.py")
        with Engine("lz4", backend="threads", workers=1) as engine:
            with out.under_way():
                requests = [engine.submit(CompressBatch(PAGES)) for _ in range(3)]
            for request in requests:
                try:
                    assert not request.wait(SLACK_S).has_errors
                except MemoryError:
                    assert out.place is not None
            if out.place is None:
                break
            again = engine.submit(CompressBatch(PAGES), deadline_s=SLACK_S).wait(SLACK_S)
            assert not again.has_errors
        reached.add(out.place)
    assert {place.partition(":")[0] for place in reached} >= {"_begin", "_step", "take"}


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(13, marks=pytest.mark.slow, id="some"),
        pytest.param(1, marks=pytest.mark.stress, id="all"),
    ],
)
def test_workers_come_back_whatever_line_of_their_supervisor_has_no_memory(step: int) -> None:
    for number in itertools.count(1, step):
        out = MemoryOut(number, "supervisor.py", "launch.py")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", WorkerWarning)
            with out.under_way():
                engine = Engine("lz4", backend="workers", workers=1)
            with engine:
                until = time.monotonic() + SLACK_S
                while not engine.wait_ready(SLACK_S):
                    assert time.monotonic() < until, out.place
                out.end()
        if out.place is None:
            break
    assert number > 20
