"""Failpoints: workers that fail on purpose, at a named step of the core's loop, the n-th time.

    with armed("began:3:kill", "done:1:stop"):     # for the next workers that are started, in turn
        …

A step is where a lane is when it fails: just behind what the name says (`batchzip.core.lane.STEPS`).
Actions are `kill` (SIGKILL), `stop` (SIGSTOP: it hangs), `raise` (the loop ends, and with it the process)
and `pause` (20 ms). The loop pays one predictable branch a step.
"""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

from batchzip.core.lane import ACTIONS, STEPS
from batchzip.errors import BadArgument

if TYPE_CHECKING:
    from collections.abc import Iterator

Failpoint = tuple[str, int, str]

waiting: deque[Failpoint] = deque()
"""Armed failpoints that no worker has yet; the supervisor gives one to each worker it starts."""


def parse(text: str) -> Failpoint:
    """Read `step:nth:action`. Raise BadArgument naming what there is."""
    step, _, rest = text.partition(":")
    nth, _, action = rest.partition(":")
    if step not in STEPS or action not in ACTIONS or not nth.isdecimal() or int(nth) < 1:
        raise BadArgument(
            f"a failpoint is step:nth:action with a step of {', '.join(STEPS)} and an action of {', '.join(ACTIONS)}, not {text!r}"
        )
    return step, int(nth), action


@contextmanager
def armed(*texts: str) -> Iterator[None]:
    """Give the next workers started in this process a failpoint each, in turn, while this lasts."""
    waiting.extend([parse(text) for text in texts])
    try:
        yield
    finally:
        waiting.clear()


def next_armed() -> Failpoint | None:
    """Take the next one that is armed, if any."""
    return waiting.popleft() if waiting else None
