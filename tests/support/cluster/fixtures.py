"""Fixtures of modules whose tests have Dask clients: to be imported there, and used by every test."""

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
    """As everywhere, but for sockets: a client opens them as it needs them, and closes them at its end."""
    with LeakCheck(ignore="socket:"):
        yield
