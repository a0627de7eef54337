"""Stress tests hand every share over, and end by themselves."""

from __future__ import annotations

import contextlib
import faulthandler
import os
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
def never_hangs(stress_s: float, pytestconfig: pytest.Config) -> Iterator[None]:
    """End the whole run, telling where each thread is, rather than wait for ever."""
    capture = pytestconfig.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
        stderr = os.dup(2)  # what is written to a captured one is lost
    faulthandler.dump_traceback_later(5 * HANG_LIMIT_S + stress_s, exit=True, file=stderr)
    yield
    faulthandler.cancel_dump_traceback_later()
    os.close(stderr)
