"""Stress tests hand every share over, and end by themselves."""

from __future__ import annotations

import faulthandler
import sys
from typing import TYPE_CHECKING

import pytest
from support.batch_load import HANG_LIMIT_S
from support.dividing import divide_always

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def always_hand_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give lanes their share whatever it costs, so that faults happen where they are meant to."""
    divide_always(monkeypatch)


@pytest.fixture(autouse=True)
def never_hangs() -> Iterator[None]:
    """End the whole run, telling where each thread is, rather than wait for ever."""
    faulthandler.dump_traceback_later(5 * HANG_LIMIT_S, exit=True, file=sys.__stderr__ or 2)
    yield
    faulthandler.cancel_dump_traceback_later()
