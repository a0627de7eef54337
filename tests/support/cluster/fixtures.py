"""Fixtures for modules whose tests have Dask clients. Importing them makes every test use them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.cluster.process import offload_thread

from batchzip.testing import LeakCheck

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module", autouse=True)
def offloading() -> Iterator[None]:
    """Have Dask's offload thread for the module's tests, and not for ever."""
    with offload_thread():
        yield


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """Check for leaks, sockets aside: a client opens and closes them as it needs them."""
    with LeakCheck(ignore="socket:"):
        yield
