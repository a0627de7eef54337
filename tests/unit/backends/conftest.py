"""A Dask cluster for the tests of the dask backend."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from support.cluster.process import SCHEDULER_VARIABLE, dask_cluster

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Start a cluster of two workers. Return its address, which is in the environment, too."""
    with dask_cluster(2) as address:
        os.environ[SCHEDULER_VARIABLE] = address
        yield address
        del os.environ[SCHEDULER_VARIABLE]
