"""Measure a sharded store on Dask clusters over TCP: hard cases, µs per page, bytes on the wire.

    python examples/benchmarks/cluster.py [--parts cases,latency,throughput] [--rounds 3]
                                          [--cases "recover race,…"] [--seconds 1]
                                          [--workers 1,2,4] [--clients 1,2,4]
                                          [--json FILE | --show FILE]

cases       Situations that failed once, each on a cluster of its own. The table shows how many
            pages were acknowledged, how many exist, how many were lost with and without being
            reported, and the messages that the user got.
latency     µs of single calls, alone and during another client's stream of folios of 4,096 pages,
            which once queued loads, and of many concurrent calls from threads and from coroutines.
            Two workers.
throughput  µs per page of all clients together, each in a process: storing folios of 256 pages,
            loading 256 random pages by one call, and single loads. For comparison,
            `client.scatter` and `gather` of the same pages, compressed with lz4 in the client, one
            object per folio, through the scheduler and directly. The bytes per page on the wire are
            the kernel's counts for all TCP connections of the client.

The scheduler, the workers (one nanny and one thread each) and the clients are processes of this
machine. Contenders take turns. A figure is the median of the rounds. A long run with faults is
`python tests/stress/cluster_faults.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from distributed import Client, LocalCluster

from batchzip.bench.figure import Result
from batchzip.bench.pages import add_source, source_of, work_pages
from batchzip.bench.rounds import in_turns
from batchzip.bench.script import Script, chosen, integers, progress
from batchzip.dask import ShardedStore
from batchzip.errors import BatchzipError, ClusterLost, PageNotStored, PagesLost
from batchzip.terminal.table import Table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

    from batchzip.bench.figure import Figure, Labels

PARTS = ("cases", "latency", "throughput")
STRIPE = 512
PAGE = 4096
WAIT_S = 60.0

LOAD_GOAL_MS = 5.0
"""Maximum p99 of a single load during a stream of large folios."""

ONES = ("load", "in", "invalidate", "store 1", "gather 1", "scatter 1")
MANY = {"aload, 64 under way": ("aload", 64), "astore, 64 under way": ("astore", 64)} | {
    "load, 8 threads": ("load", 8),
    "store 1, 8 threads": ("store 1", 8),
}
STREAMS: dict[str, dict[str, Any]] = {
    "lz4": {"algorithm": "lz4"},
    "zstd 19": {"algorithm": "zstd", "level": 19},
}
WAYS = ("store", "load_many", "load", "scatter", "scatter direct", "gather", "gather direct")
BESIDE = {
    "scatter": "store",
    "scatter direct": "store",
    "gather": "load_many",
    "gather direct": "load_many",
}

_OTHER = """
import sys
from importlib.machinery import PathFinder

class Other:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "batchzip":
            return None
        spec = PathFinder.find_spec(name, [{folder!r}])
        if spec is None:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        return spec

sys.meta_path.insert(0, Other)
"""


class Cluster:
    """A cluster of `dask scheduler` and `dask worker` processes, which end with this object."""

    def __init__(self, workers: int, *, memory_limit: str = "1GiB") -> None:
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.folder = Path(self._folder.name)
        self._memory_limit = memory_limit
        self.commands: list[subprocess.Popen[bytes]] = []
        options = ("--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0")
        self._start("scheduler", *options, "--no-dashboard")
        self.address = self._said("scheduler", r"Scheduler at:\s*(tcp://\S+)")
        for _ in range(workers):
            self.add()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for command in reversed(self.commands):
            command.terminate()
        for command in self.commands:
            with contextlib.suppress(subprocess.TimeoutExpired):
                command.wait(10)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(command.pid, signal.SIGKILL)
            command.wait()
        self._folder.cleanup()

    def _start(self, name: str, *arguments: str, **environment: str) -> None:
        kind = name.split("-", maxsplit=1)[0]
        with (self.folder / f"{name}.log").open("wb") as log:
            self.commands.append(
                subprocess.Popen(
                    [sys.executable, "-m", f"distributed.cli.dask_{kind}", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, **environment},
                    process_group=0,
                )
            )

    def _said(self, name: str, pattern: str) -> str:
        """Wait until a command has printed a text."""
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            found = re.search(pattern, (self.folder / f"{name}.log").read_text(errors="replace"))
            if found:
                return found[1]
            time.sleep(0.05)
        raise TimeoutError(f"{name} does not start")

    def add(self, *options: str, **environment: str) -> str:
        """Start a worker. Return its address when it has one."""
        name = f"worker-{len(self.commands)}"
        self._start(
            name,
            *(self.address, "--host", "127.0.0.1", "--name", name, "--no-dashboard"),
            *("--nthreads", "1", "--memory-limit", self._memory_limit),
            *("--local-directory", str(self.folder / name), *options),
            **environment,
        )
        return self._said(name, r"Start worker at:\s*(tcp://\S+)")

    @contextlib.contextmanager
    def client(self, workers: int | None = None) -> Iterator[Client]:
        """Return a client when the cluster has a number of workers."""
        with Client(self.address, set_as_default=False) as client:
            client.wait_for_workers(workers or len(self.commands) - 1, timeout=WAIT_S)
            yield client


def other_batchzip(folder: Path, version: str | None) -> dict[str, str]:
    """Return variables with which Python finds a batchzip of another version, or none."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_OTHER.format(folder=str(folder)))
    if version:
        (folder / "batchzip").mkdir()
        (folder / "batchzip" / "__init__.py").write_text(f'__version__ = "{version}"\n')
    return {"PYTHONPATH": str(folder)}


# Cases.


class Case:
    """The result of a case: numbers and messages."""

    def __init__(self) -> None:
        self.numbers: dict[str, float] = {}
        self.said: list[str] = []

    def count(self, what: str, number: float = 1) -> None:
        """Add to a number."""
        self.numbers[what] = self.numbers.get(what, 0) + number

    def say(self, text: object) -> None:
        """Record a message that the user gets. Where Python is does not matter."""
        self.said.append(" ".join(str(text).replace(sys.executable, "python").split()))

    def look(self, store: ShardedStore, indices: Sequence[int], named: set[int]) -> None:
        """Count which acknowledged pages exist, were reported as lost, or are missing."""
        for index in indices:
            try:
                store.load(index)
                self.count("there")
            except PagesLost as lost:
                self.count("named" if any(index in part for part in lost.indices) else "UNNAMED")
            except PageNotStored:
                self.count("named" if index in named else "UNNAMED")


def _kill_one(store: ShardedStore) -> None:
    """Kill the worker with the most pages, as soon as any worker has pages."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        with contextlib.suppress(ClusterLost, ProcessLookupError):
            there = [shard for shard in store.shards if shard.lost is None and shard.pages]
            if there:
                os.kill(max(there, key=lambda shard: shard.pages).pid, signal.SIGKILL)
                return
        time.sleep(0.1)
    raise TimeoutError("no shard has pages")


def _wait_until_lost(store: ShardedStore, indices: Sequence[int]) -> set[int]:
    """Load pages until one is lost. Return the pages that are reported as lost."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        try:
            store.load_many(indices)
        except PagesLost as lost:
            return {index for part in lost.indices for index in part}
    raise TimeoutError("no page is lost")


def _recovered(store: ShardedStore) -> set[int]:
    end = time.monotonic() + WAIT_S
    while True:
        try:
            return {index for part in store.recover() for index in part}
        except ClusterLost:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def recover_race(case: Case) -> None:
    """Recover in four threads at once and store right after. Check all acknowledged pages."""
    with Cluster(2) as cluster, cluster.client() as client, ShardedStore(client) as store:
        mine = [[STRIPE * (4 * n + thread) for n in range(4)] for thread in range(4)]
        everything = [index for indices in mine for index in indices]
        for index in everything:
            store.store(index, bytes(PAGE))
        for _ in range(3):
            _kill_one(store)
            _wait_until_lost(store, everything)
            gate = threading.Barrier(4)

            def use(indices: list[int], gate: threading.Barrier = gate) -> None:
                gate.wait()
                time.sleep(0.01 * mine.index(indices))
                _recovered(store)  # pages stored from here on must exist, whatever it reports
                for index in indices:
                    store.store(index, bytes(PAGE))

            with ThreadPoolExecutor(4) as threads:
                list(threads.map(use, mine))
            case.count("acknowledged", len(everything))
            case.look(store, everything, set())


def store_beside_recover(case: Case) -> None:
    """Store folios over eight stripes while another thread recovers and workers are killed."""
    with Cluster(2) as cluster, cluster.client() as client, ShardedStore(client) as store:
        over = threading.Event()
        named: list[tuple[float, set[int]]] = []

        def recover() -> None:
            while not over.is_set():
                lost = _recovered(store)
                named.append((time.monotonic(), lost))
                time.sleep(0.01)

        def kill() -> None:
            try:
                for _ in range(3):
                    time.sleep(2)
                    _kill_one(store)
                time.sleep(2)
            finally:
                over.set()

        with ThreadPoolExecutor(2) as threads:
            helpers = [threads.submit(recover), threads.submit(kill)]
            while not over.is_set():
                with contextlib.suppress(ClusterLost):
                    _store_and_look(case, store, named)
            for helper in helpers:
                helper.result()


def _store_and_look(
    case: Case, store: ShardedStore, named: Sequence[tuple[float, set[int]]]
) -> None:
    """Store a folio. If it was acknowledged, count which of its pages exist."""
    begun = time.monotonic()
    pages = 8 * STRIPE
    store.store(0, np.arange(pages * PAGE // 8).view(np.uint8))
    case.count("acknowledged", pages)
    try:
        store.load_many(np.arange(pages))
        case.count("there", pages)
    except PagesLost:
        case.count("named", pages)
    except PageNotStored as gone:
        time.sleep(1)  # lets a running recover() report the pages that it lost
        later = any(at > begun and gone.index in lost for at, lost in list(named))
        case.count("named" if later else "UNNAMED", pages)


def _with_other(case: Case, version: str | None) -> None:
    with Cluster(1) as cluster:
        environment = other_batchzip(cluster.folder / "other", version)
        address = cluster.add(**environment)
        with cluster.client() as client:
            mine = client.submit(int, 7, workers=[address], pure=False)
            mine.result(WAIT_S)
            begun = time.monotonic()
            try:
                with ShardedStore(client, timeout_s=30) as store:
                    store.store(0, bytes(64 * STRIPE * PAGE))
                    case.say("accepted")
            except BatchzipError as error:
                case.say(f"{type(error).__name__}: {error}")
            case.count("seconds", time.monotonic() - begun)
            case.count("nannies that gave up", sum(c.poll() is not None for c in cluster.commands))
            case.count("futures lost", mine.status != "finished")


def without_batchzip(case: Case) -> None:
    """One of two workers has no batchzip; another future is on it."""
    _with_other(case, None)


def other_version(case: Case) -> None:
    """One of two workers has another batchzip."""
    _with_other(case, "0.0.1")


def _full(case: Case, pages: int, **options: Any) -> None:
    rng = np.random.default_rng(1)
    with (
        Cluster(1, memory_limit="256MiB") as cluster,
        cluster.client() as client,
        ShardedStore(client, **options) as store,
    ):
        (shard,) = store.shards
        folio = rng.integers(0, 256, (256, PAGE), np.uint8)
        held: list[int] = []
        for first in range(0, pages, len(folio)):
            folio[:, :8] = np.arange(first, first + 256)[:, None].view(np.uint8)
            try:
                store.store(first, folio)
                held += range(first, first + 256)
            except BatchzipError as error:
                case.count("rejected", len(folio))
                if not case.said:
                    case.say(f"{type(error).__name__}: {error}")
        case.count("acknowledged", len(held))
        case.look(store, held, set())
        case.count("workers that died", shard.pid not in [now.pid for now in store.shards])
        (info,) = client.scheduler_info()["workers"].values()
        case.say(f"the worker is {info['status']}")


def full_worker(case: Case) -> None:
    """Store 200 MiB of incompressible pages on one worker with a memory limit of 256 MiB."""
    _full(case, 51_200)


def full_worker_rejects(case: Case) -> None:
    """Run the same case with `spill=False`."""
    _full(case, 51_200, spill=False)


def _elastic(case: Case, change: Callable[[LocalCluster], object]) -> None:
    with (
        LocalCluster(
            n_workers=3,
            threads_per_worker=1,
            processes=True,
            protocol="tcp",
            host="127.0.0.1",
            dashboard_address=":0",
            memory_limit="1GiB",
            silence_logs=50,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
        ShardedStore(client) as store,
    ):
        indices = _fill(case, store)
        change(cluster)
        end = time.monotonic() + WAIT_S
        while len(client.scheduler_info()["workers"]) >= 3 and time.monotonic() < end:
            time.sleep(0.1)
        time.sleep(2)
        case.count("workers left", len(client.scheduler_info()["workers"]))
        case.look(store, indices, set())


def _fill(case: Case, store: ShardedStore) -> range:
    indices = range(0, 64 * STRIPE, 8)
    for index in indices:
        store.store(index, index.to_bytes(8, "little") * (PAGE // 8))
    case.count("acknowledged", len(indices))
    return indices


def scaled(case: Case) -> None:
    """Scale from three workers to one by `cluster.scale(1)`."""
    _elastic(case, lambda cluster: cluster.scale(1))


def adapted(case: Case) -> None:
    """Let a cluster of three idle workers adapt to one."""
    _elastic(case, lambda cluster: cluster.adapt(minimum=1, interval="200ms", wait_count=2))


def retired(case: Case) -> None:
    """Retire one of three workers."""

    def retire(cluster: LocalCluster) -> None:
        with Client(cluster, set_as_default=False) as client:
            client.retire_workers([min(client.nthreads())])

    _elastic(case, retire)


def lifetime(case: Case) -> None:
    """End one of two workers by its `--lifetime`."""
    with Cluster(1) as cluster:
        cluster.add("--lifetime", "12s")
        with cluster.client() as client, ShardedStore(client) as store:
            indices = _fill(case, store)
            cluster.commands[-1].wait(WAIT_S)
            case.look(store, indices, set())


CASES = {
    "recover race": recover_race,
    "store beside recover": store_beside_recover,
    "worker without batchzip": without_batchzip,
    "worker with another version": other_version,
    "full worker that spills": full_worker,
    "full worker that rejects": full_worker_rejects,
    "scale(1)": scaled,
    "adaptive": adapted,
    "retire_workers": retired,
    "--lifetime": lifetime,
}


def run_cases(result: Result, names: Sequence[str]) -> None:
    """Run cases and add their numbers."""
    for name in names:
        case = Case()
        begun = time.monotonic()
        try:
            CASES[name](case)
        except Exception as error:  # noqa: BLE001 - the other cases must run, too
            case.count("FAILED")
            case.say(f"{type(error).__name__}: {error}")
        labels: Labels = {"benchmark": "cluster", "part": "cases", "case": name}
        for what, number in case.numbers.items():
            result.add(labels, "store", what, [number], remark="; ".join(case.said))
        progress(f"{name}: {time.monotonic() - begun:.0f} s")


# Clients.


class Clients:
    """Clients of one store, each in a process."""

    def __init__(self, cluster: Cluster, address: str, pages: Path, number: int) -> None:
        script = Path(__file__).with_name("cluster_client.py")
        self._processes = [
            subprocess.Popen(
                [sys.executable, str(script), cluster.address, address, str(pages), str(one)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for one in range(number)
        ]
        for one in range(number):
            self.answer(one)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()

    def tell(self, one: int, **asked: Any) -> None:
        """Start a job of a client."""
        stdin = self._processes[one].stdin
        assert stdin is not None
        stdin.write(json.dumps(asked) + "\n")
        stdin.flush()

    def answer(self, one: int) -> dict[str, Any]:
        """Wait for a client's answer."""
        stdout = self._processes[one].stdout
        assert stdout is not None
        line = stdout.readline()
        if not line:
            raise RuntimeError(f"client {one} ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, number: int, **asked: Any) -> list[dict[str, Any]]:
        """Let a number of clients run a job at the same time."""
        for one in range(number):
            self.tell(one, **asked)
        return [self.answer(one) for one in range(number)]


@contextlib.contextmanager
def clients_of(
    pages: Path, workers: int, number: int, **engine: Any
) -> Iterator[tuple[Clients, ShardedStore]]:
    """Yield clients of a store on a cluster of its own."""
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster(workers))
        client = stack.enter_context(cluster.client())
        store = stack.enter_context(ShardedStore(client, engine=engine))
        yield stack.enter_context(Clients(cluster, store.address, pages, number)), store


# Latency.


def measure_latency(result: Result, pages: Path, rounds: int, seconds: float) -> None:
    """Add the µs of single calls alone, of many at once, and of loads during a stream."""

    def add(found: dict[str, list[dict[str, Any]]], **labels: str | int) -> None:
        for way, answers in found.items():
            where: Labels = {"benchmark": "cluster", "part": "latency", "way": way, **labels}
            for place, quantity in enumerate(("p50, µs", "p99, µs", "maximum, µs")):
                values = [answer["quantiles"][place] * 1e6 for answer in answers]
                if any(values):
                    result.add(where, "store", quantity, values)
            each = [a["seconds"] / a["pages"] * 1e6 for a in answers if a["pages"]]
            if each:
                result.add(where, "store", "µs/page", each)

    with clients_of(pages, 2, 1, algorithm="lz4") as (clients, _):
        found: dict[str, list[dict[str, Any]]] = {}
        for turn, way in in_turns((*ONES, *MANY), rounds):
            call, many = MANY.get(way, (way, 1))
            answer = clients.ask(1, way=call, seconds=seconds, threads=many)[0]
            if turn:
                found.setdefault(way, []).append(answer)
        add(found, beside="nothing")
    for stream, engine in STREAMS.items():
        with clients_of(pages, 2, 2, **engine) as (clients, _):
            alone = [clients.ask(1, way="load", seconds=seconds)[0] for _ in range(rounds)]
            clients.tell(1, **{"way": "store large", "until told": True})
            time.sleep(seconds)
            beside = [clients.ask(1, way="load", seconds=3 * seconds)[0] for _ in range(rounds)]
            clients.tell(1)
            done = clients.answer(1)["pages"]
            add({"load": alone}, beside=f"nothing, {stream}")
            add({"load": beside}, beside=stream)
            if done < 4096:
                result.note(f"the stream of {stream} stored no folio")


# Throughput.


def measure_throughput(
    result: Result,
    pages: Path,
    workers: Sequence[int],
    several: Sequence[int],
    rounds: int,
    seconds: float,
) -> None:
    """Add the µs and the bytes on the wire per page, of all clients together."""
    for number in workers:
        with clients_of(pages, number, max(several), algorithm="lz4") as (clients, _):
            jobs = {f"{way}\0{count}": (way, count) for way in WAYS for count in several}
            found: dict[str, list[list[dict[str, Any]]]] = {}
            for turn, job in in_turns(jobs, rounds):
                way, count = jobs[job]
                answers = clients.ask(count, way=way, seconds=seconds)
                if turn:
                    found.setdefault(job, []).append(answers)
        for job, (way, count) in jobs.items():
            labels: Labels = {
                "benchmark": "cluster",
                "part": "throughput",
                "operation": BESIDE.get(way, way),
                "workers": number,
                "clients": count,
            }
            _add_throughput(result, labels, way if way in BESIDE else "store", found[job])


def _add_throughput(
    result: Result, labels: Labels, who: str, found: list[list[dict[str, Any]]]
) -> None:
    values: dict[str, list[float]] = {"µs/page": [], "B/page sent": [], "B/page received": []}
    for answers in found:
        done = sum(answer["pages"] for answer in answers)
        # Each client counts its own time, because its last call may end late.
        rate = sum(answer["pages"] / answer["seconds"] for answer in answers)
        values["µs/page"].append(1e6 / rate)
        values["B/page sent"].append(sum(answer["sent"] for answer in answers) / done)
        values["B/page received"].append(sum(answer["received"] for answer in answers) / done)
    for name, numbers in values.items():
        result.add(labels, who, name, numbers)


# Output.


def tables(result: Result) -> Iterator[Table]:
    """Yield a table per part with figures."""
    for part, table in (
        ("cases", _cases_table),
        ("latency", _latency_table),
        ("throughput", _throughput_table),
    ):
        figures = result.of(part=part)
        if figures:
            yield table(figures)


def _table(title: str, *heads: str, numbers: int) -> Table:
    table = Table(title)
    for place, head in enumerate(heads):
        right = place >= len(heads) - numbers
        table.add_column(head, left=not right, wraps=not right)
    return table


def _cases_table(figures: Sequence[Figure]) -> Table:
    table = _table("hard cases", "case", "pages and seconds", "message", numbers=0)
    for case in dict.fromkeys(str(each.labels["case"]) for each in figures):
        mine = [each for each in figures if each.labels["case"] == case]
        numbers = ", ".join(
            f"{each.quantity} {each.median:,.{0 if each.median.is_integer() else 2}f}"
            for each in mine
        )
        table.add_row(case, numbers, mine[0].remark[:400])
    return table


def _latency_table(figures: Sequence[Figure]) -> Table:
    table = _table(
        "single calls, 2 workers, µs",
        "call",
        "beside",
        "p50",
        "p99",
        "maximum",
        "per page",
        numbers=4,
    )
    cases: dict[tuple[str, str], dict[str, float]] = {}
    for each in figures:
        key = str(each.labels["way"]), str(each.labels["beside"])
        cases.setdefault(key, {})[each.quantity] = each.median
    order = [*ONES, *MANY]
    for (way, beside), of in sorted(cases.items(), key=lambda case: order.index(case[0][0])):
        quantities = ("p50, µs", "p99, µs", "maximum, µs", "µs/page")
        cells = [f"{of[quantity]:,.0f}" if quantity in of else "" for quantity in quantities]
        table.add_row(way, beside, *cells)
    return table


def _throughput_table(figures: Sequence[Figure]) -> Table:
    table = _table(
        "µs per page of all clients together; bytes per page that a client sends and receives",
        *("call", "workers", "clients", "who", "µs/page", "MB/s", "sent", "received"),
        numbers=4,
    )
    by: dict[tuple[Any, ...], dict[str, float]] = {}
    for each in figures:
        of = each.labels
        key = of["operation"], of["workers"], of["clients"], each.contender
        by.setdefault(key, {})[each.quantity] = each.median
    last = None
    for (operation, workers, clients, who), values in sorted(by.items()):
        if last not in (None, (operation, workers)):
            table.add_section()
        last = operation, workers
        table.add_row(
            *(str(operation), str(workers), str(clients), str(who)),
            f"{values['µs/page']:,.1f}",
            f"{PAGE / values['µs/page']:,.0f}",
            f"{values['B/page sent']:,.0f}",
            f"{values['B/page received']:,.0f}",
        )
    return table


def goals(result: Result) -> Iterator[str]:
    """Yield a line per goal: whether it is reached, or by how much not."""
    for each in result.figures:
        if each.labels["part"] == "cases" and each.quantity in ("UNNAMED", "FAILED"):
            found = f"{each.median:,.0f} {each.quantity}"
            yield f"{each.labels['case']}: {found}, at most 0: not reached"
        beside = each.labels.get("beside")
        if beside in STREAMS and each.quantity == "p99, µs":
            took = each.median / 1000
            verdict = "reached" if took <= LOAD_GOAL_MS else f"{took / LOAD_GOAL_MS:.1f} × as much"
            goal = f"at most {LOAD_GOAL_MS:g} ms"
            yield f"p99 of a load beside {beside}: {took:.2f} ms, {goal}: {verdict}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_source(parser)
    parser.add_argument("--parts", type=chosen(PARTS), default=PARTS, help="with commas")
    parser.add_argument("--cases", type=chosen(CASES), default=list(CASES), help="with commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a contender's turn")
    parser.add_argument("--workers", type=integers, default=[1, 2, 4])
    parser.add_argument("--clients", type=integers, default=[1, 2, 4])


def measure(options: argparse.Namespace) -> Result:
    """Measure with the given options."""
    source = source_of(options)
    settings = {"source": source.name, "rounds": options.rounds, "seconds": options.seconds}
    result = Result(settings, {"cluster": "store"})
    rounds, seconds = options.rounds, options.seconds
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pages.npy"
        np.save(path, work_pages(source, 8192))
        parts: dict[str, Callable[[], None]] = {
            "cases": partial(run_cases, result, options.cases),
            "latency": partial(measure_latency, result, path, rounds, seconds),
            "throughput": partial(
                measure_throughput, result, path, options.workers, options.clients, rounds, seconds
            ),
        }
        for part in options.parts:
            progress(part)
            parts[part]()
    return result


SCRIPT = Script(__doc__, add_options, measure, tables, goals)

if __name__ == "__main__":
    SCRIPT.main()
