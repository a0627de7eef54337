"""Advice that measures dicts only."""

from __future__ import annotations

import pytest
from support.advised_values import dicts_of

from batchzip.advice import weighing
from batchzip.advice.suiting import Suiting


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only dicts are measured: what is tested is not which holders there are."""
    monkeypatch.setattr(weighing, "_dicts", lambda serializer, **_: dicts_of(serializer))
    monkeypatch.setattr(weighing, "_worth_trying", lambda *_: [])
    monkeypatch.setattr(Suiting, "names", ["pickle"])
