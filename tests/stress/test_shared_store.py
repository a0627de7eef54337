"""Readers in other processes beside an owner that churns: no wrong page in thirty seconds."""

from collections.abc import Callable
from pathlib import Path

import pytest
from share_churn import churn

from batchzip import Engine

pytestmark = pytest.mark.stress


def test_eight_readers_beside_a_churning_owner(
    tmp_path: Path, report: Callable[[str], None]
) -> None:
    with Engine("lz4", backend="sequential") as engine:
        reads, changes = churn(tmp_path, engine, 30.0, 8)
    report(f"shared store: {reads} reads by 8 processes in 30 s beside {changes} changes, 0 wrong")
