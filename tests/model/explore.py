"""Explore: run the compiled ring, division and lanes under every interleaving up to a bound.

    .ci/with_core.sh explore tests/model/explore.py                       every scenario
    .ci/with_core.sh explore tests/model/explore.py withdraw --preemptions 3
    .ci/with_core.sh explore tests/model/explore.py withdraw --replay 0,0,2,1

Each scenario is a small use of the core's functions, with real threads of which one runs at a time
(scheduler.c). It asserts what must hold at its end. Any scenario fails by a deadlock, a livelock, a
crash, or a wake-up that came only because a sleep ended by itself. A failure is printed with its
choices.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

from scenarios import MAY_TIME_OUT, SCENARIOS, SCHEDULER, Bounds

from batchzip.core import build

if TYPE_CHECKING:
    from collections.abc import Callable


def run_once(
    scenario: Callable[[], None], prefix: list[int], bounds: Bounds
) -> tuple[list[int], list[int]]:
    """Run a scenario. Return the choices made, and how many each could have been."""
    SCHEDULER.begin((ctypes.c_int * len(prefix))(*prefix), len(prefix), *bounds)
    try:
        scenario()
    except BaseException:  # noqa: BLE001 - it is told
        traceback.print_exc()
        SCHEDULER.tell_choices(b"a promise is broken")
        os._exit(1)  # other threads wait for turns that never come
    made, could = (ctypes.POINTER(ctypes.c_int)() for _ in range(2))
    depth = SCHEDULER.end(ctypes.byref(made), ctypes.byref(could))
    return made[:depth], could[:depth]


def explore(name: str, bounds: Bounds, most: int) -> tuple[int, int, bool]:
    """Try schedules. Return their number, the steps of the longest, and whether these are all."""
    scenario = SCENARIOS[name][0]
    prefix: list[int] = []
    longest = tried = 0
    expected: list[int] = []
    while tried < most:
        made, could = run_once(scenario, prefix, bounds)
        if could[: len(prefix)] != expected[: len(prefix)]:
            raise AssertionError(f"{name}: the same choices led elsewhere")
        tried += 1
        longest = max(longest, SCHEDULER.steps_made())
        if SCHEDULER.timeouts_passed() and not name.startswith(MAY_TIME_OUT):
            SCHEDULER.tell_choices(b"a wake-up was lost")
            raise AssertionError(f"{name}: a sleep ended by its time only")
        last = len(made) - 1
        while last >= 0 and made[last] + 1 >= could[last]:
            last -= 1
        if last < 0:
            return tried, longest, True
        prefix = [*made[:last], made[last] + 1]
        expected = could
    return tried, longest, False


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--preemptions", type=int)
    parser.add_argument("--delays", type=int)
    parser.add_argument("--most", type=int, default=1 << 30, help="schedules of a scenario")
    parser.add_argument("--replay", metavar="CHOICES", help="run one schedule")
    arguments: Any = parser.parse_args()
    if build.PROFILE != "explore":
        sys.exit("this needs a core of the profile explore: see .ci/with_core.sh")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # turns change faster on one CPU
    total, began = 0, time.monotonic()
    for name in arguments.scenarios or SCENARIOS:
        scenario, bounds = SCENARIOS[name]
        given = {key: getattr(arguments, key) for key in ("preemptions", "delays")}
        bounds = bounds._replace(**{key: n for key, n in given.items() if n is not None})
        if arguments.replay is not None:
            choices = [] if arguments.replay == "none" else arguments.replay.split(",")
            run_once(scenario, [int(choice) for choice in choices], bounds)
            continue
        started = time.monotonic()
        print(f"{name}: ", end="", flush=True)
        tried, longest, complete = explore(name, bounds, arguments.most)
        total += tried
        took = time.monotonic() - started
        print(
            f"{tried} schedules of up to {longest} steps, {took:.1f} s"
            f"{'' if complete else ', not all'}"
        )
    print(f"{total} schedules tried, {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
