"""Compare Dask's own spilling with WorkerData, on workers with small memory limits.

    python examples/benchmarks/worker_data.py [--rounds 3] [--works persist-frame,…] [--data dask,…]
                                              [--json FILE | --show FILE]

Each work runs in a LocalCluster of its own, with workers and nannies in processes, and with each
kind of data in turn:

    dask        Dask's own spilling to disk, with its default spill-compression (lz4)
    dask-plain  Dask's own spilling without compression
    batchzip    WorkerData with its defaults
    zstd        WorkerData with zstd at level 1

    persist-frame   a frame (identifiers, keys, prices, text, noise), persisted and read twice
    persist-array   an array of counts, persisted and read twice
    persist-noise   an array of normally distributed numbers, persisted and read twice
    shuffle-tasks, shuffle-p2p   the frame shuffled by its key, as tasks and peer to peer
    rechunk-tasks, rechunk-p2p   the array of counts from rows to columns

The table shows medians over the rounds: seconds, MiB that the workers wrote to disk (write_bytes of
/proc/PID/io, which the kernel may write to the disk later), the largest resident memory of a
worker, the number and seconds of pauses of both workers together, and the workers that a nanny
killed. The seconds are those of the rounds that did not fail. The last column counts the rounds
that timed out or failed, and names the errors.

The kernel keeps written data in its page cache, which no worker's limit counts. As long as the
machine has memory for it, spilling to disk is free here. --p2p-buffer-mib limits the memory of
peer-to-peer shuffles, whose default is more than these workers have.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
from dask.sizeof import sizeof
from distributed import Client, LocalCluster, wait

from batchzip.bench.figure import Result
from batchzip.bench.script import Script, chosen, progress
from batchzip.dask import WorkerData
from batchzip.terminal.table import Table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from batchzip.bench.figure import Labels

MIB = 1 << 20

PAGE_SIZE = os.sysconf("SC_PAGESIZE")

WORDS = (
    "order customer invoice paid open shipped returned london paris berlin madrid rome express "
    "standard gift fragile weekly monthly first second late early north south east west"
)

ROWS = 1 << 16
"""Rows per partition."""

DATA: dict[str, tuple[Any, dict[str, Any]]] = {
    "dask": (None, {}),
    "dask-plain": (None, {"distributed.worker.memory.spill-compression": False}),
    "batchzip": (WorkerData, {}),
    "zstd": ((WorkerData, {"engine": {"algorithm": "zstd", "level": 1}}), {}),
}


class Run(NamedTuple):
    """The figures of one work with one kind of data."""

    seconds: float
    written: float
    peak: float
    pauses: int
    paused: float
    killed: int
    answer: Any


def make_frame(number: int) -> pd.DataFrame:
    """Make a partition of a table of orders."""
    rng = np.random.default_rng(number)
    # Numbers in the texts make most of them different.
    words = np.array(WORDS.split())[rng.integers(0, WORDS.count(" ") + 1, (4096, 6))]
    lines = [f"{' '.join(line)} {rng.integers(0, 10**6)}" for line in words]
    text = pd.array(lines, dtype="str").take(rng.integers(0, len(lines), ROWS))
    return pd.DataFrame(
        {
            "number": np.arange(ROWS) + number * ROWS,
            "key": rng.integers(0, 10_000, ROWS),
            "price": rng.gamma(2, 20, ROWS).round(2),
            "measured": rng.normal(size=ROWS),
            "text": text,
        }
    )


def digest_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a digest of a partition that does not depend on the order of its rows."""
    found = {
        "rows": len(frame),
        "numbers": frame["number"].sum(),
        "prices": frame["price"].sum(),
        "letters": frame["text"].str.len().sum(),
    }
    return pd.DataFrame(found, index=[0], dtype=float)


def frame_of(mib: int) -> dd.DataFrame:
    """Make a frame of about `mib` MiB."""
    parts = max(2, mib * MIB // sizeof(make_frame(0)))
    frame: dd.DataFrame = dd.from_map(make_frame, range(parts), meta=make_frame(0).iloc[:0])
    return frame


def array_of(mib: int, *, noise: bool = False) -> da.Array:
    """Make an array of 64-bit numbers, in chunks of rows of 8 MiB."""
    parts, columns = mib // 8, 4096

    def make_chunk(block_id: tuple[int, int]) -> npt.NDArray[Any]:
        rng = np.random.default_rng(block_id[0])
        shape = (MIB // columns, columns)
        return rng.normal(size=shape) if noise else rng.poisson(3, shape)

    array: da.Array = da.map_blocks(
        make_chunk,
        chunks=((MIB // columns,) * parts, (columns,)),
        dtype=np.float64 if noise else np.int64,
        meta=np.empty((0, 0)),
    )
    return array


def read_frame(frame: dd.DataFrame) -> dd.DataFrame:
    """Digest each partition."""
    digests: dd.DataFrame = frame.map_partitions(
        digest_frame, meta=digest_frame(make_frame(0).iloc[:1])
    )
    return digests


def answer_of(client: Client, collection: Any, timeout: float) -> Any:
    """Compute a small result within the time limit."""
    return client.compute(collection).result(timeout)


def persisted_frame(client: Client, mib: int, timeout: float) -> Any:
    """Persist a frame and read it twice."""
    frame = frame_of(mib).persist()
    wait(frame, timeout)
    return [answer_of(client, read_frame(frame), timeout).sum().round(0).tolist() for _ in range(2)]


def persisted_array(client: Client, mib: int, timeout: float, *, noise: bool = False) -> Any:
    """Persist an array and read it twice."""
    array = array_of(mib, noise=noise).persist()
    wait(array, timeout)
    return [round(float(answer_of(client, array.sum(), timeout)), 3) for _ in range(2)]


def persisted_noise(client: Client, mib: int, timeout: float) -> Any:
    """Persist an incompressible array and read it twice."""
    return persisted_array(client, mib, timeout, noise=True)


def shuffled(method: str) -> Callable[[Client, int, float], Any]:
    """Shuffle the frame by its key."""

    def work(client: Client, mib: int, timeout: float) -> Any:
        frame = frame_of(mib).shuffle("key", shuffle_method=method)
        return answer_of(client, read_frame(frame), timeout).sum().round(0).tolist()

    return work


def rechunked(method: str) -> Callable[[Client, int, float], Any]:
    """Rechunk the array from rows to columns."""

    def work(client: Client, mib: int, timeout: float) -> Any:
        array = array_of(mib)
        columns = array.rechunk((-1, max(1, 4096 * 8 // mib)), method=method)
        return answer_of(client, columns.max(axis=0).sum(), timeout)

    return work


WORKS: dict[str, Callable[[Client, int, float], Any]] = {
    "persist-frame": persisted_frame,
    "persist-array": persisted_array,
    "persist-noise": persisted_noise,
    "shuffle-tasks": shuffled("tasks"),
    "shuffle-p2p": shuffled("p2p"),
    "rechunk-tasks": rechunked("tasks"),
    "rechunk-p2p": rechunked("p2p"),
}


class Watch:
    """Samples the memory and the written bytes of a cluster's workers."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.peak = 0
        self._cluster = cluster
        self._written: dict[int, int] = {}

    @property
    def written(self) -> int:
        """Bytes that all workers wrote, including those that ended."""
        return sum(self._written.values())

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Sample every 50 ms."""
        done = threading.Event()

        def sample() -> None:
            while not done.wait(0.05):
                for nanny in list(self._cluster.workers.values()):
                    with suppress(OSError, IndexError):  # it has just ended, or has not started
                        self._look_at(nanny.pid)

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _look_at(self, pid: int | None) -> None:
        process = Path(f"/proc/{pid}")
        pages = int((process / "statm").read_text("ascii").split()[1])
        self.peak = max(self.peak, pages * PAGE_SIZE)
        io = dict(line.split(": ") for line in (process / "io").read_text("ascii").splitlines())
        self._written[pid or 0] = int(io["write_bytes"])


def pauses_in(scheduler: Any) -> tuple[int, float, int]:
    """Return the number and seconds of pauses, and the number of killed workers."""
    count, seconds, killed, now = 0, 0.0, 0, time.time()
    for topic, events in scheduler.get_events().items():
        since = None
        for at, event in events:
            if topic == "worker-restart-memory":
                killed += 1
            elif isinstance(event, dict) and event.get("action") == "worker-status-change":
                if event["status"] == "paused" and since is None:
                    count, since = count + 1, at
                elif event["status"] != "paused" and since is not None:
                    seconds, since = seconds + at - since, None
        if since is not None:
            seconds += now - since
    return count, seconds, killed


def run(work: str, data: str, given: argparse.Namespace) -> Run:
    """Run a work in a cluster of its own."""
    mapping, settings = DATA[data]
    if given.p2p_buffer_mib:
        limit = f"{given.p2p_buffer_mib} MiB"
        settings = {
            **settings,
            "distributed.p2p.comm.buffer": limit,
            "distributed.p2p.storage.buffer": limit,
        }
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=given.workers,
            threads_per_worker=1,
            memory_limit=given.limit_mib * MIB,
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
            data=mapping,
        ) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(given.workers)
        watch = Watch(cluster)
        started = time.perf_counter()
        with watch.watching():
            try:
                answer = WORKS[work](client, given.mib, given.timeout_s)
                seconds = time.perf_counter() - started
            except Exception as error:  # noqa: BLE001 - TimeoutError, KilledWorker and others
                answer, seconds = type(error).__name__, float("nan")
            pauses, paused, killed = pauses_in(cluster.scheduler)
    return Run(seconds, watch.written / MIB, watch.peak / MIB, pauses, paused, killed, answer)


FIGURES = ("s", "MiB written", "peak MiB", "pauses", "paused s", "killed")
FAILED = "failed"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--works", type=chosen(WORKS), default=list(WORKS), help="with commas")
    parser.add_argument("--data", type=chosen(DATA), default=list(DATA), help="with commas")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit-mib", type=int, default=384, help="each worker's memory limit")
    parser.add_argument("--mib", type=int, default=640, help="of the frame, or the array")
    parser.add_argument("--timeout-s", type=float, default=120.0, help="for one computation")
    parser.add_argument("--p2p-buffer-mib", type=int, default=0, help="0: Dask's default")


def measure(options: argparse.Namespace) -> Result:
    """Run all works with all kinds of data, in turns."""
    names = "mib", "workers", "limit_mib", "rounds", "timeout_s", "p2p_buffer_mib"
    result = Result({name: getattr(options, name) for name in names}, {"worker data": "dask"})
    result.machine["versions"] |= {"dask": dask.__version__, "pandas": pd.__version__}
    runs: dict[tuple[str, str], list[Run]] = {}
    for turn in range(options.rounds):
        for work in options.works:
            for kind in options.data:
                last = run(work, kind, options)
                runs.setdefault((work, kind), []).append(last)
                progress(f"round {turn + 1}, {work}, {kind}: {last.seconds:.1f} s")
    for work in options.works:
        answers = [
            one.answer for kind in options.data for one in runs[work, kind] if not _failed(one)
        ]
        assert all(answer == answers[0] for answer in answers), f"{work}: answers differ: {answers}"
    for (work, kind), some in runs.items():
        labels: Labels = {"benchmark": "worker data", "work": work}
        errors = sorted({one.answer for one in some if _failed(one)})
        result.add(labels, kind, FAILED, [_failed(one) for one in some], remark=", ".join(errors))
        if done := [one.seconds for one in some if not _failed(one)]:
            result.add(labels, kind, FIGURES[0], done)
        for name, values in zip(
            FIGURES[1:], zip(*(one[1:6] for one in some), strict=True), strict=True
        ):
            result.add(labels, kind, name, values)
    return result


def _failed(one: Run) -> bool:
    return math.isnan(one.seconds)


def tables(result: Result) -> Iterator[Table]:
    """Yield a table with a row per work and kind of data."""
    of = result.settings
    table = Table(f"{of['mib']} MiB in {of['workers']} workers of {of['limit_mib']} MiB")
    for heading in ("work", "data", *FIGURES, FAILED):
        table.add_column(heading, left=heading in {"work", "data"})
    for work in result.names("work"):
        figures = {(one.contender, one.quantity): one for one in result.of(work=work)}
        for kind in dict.fromkeys(name for name, _ in figures):
            failed = figures[kind, FAILED]
            count = int(sum(failed.values))
            cells = []
            for name in FIGURES:
                one = figures.get((kind, name))
                value = math.nan if one is None else one.median
                cells.append(
                    "-" if one is None else f"{value:.1f}" if value < 10 else f"{value:.0f}"
                )
            told = f"{count} of {failed.rounds}: {failed.remark}" if count else ""
            table.add_row(str(work), kind, *cells, told)
        table.add_section()
    yield table


SCRIPT = Script(__doc__, add_options, measure, tables)

if __name__ == "__main__":
    SCRIPT.main()
