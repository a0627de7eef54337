"""Find out when the backend `dask` pays, on a cluster of simulated hosts with slow CPUs and links.

    sudo python examples/benchmarks/dask_hosts.py [--hosts 1,2,4] [--algorithms lz4,zstd:1,…]
                                                  [--batches 16,256,4096] [--cpu 20]
                                                  [--caller-cpu 20] [--mbit 1000] [--seconds 3]
                                                  [--alone] [--json FILE | --show FILE]

**This is a simulation.** All hosts are this machine. Each has a network namespace, connected by a
bridge, and a control group with --cpu % of one CPU. There are hosts for the caller, the scheduler,
and 1, 2 and 4 workers. Hosts are therefore slow, share their caches, and have no distance: sending
takes CPU time at both ends and a share of --mbit Mbit/s per host, but no time on the way. tc netem
adds a delay with --delay-ms, if the kernel supports it. All hosts together should need less than
the machine has: six hosts at 20 % need 1.2 CPUs. Only ratios within one run are meaningful.

The figures are MB of pages compressed per second. The caller keeps 8 MiB of batches in flight, at
least two. With --alone, it waits for each batch. "local" is the caller's host alone with the
backend `sequential`. "sent" is the cluster with `DaskBackend(local="never")`. "auto" is
`DaskBackend()`, which chooses the place. The table shows its choice.

Needs root, `ip` and `tc` (iproute2), and control groups of either version.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import batchzip
from batchzip.bench.algorithm import parse_algorithms
from batchzip.bench.figure import Result
from batchzip.bench.pages import PAGE, Source, work_pages
from batchzip.bench.script import Script, integers, progress
from batchzip.errors import BadArgument
from batchzip.terminal.table import Table
from batchzip_dask import DaskBackend

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batchzip.backend import Backend
    from batchzip.bench.algorithm import Algorithm
    from batchzip.bench.figure import Labels
    from batchzip.bench.pages import Pages
    from batchzip.request import Request

UNDER_WAY_BYTES = 8 << 20
PERIOD_US = 10_000
"""Period of the CPU quota. With the kernel's 100 ms, a host would stand still most of the time."""

_NAME = f"bz{os.getpid() % 100_000}"
_NETWORK = "10.77.0"
_PORT = 8786


@dataclass(frozen=True, slots=True)
class Speed:
    """A cell of the table."""

    algorithm: str
    batch: int
    way: str
    hosts: int
    mb_s: float
    chosen: str = ""
    """The place that "auto" chose last."""


# The hosts.


def _sh(*words: str) -> None:
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def _network() -> Iterator[str]:
    bridge = f"{_NAME}br"
    _sh("ip", "link", "add", bridge, "type", "bridge")
    try:
        _sh("ip", "link", "set", bridge, "up")
        yield bridge
    finally:
        _sh("ip", "link", "del", bridge)


class Host:
    """A network namespace with one address, and a control group."""

    def __init__(self, number: int, bridge: str, options: argparse.Namespace) -> None:
        self.address = f"{_NETWORK}.{number}"
        self._name = f"{_NAME}h{number}"
        self._options = options
        self._processes: list[subprocess.Popen[str]] = []
        inside, outside = f"{_NAME}i{number}", f"{_NAME}o{number}"
        with contextlib.ExitStack() as undo:
            _sh("ip", "netns", "add", self._name)
            undo.callback(_sh, "ip", "netns", "del", self._name)
            _sh("ip", "link", "add", outside, "type", "veth", "peer", "name", inside)
            undo.callback(_sh, "ip", "link", "del", outside)
            _sh("ip", "link", "set", inside, "netns", self._name)
            _sh("ip", "link", "set", outside, "master", bridge, "up")
            within = "ip", "-n", self._name
            _sh(*within, "addr", "add", f"{self.address}/24", "dev", inside)
            _sh(*within, "link", "set", inside, "up")
            _sh(*within, "link", "set", "lo", "up")
            self._limit_link(("tc", "-n", self._name), inside)
            self._limit_link(("tc",), outside)
            self._group = _make_group(self._name)
            undo.callback(_remove_group, self._group)
            undo.callback(self._end)
            self.close = undo.pop_all().close
            """End the processes of the host, then the host."""

    def _limit_link(self, tc: tuple[str, ...], device: str) -> None:
        add = *tc, "qdisc", "add", "dev", device
        parent = ["root"]
        if self._options.delay_ms:
            # Half of the delay at either end of a link: a round trip between hosts has it twice.
            delay = f"{self._options.delay_ms / 4}ms"
            _sh(*add, "root", "handle", "1:", "netem", "delay", delay, "limit", "100000")
            parent = ["parent", "1:"]
        if self._options.mbit:
            rate = f"{self._options.mbit}mbit"
            _sh(*add, *parent, "tbf", "rate", rate, "burst", "1mb", "latency", "200ms")

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Run a command on the host. `limit` limits its CPU."""
        process = subprocess.Popen(
            ["ip", "netns", "exec", self._name, *words],  # noqa: S607 - found by PATH
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if self._options.verbose else subprocess.DEVNULL,
            text=True,
        )
        self._processes.append(process)
        (self._group / "cgroup.procs").write_text(str(process.pid))
        return process

    def limit(self, percent: int) -> None:
        """Limit the host to a share of a CPU from now on."""
        period = max(PERIOD_US, 100_000 // percent)  # the minimum of a quota is 1 ms
        quota = period * percent // 100
        if (self._group / "cpu.max").exists():
            (self._group / "cpu.max").write_text(f"{quota} {period}")
        else:
            (self._group / "cpu.cfs_period_us").write_text(str(period))
            (self._group / "cpu.cfs_quota_us").write_text(str(quota))

    def _end(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()


_ROOT = Path("/sys/fs/cgroup")


def _groups() -> Path:
    """Return the folder for new control groups."""
    return (_ROOT if (_ROOT / "cgroup.controllers").exists() else _ROOT / "cpu") / _NAME


def _make_group(name: str) -> Path:
    group = _groups() / name
    group.mkdir()
    return group


def _remove_group(group: Path) -> None:
    deadline = time.monotonic() + 5
    while True:  # a killed process leaves its group a moment later
        try:
            group.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


@contextlib.contextmanager
def _all_groups() -> Iterator[None]:
    top = _groups()
    top.mkdir()
    try:
        # Other processes of the machine must not take the hosts' CPU time.
        if (top / "cgroup.controllers").exists():
            (_ROOT / "cgroup.subtree_control").write_text("+cpu")
            (top / "cgroup.subtree_control").write_text("+cpu")
            (top / "cpu.weight").write_text("10000")
        else:
            (top / "cpu.shares").write_text("100000")
        yield
    finally:
        top.rmdir()


# The caller: a process of its own on its host.


def _rate(
    backend: str | Backend,
    algorithm: Algorithm,
    batch: int,
    pages: Pages,
    alone: bool,
    seconds: float,
) -> tuple[float, str]:
    """Return the MB per second of an engine, and its last choice of a place."""
    most = 1 if alone else max(2, UNDER_WAY_BYTES // (batch * 4096))
    room = threading.Semaphore(most)
    done = 0
    lock = threading.Lock()

    def over(request: Request[batchzip.CompressBatch]) -> None:
        nonlocal done
        with lock:
            done += int((request.batch.dlens > 0).sum())
        room.release()

    engine = batchzip.Engine(algorithm.name, backend=backend, **algorithm.parameters)
    with engine:
        warm = batchzip.CompressBatch(pages[:batch])
        engine.submit(warm, deadline_s=1.0).wait()  # warm up
        began = time.monotonic()
        end = began + seconds
        at = 0
        while (left := end - time.monotonic()) > 0 and room.acquire(timeout=left):
            at = at + batch if at + 2 * batch <= len(pages) else 0
            # Pages that are unfinished at the end do not count.
            request = engine.submit(
                batchzip.CompressBatch(pages[at : at + batch]),
                deadline_s=max(0.0, end - time.monotonic()),
            )
            request.add_done_callback(over)
            del request
        for _ in range(most):
            room.acquire()
        took = time.monotonic() - began
        placements = engine.statistics.placements
        print(*placements, file=sys.stderr, flush=True)
    return done * 4096 / took / 1e6, placements[-1].place if placements else ""


def _call(options: argparse.Namespace) -> None:
    """Measure each request, and answer with a line of JSON."""
    pages = np.load(options.pages)
    print("ready", flush=True)
    sys.stdin.readline()
    for algorithm in parse_algorithms(options.algorithms):
        for batch in options.batches:
            if not options.hosts:
                ways: list[tuple[str, str | Backend]] = [("local", "sequential")]
            else:
                ways = [
                    ("sent", DaskBackend(options.address, local="never")),
                    ("auto", DaskBackend(options.address)),
                ]
            for way, backend in ways:
                # The engine chooses after trials, which take seconds.
                seconds = options.seconds * (3 if way == "auto" else 1)
                mb_s, chosen = _rate(backend, algorithm, batch, pages, options.alone, seconds)
                speed = Speed(algorithm.label, batch, way, options.hosts, mb_s, chosen)
                print(json.dumps(asdict(speed)), flush=True)


# The whole simulation.


def on_hosts(hosts: int, pages: str, bridge: str, options: argparse.Namespace) -> Iterator[Speed]:
    """Measure with a number of workers. 0 means the caller's host alone."""
    with contextlib.ExitStack() as stack:
        made = []
        for number in range(1, 3 + hosts):
            made.append(Host(number, bridge, options))
            stack.callback(made[-1].close)
        caller, scheduler, *workers = made
        address = f"tcp://{scheduler.address}:{_PORT}"
        python = sys.executable
        common = "--no-dashboard", "--host"
        if workers:
            scheduler.start(
                python, "-m", "dask", "scheduler", *common, scheduler.address, "--port", str(_PORT)
            )
        for worker in workers:
            worker.start(
                python, "-m", "dask", "worker", address, *common, worker.address,
                "--nthreads", "1", "--no-nanny",
            )  # fmt: skip
        if workers:
            waits = f"from distributed import Client; Client({address!r}).wait_for_workers({hosts})"
            if caller.start(python, "-c", waits).wait(120):
                raise RuntimeError("the cluster did not start: --verbose shows why")
        names = "algorithms", "batches", "seconds", "alone"
        job = {name: getattr(options, name) for name in names}
        job |= {"address": address, "pages": pages, "hosts": hosts}
        measuring = caller.start(python, __file__, "--call", json.dumps(job))
        assert measuring.stdout is not None
        assert measuring.stdin is not None
        if measuring.stdout.readline() != "ready\n":
            raise RuntimeError("the caller did not start: --verbose shows why")
        for host in made:
            host.limit((options.caller_cpu if host is caller else 0) or options.cpu)
        measuring.stdin.write("go\n")
        measuring.stdin.flush()
        for line in measuring.stdout:
            yield Speed(**json.loads(line))
        if measuring.wait():
            raise RuntimeError("the caller failed: --verbose shows why")


QUANTITY = "µs per page"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--hosts", type=integers, default=[1, 2, 4], help="numbers of workers")
    parser.add_argument("--algorithms", default="lz4,zstd:1,zstd:9,zstd:19,brotli")
    parser.add_argument("--batches", type=integers, default=[16, 256, 4096])
    parser.add_argument("--cpu", type=int, default=20, help="%% of one CPU that a host has")
    parser.add_argument("--caller-cpu", type=int, default=0, help="as --cpu, of the caller's")
    parser.add_argument("--mbit", type=int, default=1000, help="of a host's link; 0: no limit")
    parser.add_argument("--delay-ms", type=float, default=0, help="of a round trip, by tc netem")
    parser.add_argument(
        "--seconds", type=float, default=3, help="of a measurement; three times for auto"
    )
    parser.add_argument("--alone", action="store_true", help="one batch at a time")
    parser.add_argument("--verbose", action="store_true", help="show what the hosts say")


def measure(options: argparse.Namespace) -> Result:
    """Measure with the caller's host alone, and then with each number of workers."""
    if os.geteuid():
        raise BadArgument("network namespaces and control groups need root: use sudo")
    names = "cpu", "caller_cpu", "mbit", "delay_ms", "seconds", "alone"
    result = Result({name: getattr(options, name) for name in names}, {"hosts": "local"})
    result.note("a simulation: network namespaces and control groups of one machine, no distance")
    with tempfile.TemporaryDirectory() as folder, _network() as bridge, _all_groups():
        pages = f"{folder}/pages.npy"
        np.save(pages, work_pages(Source(), 2 * max(options.batches)))
        for hosts in [0, *options.hosts]:
            for one in on_hosts(hosts, pages, bridge, options):
                progress(str(one))
                name = f"{one.way}, {hosts}" if hosts else one.way
                labels: Labels = {"benchmark": "hosts", "algorithm": one.algorithm}
                us = [PAGE / one.mb_s]
                result.add({**labels, "batch": one.batch}, name, QUANTITY, us, remark=one.chosen)
    return result


def tables(result: Result) -> Iterator[Table]:
    """Yield a table with a row per algorithm and batch size."""
    of = result.settings
    callers = "waits for each batch" if of["alone"] else "has 8 MiB in flight"
    link = f"{of['mbit']} Mbit/s" if of["mbit"] else "no limit"
    busy = f", the caller's {of['caller_cpu']} %" if of["caller_cpu"] else ""
    table = Table(
        f"MB/s of pages, simulated hosts with {of['cpu']} % of a CPU each{busy}, "
        f"links of {link}; the caller {callers}"
    )
    table.add_column("")
    table.add_column("batch")
    names = list(dict.fromkeys(one.contender for one in result.figures))
    for name in names:
        table.add_column(name)
    for algorithm in result.names("algorithm"):
        for batch in result.names("batch", algorithm=algorithm):
            found = {one.contender: one for one in result.of(algorithm=algorithm, batch=batch)}
            cells = (
                f"{PAGE / found[name].median:.2f} {found[name].remark}".rstrip() for name in names
            )
            table.add_row(str(algorithm), str(batch), *cells)
    yield table


SCRIPT = Script(__doc__, add_options, measure, tables)

if __name__ == "__main__":
    if sys.argv[1:2] == ["--call"]:  # the caller's process on its host
        _call(argparse.Namespace(**json.loads(sys.argv[2])))
    else:
        SCRIPT.main()
