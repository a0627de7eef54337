"""A Dask worker with three times as much data as its memory limit: to disk, or compressed in RAM first.

Chunks of a large array are made and kept, then all of them are read again. With Dask's own data
mapping, what does not fit is written to disk; with batchzip's, it is compressed in RAM, and goes to disk
only where that is full, too.

    python examples/dask_spill.py [--limit-mib 384] [--chunk-mib 8]
"""

from __future__ import annotations

import argparse
import logging
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from distributed import Client, LocalCluster, wait
from rich.console import Console
from rich.table import Table

from batchzip.dask import WorkerData

if TYPE_CHECKING:
    import numpy.typing as npt
    from distributed import Worker

MIB = 1 << 20


def make_chunk(number: int, mib: int) -> npt.NDArray[np.int64]:
    """Events counted: small numbers in the wide integers that NumPy makes of them."""
    return np.random.default_rng(number).poisson(3, mib * MIB // 8)


def digest(chunk: npt.NDArray[np.int64]) -> int:
    """Read all of a chunk."""
    return int(chunk.sum())


def bytes_on_disk(dask_worker: Worker) -> int:
    """Bytes of values that are on disk, as the worker's data mapping says."""
    disk: int = dask_worker.data.spilled_total.disk  # type: ignore[attr-defined] # both mappings have it
    return disk


def run(limit: int, chunk_mib: int, data: Any) -> tuple[float, int, list[int]]:
    """Work through three times the limit; seconds, bytes on disk at most, and what was found."""
    chunks = 3 * limit // (chunk_mib * MIB)
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            memory_limit=limit,
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.ERROR,
            data=data,
        ) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(1)
        started = time.perf_counter()
        futures = client.map(make_chunk, range(chunks), mib=chunk_mib)
        wait(futures)
        on_disk = max(client.run(bytes_on_disk).values())
        found: list[int] = client.gather(client.map(digest, futures))
        on_disk = max(on_disk, *client.run(bytes_on_disk).values())
        return time.perf_counter() - started, on_disk, found


def main() -> None:
    """Run it both ways, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--limit-mib", type=int, default=384, help="the worker's memory limit")
    parser.add_argument("--chunk-mib", type=int, default=8, help="size of a chunk")
    given = parser.parse_args()
    limit = given.limit_mib * MIB
    table = Table(
        title=f"{3 * given.limit_mib} MiB of chunks in a worker with a limit of {given.limit_mib} MiB"
    )
    for heading in ("data", "run time s", "MiB on disk"):
        table.add_column(heading, justify="left" if heading == "data" else "right")
    found = []
    for name, data in (
        ("Dask's own: disk", None),
        ("batchzip: compressed, then disk", WorkerData),
    ):
        seconds, on_disk, result = run(limit, given.chunk_mib, data)
        table.add_row(name, f"{seconds:.1f}", f"{on_disk / MIB:.0f}")
        found.append(result)
    assert found[0] == found[1], "the same result both ways"
    Console().print(table)


if __name__ == "__main__":
    main()
