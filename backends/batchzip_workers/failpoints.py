"""Failpoints: workers that fail on purpose, at a named step, the n-th time they come to it.

    with armed("started:3:kill", "done:1:stop"):     # for the next workers that are started, in turn
        …

A step is where a worker is when it fails: just behind what the name says. Actions: `kill` (SIGKILL),
`stop` (SIGSTOP: it hangs), `raise` (an exception in the loop, which ends the process).

What it costs where none is armed: a look at a local that is None, eight times a share.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchzip.errors import BadArgument

if TYPE_CHECKING:
    from collections.abc import Iterator

STEPS = (
    "ready",
    "posted",
    "started",
    "opened",
    "coded",
    "counted",
    "done",
    "rung",
    "asleep",
    "awake",
)
"""Every step of the worker's loop, in the order of a share's way; the last three only where they occur."""

ACTIONS = ("kill", "stop", "raise")

waiting: deque[str] = deque()
"""Armed failpoints that no worker has yet; the supervisor gives one to each worker it starts."""


@dataclass
class Failpoint:
    """A step, how often it is still to be passed, and what happens then."""

    step: str
    passes: int
    action: str

    @classmethod
    def parse(cls, text: str) -> Failpoint:
        """Make one of `step:nth:action`. Raises BadArgument naming what there is."""
        step, _, rest = text.partition(":")
        nth, _, action = rest.partition(":")
        if step not in STEPS or action not in ACTIONS or not nth.isdecimal() or int(nth) < 1:
            raise BadArgument(
                f"a failpoint is step:nth:action with a step of {', '.join(STEPS)} and an action of {', '.join(ACTIONS)}, not {text!r}"
            )
        return cls(step, int(nth), action)

    def hit(self, step: str) -> None:
        """Come to a step; fail if it is the one and the time."""
        if step != self.step:
            return
        self.passes -= 1
        if self.passes:
            return
        if self.action == "raise":
            raise RuntimeError(f"failpoint {step}")
        os.kill(os.getpid(), signal.SIGKILL if self.action == "kill" else signal.SIGSTOP)


@contextmanager
def armed(*texts: str) -> Iterator[None]:
    """Give the next workers started in this process a failpoint each, in turn, while this lasts."""
    for text in texts:
        Failpoint.parse(text)
    waiting.extend(texts)
    try:
        yield
    finally:
        waiting.clear()


def next_armed() -> str:
    """Take the next one that is armed; "" if there is none."""
    return waiting.popleft() if waiting else ""
