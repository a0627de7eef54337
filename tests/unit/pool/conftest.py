"""A pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from batchzip.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool() as made:
        yield made
        made.check_invariants()
