"""Give a Dask worker three times as much data as its memory limit, without and with batchzip.

The worker makes and keeps the chunks of a large array, then reads all of them again. Dask's own
data mapping writes chunks that do not fit to disk. batchzip's mapping compresses them in RAM, and
writes to disk only what does not fit there either.

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
    """Make a chunk of event counts: small numbers in 64-bit integers."""
    return np.random.default_rng(number).poisson(3, mib * MIB // 8)


def digest(chunk: npt.NDArray[np.int64]) -> int:
    """Return the sum of a chunk, which reads all of it."""
    return int(chunk.sum())


def bytes_on_disk(dask_worker: Worker) -> int:
    """Return the bytes of values on disk, as reported by the worker's data mapping."""
    data: Any = dask_worker.data  # both mappings have `spilled_total`
    disk: int = data.spilled_total.disk
    return disk


def run(limit: int, chunk_mib: int, data: Any) -> tuple[float, int, list[int]]:
    """Process three times the limit. Return the seconds, the peak bytes on disk, and the sums."""
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
    """Run the computation with both mappings and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--limit-mib", type=int, default=384, help="the worker's memory limit")
    parser.add_argument("--chunk-mib", type=int, default=8, help="size of a chunk")
    given = parser.parse_args()
    limit = given.limit_mib * MIB
    title = f"{3 * given.limit_mib} MiB of chunks in a worker with a limit of {given.limit_mib} MiB"
    table = Table(title=title)
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
    assert found[0] == found[1], "both mappings must give the same result"
    Console().print(table)


if __name__ == "__main__":
    main()
