"""WorkerData by the commands of Dask: `dask scheduler`, and `dask worker` with its nanny."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from distributed import Client, wait
from support.cluster.fixtures import offloading  # noqa: F401 - used by every test
from support.paths import ROOT, python_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distributed import Worker

SETTINGS = ROOT / "examples" / "dask_worker_data.yaml"

pytestmark = pytest.mark.slow


@contextlib.contextmanager
def dask_command(
    log: Path, *arguments: str, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command of Dask's until the end of the block, and see that it ends without an error."""
    # Workers import this module, too, for the functions that they run.
    given = environment.get("PYTHONPATH", "")
    environment["PYTHONPATH"] = python_path(given, str(Path(__file__).parent))
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-P", "-m", "dask", *arguments, "--no-dashboard"],
            stdout=output,
            stderr=output,
            env={**os.environ, **environment},
        ) as process,
    ):
        try:
            yield process
            process.terminate()
            assert process.wait(60) == 0, log.read_text("utf-8")
        finally:
            process.kill()


@contextlib.contextmanager
def a_worker(folder: Path, *options: str, **environment: str) -> Iterator[Client]:
    """Start a scheduler and a worker, and give a client of theirs."""
    file = str(folder / "scheduler.json")
    with (
        dask_command(
            folder / "scheduler.log", "scheduler", "--port", "0", "--scheduler-file", file
        ),
        dask_command(
            folder / "worker.log",
            *("worker", "--scheduler-file", file, "--nthreads", "1", "--memory-limit", "1 GiB"),
            *("--local-directory", str(folder / "local"), *options),
            **environment,
        ),
        Client(scheduler_file=file) as client,
    ):
        client.wait_for_workers(1, timeout=60)
        yield client


def counts(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).poisson(3, 1 << 17)


def all_spilled(dask_worker: Worker) -> tuple[str, int, str]:
    """Have the worker spill all; what its data is, values that are left live, and its engine."""
    data: Any = dask_worker.data
    while data.evict() >= 0:
        pass
    store = getattr(data, "_values", None) and data._values.store
    return type(data).__name__, len(data.fast), repr(store.engine.codec) if store else ""


def holds(dask_worker: Worker) -> int:
    """Return the descriptors that the worker has of files without names in its directory."""
    folder = dask_worker.local_directory
    targets = []
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            targets.append(str(fd.readlink()))
    return sum(target.startswith(folder) and target.endswith("(deleted)") for target in targets)


def test_a_worker_with_the_preload_compresses_and_so_does_the_one_after_its_death(
    tmp_path: Path,
) -> None:
    with a_worker(
        tmp_path,
        *("--preload", "batchzip.dask.preload"),
        DASK_BATCHZIP__WORKER_DATA__ENGINE__ALGORITHM="zstd",
        DASK_BATCHZIP__WORKER_DATA__MAX_DISK_BYTES="1000000000",
    ) as client:
        for number in (1, 2):
            chunks = client.map(counts, range(8), pure=False)
            wait(chunks)
            ((kind, live, codec),) = client.run(all_spilled).values()
            assert (kind, live) == ("WorkerData", 0)
            assert codec.startswith(("Zstd", "Shuffled(codec=Zstd"))
            assert list(client.run(holds).values()) > [0]
            sums = client.gather(client.map(np.sum, chunks, pure=False))
            assert sums == [counts(seed).sum() for seed in range(8)]
            if number == 1:
                (pid,) = client.run(os.getpid).values()
                os.kill(pid, signal.SIGKILL)
    log = (tmp_path / "worker.log").read_text("utf-8")
    assert log.count("WorkerData compresses values in memory before any are written to disk") == 2
    left = [path.name for path in (tmp_path / "local").rglob("*") if path.is_file()]
    assert set(left) <= {"global.lock", "purge.lock"}, "Dask's own"


def test_a_worker_without_batchzip_says_so_and_works(tmp_path: Path) -> None:
    shadow = tmp_path / "shadow" / "batchzip"
    shadow.mkdir(parents=True)
    (shadow / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'batchzip'\")")
    with a_worker(tmp_path, DASK_CONFIG=str(SETTINGS), PYTHONPATH=str(shadow.parent)) as client:
        assert client.submit(sum, [1, 2]).result() == 3
        assert list(client.run(lambda dask_worker: type(dask_worker.data).__name__).values()) == [
            "SpillBuffer"
        ]
    log = (tmp_path / "worker.log").read_text("utf-8")
    assert (
        "This worker has no WorkerData and uses Dask's own spilling: No module named 'batchzip'. "
        "To install it: pip install 'batchzip[dask]'"
    ) in log


def test_the_settings_in_a_file_are_those_of_every_worker(tmp_path: Path) -> None:
    with a_worker(tmp_path, DASK_CONFIG=str(SETTINGS)) as client:
        (pid,) = client.run(os.getpid).values()
        wait(client.map(counts, range(2)))
        ((kind, live, codec),) = client.run(all_spilled).values()
        assert (kind, live) == ("WorkerData", 0)
        assert "Lz4" in codec
    assert not Path(f"/proc/{pid}").exists()
