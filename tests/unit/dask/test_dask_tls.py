"""All parts of batchzip work in clusters that talk TLS, and strangers stay out."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import dask.config
import numpy as np
import pytest
from distributed import Client
from distributed.security import Security
from support.cluster.commands import scheduler_command, worker_command
from support.cluster.fixtures import leaves_nothing_behind, offloading  # noqa: F401 - used by every test
from support.command import cli

from batchzip import BackendUnavailable, ClusterLost, CompressBatch, DecompressBatch, Engine
from batchzip.dask import ShardedStore
from batchzip.dask.probe import check_scheduler, check_workers
from batchzip.testing.plain import make_pages
from batchzip_dask import DaskBackend

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STRIPE = 512

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates"),
]


def make_certificate(folder: Path) -> dict[str, str]:
    """Make an authority and a certificate that it signs. Return Dask's settings for them."""
    folder.mkdir()
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]

    def openssl(*arguments: str) -> None:
        command = ["openssl", "req", "-x509", *curve, *arguments]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)

    openssl("-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem")
    signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE"]
    openssl("-subj", "/CN=cluster", *signed, "-keyout", "key.pem", "-out", "certificate.pem")
    return {
        "ca-file": str(folder / "ca.pem"),
        "cert": str(folder / "certificate.pem"),
        "key": str(folder / "key.pem"),
    }


def settings_of(files: dict[str, str]) -> dict[str, Any]:
    """Return Dask's settings with which clients have a certificate."""
    return {
        "distributed.comm.tls.ca-file": files["ca-file"],
        "distributed.comm.tls.client.cert": files["cert"],
        "distributed.comm.tls.client.key": files["key"],
    }


def variables_of(files: dict[str, str]) -> dict[str, str]:
    """Return the variables that set these settings in another process."""
    return {
        "DASK_" + name.upper().replace(".", "__").replace("-", "_"): value
        for name, value in settings_of(files).items()
    }


def security_of(files: dict[str, str]) -> Security:
    sides = {
        f"tls_{side}_{part}": files[part]
        for side in ("client", "scheduler", "worker")
        for part in ("cert", "key")
    }
    return Security(tls_ca_file=files["ca-file"], require_encryption=True, **sides)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_certificate(tmp_path_factory.mktemp("tls") / "own")


@pytest.fixture(scope="module")
def cluster(files: dict[str, str]) -> Iterator[str]:
    preload = ["--preload", "batchzip.dask.preload"]
    options = [word for name, path in files.items() for word in (f"--tls-{name}", path)]
    with (
        scheduler_command("--protocol", "tls", *options) as address,
        worker_command(address, *options, *preload),
        worker_command(address, *options, *preload),
    ):
        assert address.startswith("tls://")
        yield address


@pytest.fixture(scope="module")
def client(cluster: str, files: dict[str, str]) -> Iterator[Client]:
    with Client(cluster, security=security_of(files), set_as_default=False) as client:
        yield client


def test_the_probe_asks_by_tls(client: Client) -> None:
    assert all(address.startswith("tls://") for address in client.nthreads())
    check_workers(client)
    check_scheduler(client)


def test_a_sharded_store_travels_by_tls(client: Client) -> None:
    pages = make_pages(2 * STRIPE)
    with ShardedStore(client, replicas=2) as store:  # so that shards talk to each other, too
        store.store(0, pages)
        np.testing.assert_array_equal(store.load_many(range(len(pages))), pages)
        assert {shard.worker for shard in store.shards} == set(client.nthreads())


def pages_in_a_task(store: ShardedStore) -> bytes:
    with store:
        return store.load(STRIPE)


def test_a_sharded_store_is_attached_to_by_tls(
    client: Client, cluster: str, files: dict[str, str]
) -> None:
    pages = make_pages(2 * STRIPE)
    with ShardedStore(client) as store:
        store.store(0, pages)
        assert store.address.startswith("tls://")
        assert client.submit(pages_in_a_task, store).result() == pages[STRIPE].tobytes()
        with (
            Client(cluster, security=security_of(files), set_as_default=False) as other,
            ShardedStore.attach(store.address, other) as attached,
        ):
            assert attached.load(7) == pages[7].tobytes()
        with dask.config.set(settings_of(files)):
            with ShardedStore.attach(store.address) as attached:
                assert attached.load(7) == pages[7].tobytes()
            result = cli(
                "top", "--once", "--dask", cluster, env={**os.environ, **variables_of(files)}
            )
        assert f"{2 * STRIPE:,} pages" in result.stdout, result.stderr
        for address, settings in (
            (store.address, {}),
            (store.address.replace("tls", "tcp"), {"distributed.comm.require-encryption": True}),
        ):
            with dask.config.set(settings):
                with pytest.raises(ClusterLost, match="no scheduler at t"):
                    ShardedStore.attach(address, timeout_s=0.5)
                with pytest.raises(ClusterLost, match="no scheduler at t"):
                    asyncio.run(ShardedStore.aattach(address, timeout_s=0.5))


def test_values_of_workers_travel_by_tls(client: Client) -> None:
    values = {str(seed): make_pages(2000, seed=seed) for seed in range(4)}
    kept = client.scatter(values, hash=False)
    kinds = client.run(lambda dask_worker: (type(dask_worker.data).__name__, len(dask_worker.data)))
    assert sorted(kinds.values()) == [("WorkerData", 2), ("WorkerData", 2)]
    client.run(lambda dask_worker: dask_worker.data.evict())
    for name, value in client.gather(kept).items():
        np.testing.assert_array_equal(value, values[name])


def test_the_backend_travels_by_tls(client: Client, cluster: str, files: dict[str, str]) -> None:
    pages = make_pages(64)
    with Engine("zstd", level=19, backend=DaskBackend(client)) as engine:
        batch = CompressBatch(pages)
        engine.compress(batch)
        assert engine.statistics.compress.divided == 1, "it was sent"
    # By an address, Dask's own settings say with which certificate.
    with (
        dask.config.set(settings_of(files)),
        Engine("zstd", level=19, backend=DaskBackend(cluster)) as engine,
    ):
        restored = DecompressBatch(batch.outputs())
        engine.decompress(restored)
        np.testing.assert_array_equal(restored.pages, pages)


def test_a_client_without_a_trusted_certificate_is_not_let_in(
    cluster: str, files: dict[str, str], tmp_path: Path
) -> None:
    strange = make_certificate(tmp_path / "strange")
    tries: list[tuple[str, dict[str, Any]]] = [
        (cluster.replace("tls://", "tcp://"), {}),
        (cluster, {}),
        (cluster, settings_of(strange)),
        (cluster, settings_of({**strange, "ca-file": files["ca-file"]})),
        (cluster.replace("tls://", "tcp://"), {"distributed.comm.require-encryption": True}),
    ]
    for address, settings in tries:
        with (
            dask.config.set(settings),
            pytest.raises(BackendUnavailable, match="no Dask scheduler at"),
        ):
            Engine(backend=DaskBackend(address, connect_timeout_s=0.5))
