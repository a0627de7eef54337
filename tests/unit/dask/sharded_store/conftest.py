"""A sharded store in a cluster of two workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from distributed import Client
from support.cluster.fixtures import leaves_nothing_behind, offloading  # noqa: F401 - used by every test
from support.cluster.process import dask_cluster

from batchzip.dask import ShardedStore
from batchzip.testing import LeakCheck
from batchzip.testing.plain import SLACK_S

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with LeakCheck(), dask_cluster(2) as address, Client(address, set_as_default=False) as client:
        yield client


@pytest.fixture
def store(client: Client) -> Iterator[ShardedStore]:
    with ShardedStore(client, engine={"algorithm": "lz4"}, timeout_s=SLACK_S) as store:
        yield store
