"""Readers in other processes beside an owner that churns: no wrong page, however long it takes."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.share_churn import churn

from batchzip import Engine

pytestmark = pytest.mark.stress


def test_four_readers_beside_a_churning_owner(
    tmp_path: Path, report: Callable[[str], None], stress_s: float
) -> None:
    with Engine("lz4", backend="sequential") as engine:
        reads, changes = churn(tmp_path, engine, stress_s, 4)
    report(
        f"shared store: {reads} reads by 4 processes in {stress_s:g} s "
        f"beside {changes} changes, 0 wrong"
    )
