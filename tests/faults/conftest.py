"""Tests of faults end by themselves."""

from __future__ import annotations

import faulthandler
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

HANG_LIMIT_S = 300.0


@pytest.fixture(autouse=True)
def never_hangs() -> Iterator[None]:
    """End the whole run, telling where each thread is, rather than wait for ever."""
    faulthandler.dump_traceback_later(HANG_LIMIT_S, exit=True, file=sys.__stderr__ or 2)
    yield
    faulthandler.cancel_dump_traceback_later()
