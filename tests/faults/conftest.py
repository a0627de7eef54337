"""Tests of faults end by themselves."""

from __future__ import annotations

import faulthandler
import sys
from typing import TYPE_CHECKING

import pytest
from support.thread_model import INTERRUPTS

from batchzip.core.memory import fail_allocation

if TYPE_CHECKING:
    from collections.abc import Iterator

HANG_LIMIT_S = 300.0


@pytest.fixture(autouse=True)
def never_hangs() -> Iterator[None]:
    """End the whole run, telling where each thread is, rather than wait for ever."""
    faulthandler.dump_traceback_later(HANG_LIMIT_S, exit=True, file=sys.__stderr__ or 2)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True)
def finalizers_swallow_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tell of no interrupt that came in a finalizer, from which Python lets none through."""
    tell = sys.unraisablehook

    def filtered(unraisable: sys.UnraisableHookArgs) -> None:
        if not isinstance(unraisable.exc_value, INTERRUPTS):
            tell(unraisable)

    monkeypatch.setattr(sys, "unraisablehook", filtered)


@pytest.fixture(autouse=True)
def mended() -> Iterator[None]:
    """Let allocations of the core succeed again."""
    yield
    fail_allocation(0)
