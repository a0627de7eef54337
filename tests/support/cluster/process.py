"""A Dask cluster in a process of its own, over TCP: it leaves no thread or socket in the test's.

python process.py WORKERS        prints the scheduler's address; ends when stdin does
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from distributed import LocalCluster, utils
from support.paths import python_path

if TYPE_CHECKING:
    from collections.abc import Iterator


SCHEDULER_VARIABLE = "BATCHZIP_TEST_SCHEDULER"
"""Variable with the cluster's address: the backends' contract starts subprocesses, too."""


@contextlib.contextmanager
def dask_cluster(workers: int = 2, **environment: str) -> Iterator[str]:
    """Give the scheduler's address of a cluster whose workers are processes with one thread each.

    A worker that dies is replaced; `environment` can say otherwise, as Dask's own settings do.
    """
    process = subprocess.Popen(
        [sys.executable, __file__, str(workers)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": python_path(), **environment},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        try:
            address = process.stdout.readline().strip()
            assert address.startswith("tcp://"), "the cluster did not start"
            yield address
        finally:
            process.stdin.close()
            process.stdout.close()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


@contextlib.contextmanager
def offload_thread() -> Iterator[None]:
    """Have the thread that Dask keeps for long messages there from now on, and not for ever."""
    utils._offload_executor.submit(int).result()
    yield
    utils._offload_executor.shutdown()
    utils._offload_executor = ThreadPoolExecutor(1, thread_name_prefix="Dask-Offload")


def main() -> None:
    with LocalCluster(
        n_workers=int(sys.argv[1]),
        threads_per_worker=1,
        processes=True,
        protocol="tcp",
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",  # None would be a port of everybody's
    ) as cluster:
        sys.stdout.write(f"{cluster.scheduler_address}\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
