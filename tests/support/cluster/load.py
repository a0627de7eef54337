"""One client of a sharded store, a process whose threads use it at random and log the results.

python load.py '{"scheduler": "tcp://…", "log": "FILE", …}'        the fields of Options

It makes the store, or attaches to `address`, prints the store's address, and then reads commands:

run SEED       threads begin
pause          they end what they are at; the next lines find nothing under way
recover        recover() until it works
read           every index is loaded, one by one and in pieces, and asked for by `in`
renew          every index is stored anew, and loaded
settle N       wait until N shards are there, none lost, and none has stripes to come
retire ADDRESS, restart ADDRESS       what a Dask client does to a worker; answered at once
close          the store is closed; the process ends

Each is answered by a line: "ok", or what was wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import json
import random
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed import Client
from support.cluster.history import HELD, PAGE, Log, Watch, page_of
from support.cluster.noted import NotedCall

from batchzip.dask import ShardedStore
from batchzip.errors import BatchzipError, ClusterLost

if TYPE_CHECKING:
    from collections.abc import Callable

STRIPE = 512
_LOST = "PagesLost"
_PIECE = 256
_LOOK_S = 0.5
_SLOW_S = 10.0
"""Seconds after which it is told on stderr where a call waits."""


@dataclass
class Options:
    """What a client is told. Times are seconds."""

    scheduler: str
    log: str
    number: int = 0
    address: str | None = None
    threads: int = 3
    stripes: int = 8
    pause_s: float = 0.0
    """What a thread waits between two calls, on average; and after it was told of a loss."""
    lost_pause_s: float = 0.1
    limit_s: float = 60.0
    asynchronous: bool = True
    """One more thread calls the coroutines, several at once, from a loop of its own."""
    recovers: bool = True
    kinds: dict[str, int] = field(
        default_factory=lambda: {
            "store": 30,
            "folio": 3,
            "load": 30,
            "load_many": 15,
            "in": 10,
            "invalidate": 5,
            "recover": 1,
            "rebalance": 1,
        }
    )
    options: dict[str, Any] = field(default_factory=dict)
    """Of ShardedStore, where this one makes it."""


class Load:
    """Calls of one store, logged."""

    def __init__(self, store: Any, log: Log, options: Options) -> None:
        self.store = store
        self.options = options
        self.watch = Watch(log, options.limit_s)
        self.over = threading.Event()
        self.said = ""
        """What the last error of recover() said."""
        self._log = log
        self._indices = STRIPE * options.stripes
        self._versions = 0
        self._lock = threading.Lock()
        self._keys = 0

    def version(self) -> int:
        """Give a version that no other store has."""
        with self._lock:
            self._versions += 1
            return self.options.number << 40 | self._versions

    # One call each: begin, ask, note.

    def _noted(self, kind: str) -> NotedCall:
        with self._lock:
            self._keys += 1
            return NotedCall(self._log, self.watch, self._keys, kind)

    def store_folio(self, first: int, count: int, **ask: Any) -> Any:
        version = self.version()
        pages = b"".join(page_of(index, version) for index in range(first, first + count))
        noted = self._noted("store")
        noted.changes(first, count, version)
        return noted.run(self._ask("store", first, pages, **ask), lambda _: None)

    def load(self, index: int, **ask: Any) -> Any:
        noted = self._noted("load")
        noted.only = index
        return noted.run(self._ask("load", index, **ask), lambda page: noted.read([(index, page)]))

    def load_many(self, indices: list[int], **ask: Any) -> Any:
        noted = self._noted("load_many")
        return noted.run(
            self._ask("load_many", indices, **ask),
            lambda pages: noted.read(
                [(index, page.tobytes()) for index, page in zip(indices, pages, strict=True)]
            ),
        )

    def contains(self, index: int, **ask: Any) -> Any:
        noted = self._noted("in")
        noted.only = index
        return noted.run(
            self._ask("contains", index, **ask),
            lambda held: noted.saw([(index, HELD if held else None)]),
        )

    def invalidate(self, first: int, count: int, **ask: Any) -> Any:
        noted = self._noted("invalidate")
        noted.changes(first, count, 0)
        return noted.run(
            self._ask("invalidate", first, count, **ask),
            lambda pages: noted.check(0 <= pages <= count, f"{pages} of {count} invalidated"),
        )

    def recover(self, **ask: Any) -> Any:
        noted = self._noted("recover")
        noted.told = lambda error: setattr(self, "said", str(error))
        return noted.run(
            self._ask("recover", **ask), lambda ranges: noted.name(ranges, recovered=True)
        )

    def rebalance(self, **ask: Any) -> Any:
        noted = self._noted("rebalance")
        return noted.run(self._ask("rebalance", **ask), lambda _: None)

    def _ask(self, name: str, *arguments: Any, later: bool = False) -> Callable[[], Any]:
        if later:
            return lambda: getattr(self.store, f"a{name}")(*arguments)
        if name == "contains":
            return lambda: arguments[0] in self.store
        return lambda: getattr(self.store, name)(*arguments)

    # What a thread does.

    def use(self, seed: int) -> None:
        """Do one thing after the other until it is over."""
        rng = random.Random(seed)
        while not self.over.is_set():
            outcome = self._one(rng, later=False)
            self._after(rng, outcome)

    def use_later(self, seed: int) -> None:
        """Do several things at once, from a loop."""
        rng = random.Random(seed)

        async def turn() -> None:
            outcomes = await asyncio.gather(
                *(self._one(rng, later=True) for _ in range(rng.randint(1, 12)))
            )
            self._after(rng, max(outcomes))

        async def turns() -> None:
            while not self.over.is_set():
                await turn()

        asyncio.run(turns())

    def _after(self, rng: random.Random, outcome: str) -> None:
        """Do what a program does that was told of a loss, after a while."""
        lost = outcome in (_LOST, "ClusterLost")
        if lost and self.options.recovers and rng.random() < 0.2:
            self.recover()
        self.over.wait(
            rng.random() * 2 * (self.options.lost_pause_s if lost else self.options.pause_s)
        )

    def _one(self, rng: random.Random, *, later: bool) -> Any:
        kinds = self.options.kinds
        index = self._somewhere(rng)
        most = min(self._indices - index, 24)
        few = min(rng.choice([1, 1, 1, 2, rng.randint(1, most)]), most)
        many = rng.randint(1, self._indices // 4)
        calls: dict[str, Callable[[], Any]] = {
            "store": lambda: self.store_folio(index, few, later=later),
            "folio": lambda: self.store_folio(
                rng.randint(0, self._indices - many), many, later=later
            ),
            "load": lambda: self.load(index, later=later),
            "load_many": lambda: self.load_many(
                [self._somewhere(rng) for _ in range(rng.randint(1, 40))], later=later
            ),
            "in": lambda: self.contains(index, later=later),
            "invalidate": lambda: self.invalidate(index, few, later=later),
            "recover": lambda: self.recover(later=later),
            "rebalance": lambda: self.rebalance(later=later),
        }
        (kind,) = rng.choices(list(kinds), list(kinds.values()))
        return calls[kind]()

    def _somewhere(self, rng: random.Random) -> int:
        """Give an index: mostly one of a few around the stripes' ends, where many meet."""
        if rng.random() < 0.2:
            return rng.randrange(self._indices)
        border = STRIPE * rng.randint(1, self.options.stripes - 1)
        return border + rng.randint(-6, 5)

    # What follows when no thread does anything.

    def read_all(self) -> None:
        for first in range(0, self._indices, _PIECE):
            wanted = list(range(first, first + _PIECE))
            if self.load_many(wanted) == "ok":
                continue
            for index in wanted:
                self.load(index)
        rng = random.Random(1)
        for _ in range(64):
            index = self._somewhere(rng)
            self.load(index)
            self.contains(index)

    def renew_all(self) -> str:
        for first in range(0, self._indices, _PIECE):
            outcome = self.store_folio(first, _PIECE)
            if outcome != "ok":
                return f"store at {first}: {outcome}"
        for first in range(0, self._indices, _PIECE):
            outcome = self.load_many(list(range(first, first + _PIECE)))
            if outcome != "ok":
                return f"load of what was just stored at {first}: {outcome}"
        return "ok" if len(self.store) == self._indices else f"len is {len(self.store)}"

    def recovered(self, limit_s: float) -> str:
        end = time.monotonic() + limit_s
        outcome = ""
        while time.monotonic() < end:
            outcome = self.recover()
            if outcome == "ok":
                return "ok"
            time.sleep(0.2)
        return f"recover: {outcome} for {limit_s:g} s, {self.said[:500]}"

    def settled(self, shards: int, limit_s: float) -> str:
        end = time.monotonic() + limit_s
        found: Any = None
        while time.monotonic() < end:
            with contextlib.suppress(ClusterLost):
                found = self.store.shards
                living = [shard for shard in found if shard.lost is None]
                if len(living) == len(found) == shards and not any(s.moving for s in living):
                    return "ok"
            time.sleep(0.2)
        return f"not settled in {limit_s:g} s: {found}"


class Threads:
    """The threads of a load, and one that watches them."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._threads: list[threading.Thread] = []
        threading.Thread(target=self._look, daemon=True).start()

    def begin(self, seed: int) -> None:
        load = self._load
        load.over.clear()
        targets: list[Callable[[int], None]] = [load.use] * load.options.threads
        if load.options.asynchronous:
            targets.append(load.use_later)
        for number, target in enumerate(targets):
            thread = threading.Thread(target=target, args=(seed * 100 + number,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def end(self) -> str:
        self._load.over.set()
        end = time.monotonic() + 2 * self._load.options.limit_s
        for thread in self._threads:
            thread.join(max(0, end - time.monotonic()))
        hanging = sum(thread.is_alive() for thread in self._threads)
        self._threads = []
        return f"{hanging} threads hang" if hanging else "ok"

    def _look(self) -> None:
        told = False
        while True:
            time.sleep(_LOOK_S)
            self._load.watch.look()
            slow = self._load.watch.longest_s() > _SLOW_S
            if slow and not told:
                faulthandler.dump_traceback()
                loop = self._load.store._client.loop.asyncio_loop
                loop.call_soon_threadsafe(_tell_waits, loop)
            told = slow


def _tell_waits(loop: asyncio.AbstractEventLoop) -> None:
    """Tell on stderr where each task of a loop waits; runs there."""
    for task in asyncio.all_tasks(loop):
        at: Any = task.get_coro()
        way = []
        while getattr(at, "cr_frame", None) is not None:
            way.append(f"{at.__qualname__}:{at.cr_frame.f_lineno}")
            at = at.cr_await
        sys.stderr.write(f"{task.get_name()}: {' > '.join(way)} > {at!r}\n")
    sys.stderr.flush()


def _open(client: Client, options: Options) -> ShardedStore:
    """Make or attach to the store, as soon as there are a scheduler and workers."""
    end = time.monotonic() + options.limit_s
    while True:
        try:
            if options.address is None:
                return ShardedStore(client, **options.options)
            return ShardedStore.attach(options.address, client)
        except ClusterLost:
            if time.monotonic() > end:
                raise
            time.sleep(0.3)


def _connected(options: Options) -> Client:
    end = time.monotonic() + options.limit_s
    while True:
        try:
            # For this time it also tries to find a lost scheduler before it closes for good.
            return Client(options.scheduler, set_as_default=False, timeout=240)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.3)


def _to_worker(client: Client, what: str, address: str) -> None:
    # What comes of it is the store's affair, not the caller's.
    with contextlib.suppress(Exception):
        if what == "retire":
            client.retire_workers([address])
        else:
            client.restart_workers([address], timeout=30, raise_for_error=False)


def _obey(line: str, load: Load, threads: Threads, client: Client) -> str:
    what, _, argument = line.strip().partition(" ")
    match what:
        case "run":
            threads.begin(int(argument))
        case "pause":
            return threads.end()
        case "recover":
            return load.recovered(load.options.limit_s)
        case "read":
            load.read_all()
        case "renew":
            return load.renew_all()
        case "settle":
            return load.settled(int(argument), load.options.limit_s)
        case "retire" | "restart":
            threading.Thread(target=_to_worker, args=(client, what, argument), daemon=True).start()
        case _:
            return f"what is {line!r}?"
    return "ok"


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    options = Options(**json.loads(sys.argv[1]))
    log = Log(Path(options.log))
    with _connected(options) as client, _open(client, options) as store:
        assert store.page_size == PAGE
        load = Load(store, log, options)
        threads = Threads(load)
        _tell(f"address {store.address}")
        for line in sys.stdin:
            if line.strip() == "close":
                break
            try:
                _tell(_obey(line, load, threads, client))
            except BatchzipError as error:
                _tell(f"{line.strip()} raised {type(error).__name__}: {error}")
    _tell("ok")


if __name__ == "__main__":
    main()
