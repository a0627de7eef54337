"""Placement: a worker that finds itself on its owner's CPU steps aside.

In a virtual machine an idle CPU is halted, and Linux takes a halted one for preempted
(`vcpu_is_preempted`), so it wakes a sleeping worker on the CPU of whoever woke it: the owner's. There
the two take turns, while another CPU idles, until the load balancer looks; that cost a stream of
batches everything the worker brings. Rejected: binding workers to CPUs for good, as they could then
not give way to other programs.

So the owner says where it runs when it wakes a worker, and a worker that woke there moves once, each
worker to a CPU of its own, and is free to be moved again at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

current_cpu: Callable[[], int] = ctypes.CDLL(None).sched_getcpu
"""Number of the CPU the caller runs on, at this moment."""


def step_aside(owner_cpu: int, number: int) -> None:
    """Move the calling worker, the `number`-th, off `owner_cpu` if it runs there."""
    if current_cpu() != owner_cpu:
        return
    with contextlib.suppress(OSError):  # forbidden, or the CPUs changed just now: then stay
        allowed = os.sched_getaffinity(0)
        others = sorted(allowed - {owner_cpu})
        if others:
            os.sched_setaffinity(0, {others[number % len(others)]})
            os.sched_setaffinity(0, allowed)
