"""Work of a test in a forked child, which ends with the work and within a time limit."""

import os
import select
import signal
import time
import traceback
import warnings
from collections.abc import Callable

import pytest

PASSED = b"passed"


def in_forked_child(work: Callable[[], object], timeout_s: float = 60) -> None:
    """Run `work` in a forked child, and fail with the child's traceback where it raised anything.

    The child never returns to the test run: whatever is raised, it ends by os._exit. A child that
    is not done in `timeout_s` seconds is killed, and the test has failed.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, from 3.12 on
        child = os.fork()
    if child == 0:
        try:
            os.write(writing, _outcome(work))
        finally:
            os._exit(0)
    os.close(writing)
    try:
        said = _read_to_end(reading, timeout_s)
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)  # one that has ended is a zombie, and stays one
        os.waitpid(child, 0)
    if said != PASSED:
        pytest.fail(f"the forked child {said.decode(errors='replace') or 'said nothing'}")


def _outcome(work: Callable[[], object]) -> bytes:
    try:
        work()
    except BaseException:  # noqa: BLE001 - told to the parent
        return f"failed\n{traceback.format_exc()}".encode()
    return PASSED


def _read_to_end(reading: int, timeout_s: float) -> bytes:
    deadline = time.monotonic() + timeout_s
    said = b""
    while True:
        left = max(0.0, deadline - time.monotonic())
        if not select.select([reading], [], [], left)[0]:
            return b"was not done in %g s" % timeout_s
        more = os.read(reading, 65536)
        if not more:
            return said
        said += more
