"""Failpoints: workers that fail on purpose, at a named step of the core's loop, the n-th time.

    with armed("began:3:kill", "done:1:stop"):     # one for each of the next two workers started
        …

A lane fails just after the step that the name describes (`batchzip.core.lane.STEPS`). Actions are
`kill` (SIGKILL), `stop` (SIGSTOP: it hangs), `raise` (the loop ends, and with it the process) and
`pause` (20 ms). The loop pays one predictable branch per step.
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
"""Armed failpoints. The supervisor gives one to each worker that it starts."""


def parse(text: str) -> Failpoint:
    """Parse `step:nth:action`. Raise BadArgument, which lists the valid steps and actions."""
    step, _, rest = text.partition(":")
    nth, _, action = rest.partition(":")
    if step not in STEPS or action not in ACTIONS or not nth.isdecimal() or int(nth) < 1:
        raise BadArgument(
            f"a failpoint must be step:nth:action with a step of {', '.join(STEPS)} and an action "
            f"of {', '.join(ACTIONS)}, not {text!r}"
        )
    return step, int(nth), action


@contextmanager
def armed(*texts: str) -> Iterator[None]:
    """Give each of the next workers started within this context a failpoint, in order."""
    waiting.extend([parse(text) for text in texts])
    try:
        yield
    finally:
        waiting.clear()


def next_armed() -> Failpoint | None:
    """Take and return the next armed failpoint, or None."""
    return waiting.popleft() if waiting else None
