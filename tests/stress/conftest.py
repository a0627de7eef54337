"""Stress tests hand every share over, and tell at the end of the run what was survived."""

from __future__ import annotations

import faulthandler
import sys
from typing import TYPE_CHECKING

import pytest
from stress.load import HANG_LIMIT_S

from batchzip_workers.balance import Balance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SURVIVED = "survived"


@pytest.fixture(autouse=True)
def always_hand_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give workers their share whatever it costs, so that faults happen where they are meant to."""
    monkeypatch.setattr(Balance, "is_settled", lambda *_: False)
    monkeypatch.setattr(Balance, "is_worth", lambda *_, **__: True)


@pytest.fixture(autouse=True)
def never_hangs() -> Iterator[None]:
    """End the whole run, telling where each thread is, rather than wait for ever."""
    faulthandler.dump_traceback_later(5 * HANG_LIMIT_S, exit=True, file=sys.__stderr__ or 2)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Take a line to show at the end of the run, whichever process the test runs in."""
    return lambda line: record_property(_SURVIVED, line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for one in terminalreporter.getreports("passed"):
        for name, line in one.user_properties:
            if name == _SURVIVED and one.when == "call":
                terminalreporter.write_line(str(line))
