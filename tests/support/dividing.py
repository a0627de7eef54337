"""How batches are divided in a test: always, or never, whatever it costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchzip.core.division import Divider
from batchzip.lanes import backend
from batchzip_threads import ThreadsBackend
from batchzip_workers.backend import WorkersBackend

if TYPE_CHECKING:
    from typing import Any

    import pytest


def divide_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Divide every batch of engines made from now on evenly; the caller takes nothing back."""

    def make(*arguments: Any, **options: Any) -> Divider:
        divider = Divider(*arguments, **options)
        divider.generous = True
        return divider

    monkeypatch.setattr(backend, "Divider", make)


def divide_never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have callers do everything by themselves."""
    for kind in (ThreadsBackend, WorkersBackend):
        monkeypatch.setattr(kind, "rings", ())
