"""Engines whose lanes stop or are held."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from support.codecs.faulty import FaultyCodec
from support.held_lane import Hold

from batchzip import Engine
from batchzip.testing.plain import SLACK_S

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def stopping(tmp_path: Path) -> Iterator[Engine]:
    """An engine of one worker, which a page marked STOP_ONCE stops; HANG_S is half a minute."""
    flag = tmp_path / "flag"
    flag.touch()
    with Engine(FaultyCodec(os.getpid(), str(flag)), backend="workers", workers=1) as engine:
        assert engine.wait_ready(SLACK_S)
        yield engine


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Hold:
    return Hold(monkeypatch)
