"""Compare a mapping of many values with its alternatives: memory, µs per value, threads, goals.

    python examples/benchmarks/values.py [--parts memory,speed,threads] [--values 30000]
                                         [--timed 4096] [--rounds 9] [--threads 8]
                                         [--kinds "JSON 280 B,JSON 1.3 KB,…"]
                                         [--json FILE | --show FILE]

memory   The growth of the PSS of a fresh process that makes the contender and stores all values
         with string keys. Imports are not counted, because a small contender of the same kind is
         made beforehand. `dict` holds the values as a program would: dicts, arrays, or the text of
         the JSON as bytes. `says` is the total of `mapping.memory_usage()`. At most 3 rounds.
speed    µs per value, in pieces of up to 256 values, at which contenders take turns. `put` and
         `get` are calls with one key. `update` and `get many` are one call for many keys if the
         contender has one, and otherwise a loop. `put` and `update` fill an empty contender. Values
         are bytes, so that no serializer is timed. SQLite and diskcache do not compress values, and
         zict keeps the most recently used sixteenth uncompressed. `lz4` and `zstd 1` are loops of
         codec calls.
threads  The time of one thread ÷ the time of --threads threads for the same work: storing and
         reading the values by single calls, and by `update` and `get_many` of a piece. `lz4 of
         64 KiB` is the machine's limit: threads that compress independent blocks.

Kinds with large values have fewer of them. A figure is the median of the rounds. A round counts
with the median of its pieces.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import itertools
import json
import pickle
import random
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import lz4.block
import numpy as np
import zstandard

import batchzip
from batchzip.bench.figure import Result
from batchzip.bench.held import process_pss
from batchzip.bench.rounds import in_pieces, in_turns, seconds, timed
from batchzip.bench.script import Script, chosen, progress
from batchzip.bench.spread import speed
from batchzip.errors import BadArgument
from batchzip.terminal.table import Table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from batchzip.bench.figure import Figure, Labels

PARTS = ("memory", "speed", "threads")
PIECE = 256
ONE = "one thread"
MEMORY_ROUNDS = 3
BASE = "dict of lz4"
CONTROL = "lz4 of 64 KiB"
MAPPINGS = ("mapping, lz4", "mapping, zstd 1", "mapping, dictionary")
HELD = ("dict", BASE, *MAPPINGS)
PEERS = {"diskcache": "diskcache", "zict": "zict", "cachetools": "cachetools", "SQLite": "sqlite3"}
"""Contenders from other packages, with the names of the packages."""

MEMORY_GOAL = 1.10
"""Maximum memory of a mapping ÷ the dict of lz4."""
DICTIONARY_GOAL = 0.5
"""Maximum memory of a mapping with a dictionary ÷ the dict of lz4, for JSON."""
SINGLE_GOALS = {"put": 8.0, "get": 5.0}
"""Maximum µs for values of 280 B."""
BATCH_GOAL = 1.0
"""Maximum µs per small value in batches, in addition to those of the codec."""
CLIENTS_GOAL = 1.7

_WORDS = [
    "".join(random.Random(i).choices("abcdeilmnoprstu", k=3 + i % 7))  # noqa: S311 - data
    for i in range(2000)
]


class Kind(NamedTuple):
    """A kind of values: their number as a share of `--values`, and the functions to make them."""

    share: float
    make: Callable[[random.Random], Any]
    dumps: Callable[[Any], bytes]


def _row(rng: random.Random, words: int) -> dict[str, Any]:
    """Make a row of a shop's table, with a text of `words` words."""
    name = rng.choice(_WORDS)
    return {
        "id": rng.randrange(10**9),
        "user": f"{name}{rng.randrange(1000)}",
        "email": f"{name}.{rng.choice(_WORDS)}@example.org",
        "created": (
            f"2026-{rng.randrange(1, 13):02}-{rng.randrange(1, 29):02}"
            f"T{rng.randrange(24):02}:15:00Z"
        ),
        "active": rng.random() < 0.5,
        "balance": round(rng.gauss(100, 30), 2),
        "tags": rng.sample(["new", "gold", "export", "trial", "partner"], 2),
        "note": " ".join(rng.choices(_WORDS, k=words)),
    }


def _text(value: object) -> bytes:
    return json.dumps(value).encode()


def _array(rng: random.Random, count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Make a series of measurements: a random walk in steps of a hundredth."""
    steps = np.random.default_rng(rng.randrange(1 << 32)).integers(-9, 10, count)
    return (steps.cumsum() / 100).astype(np.float32)


KINDS = {
    "JSON 280 B": Kind(1, lambda rng: _row(rng, 13), _text),
    "JSON 1.3 KB": Kind(1, lambda rng: [_row(rng, 10) for _ in range(5)], _text),
    "JSON 12 KB": Kind(0.2, lambda rng: [_row(rng, 22) for _ in range(35)], _text),
    "pickled dicts": Kind(1, lambda rng: [_row(rng, 8) for _ in range(8)], pickle.dumps),
    "NumPy 1 KB": Kind(1, lambda rng: _array(rng, 256), lambda array: array.tobytes()),
    "NumPy 1 MB": Kind(0.003, lambda rng: _array(rng, 1 << 18), lambda array: array.tobytes()),
    "incompressible": Kind(1, lambda rng: rng.randbytes(700), bytes),
}
JSON_ROWS = ("JSON 280 B", "JSON 1.3 KB", "JSON 12 KB")
THREADED = ("JSON 280 B", "JSON 1.3 KB", "JSON 12 KB")
SMALL = ("JSON 280 B", "JSON 1.3 KB", "NumPy 1 KB", "incompressible")


def values_of(kind: Kind, count: int) -> Iterator[tuple[str, Any]]:
    """Make `count` values, the same in each process, with their keys."""
    rng = random.Random(7)  # noqa: S311 - data
    for number in range(count):
        yield f"item:{number:08}", kind.make(rng)


class Lz4Dict(MutableMapping[str, bytes]):
    """Hand-written code: a dict, or a similar object, of values compressed with lz4."""

    def __init__(self, inner: MutableMapping[str, bytes] | None = None) -> None:
        self.inner = {} if inner is None else inner

    def __getitem__(self, key: str) -> bytes:
        return lz4.block.decompress(self.inner[key])  # type: ignore[no-any-return]

    def __setitem__(self, key: str, value: bytes) -> None:
        self.inner[key] = lz4.block.compress(value)

    def __delitem__(self, key: str) -> None:
        del self.inner[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.inner)

    def __len__(self) -> int:
        return len(self.inner)

    def clear(self) -> None:
        """Forget all values."""
        self.inner.clear()


class SqliteDict:
    """A table in an SQLite file, without waiting for the disk."""

    def __init__(self, path: Path) -> None:
        self.base = sqlite3.connect(path, isolation_level=None)
        self.base.execute("PRAGMA journal_mode=WAL")
        self.base.execute("PRAGMA synchronous=OFF")
        self.base.execute("CREATE TABLE item (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID")

    def __getitem__(self, key: str) -> bytes:
        row = self.base.execute("SELECT value FROM item WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise KeyError(key)
        return row[0]  # type: ignore[no-any-return]

    def __setitem__(self, key: str, value: bytes) -> None:
        self.base.execute("INSERT OR REPLACE INTO item VALUES (?, ?)", (key, value))

    def update(self, items: dict[str, bytes]) -> None:
        """Store several values in one transaction."""
        with self.base:
            self.base.execute("BEGIN")
            self.base.executemany("INSERT OR REPLACE INTO item VALUES (?, ?)", items.items())

    def clear(self) -> None:
        """Forget all values."""
        self.base.execute("DELETE FROM item")

    def close(self) -> None:
        """Close the file."""
        self.base.close()


def mapping_of(name: str, stack: ExitStack) -> batchzip.CompressedMapping:
    """Return one of MAPPINGS in a store of its own. `stack` closes it."""
    made = batchzip.Engine("lz4") if name.endswith("lz4") else batchzip.Engine("zstd", level=1)
    engine = stack.enter_context(made)
    store = stack.enter_context(batchzip.SwapStore(engine))
    dictionary = "auto" if name.endswith("dictionary") else None
    return stack.enter_context(batchzip.CompressedMapping(store, dictionary=dictionary))


def contender(name: str, stack: ExitStack, count: int = 1024) -> Any:
    """Return an empty contender. `stack` closes it and removes its files."""
    if name in MAPPINGS:
        return mapping_of(name, stack)
    if name == "dict":
        return {}
    if name == BASE:
        return Lz4Dict()
    return peer(name, stack, count)


def peer(name: str, stack: ExitStack, count: int = 1024) -> Any:
    """Return an empty contender from another package, for about `count` values."""
    if name == "cachetools":
        import cachetools  # noqa: PLC0415 - may be missing

        return Lz4Dict(cachetools.LRUCache(1 << 30))
    if name == "zict":
        import zict  # noqa: PLC0415 - may be missing

        slow: Any = zict.Func(lz4.block.compress, lz4.block.decompress, {})
        return zict.Buffer({}, slow, n=max(1, count // 16))
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    if name == "SQLite":
        made = SqliteDict(Path(folder) / "values")
        stack.callback(made.close)
        return made
    import diskcache  # noqa: PLC0415 - may be missing

    return stack.enter_context(diskcache.Cache(folder))


# Memory.


def grown(name: str, kind: Kind, count: int) -> dict[str, int]:
    """Measure the memory of a contender in this process, which ends afterwards."""
    with ExitStack() as stack:
        _fill(contender(name, stack), name, kind, 2)
    gc.collect()
    _trim()
    before = process_pss()
    with ExitStack() as stack:
        kept = contender(name, stack)
        _fill(kept, name, kind, count)
        gc.collect()
        found = {"pss": process_pss() - before}
        if name in MAPPINGS:
            found["says"] = kept.memory_usage().total
    return found


def _trim() -> None:
    """Return freed memory to the system. Otherwise new values would use it without growth."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def _fill(kept: Any, name: str, kind: Kind, count: int) -> None:
    items = values_of(kind, count)
    if name == "dict":
        as_it_is = kind.dumps is not _text
        kept.update((key, value if as_it_is else kind.dumps(value)) for key, value in items)
    else:
        kept.update((key, kind.dumps(value)) for key, value in items)


def measure_memory(result: Result, kinds: list[str], values: int, rounds: int) -> None:
    """Add the growth of each contender with each kind, each measured in a process of its own."""
    for kind in kinds:
        count = count_of(kind, values)
        labels: Labels = {"benchmark": "values", "kind": kind}
        labels |= {"operation": "memory", "values": count}
        found: dict[tuple[str, str], list[float]] = {}
        for turn, name in in_turns(HELD, min(rounds, MEMORY_ROUNDS)):
            if not turn:  # no warm-up round: each process is new
                continue
            command = [sys.executable, __file__, "--grown", name, kind, str(count)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            for quantity, size in json.loads(done.stdout).items():
                found.setdefault((name, quantity), []).append(size / count)
        for name, quantity in sorted(found, key=lambda each: HELD.index(each[0])):
            spent = found[name, quantity]
            result.add(labels, name, f"B/value, {quantity}", spent)


def count_of(kind: str, values: int) -> int:
    """Return the number of values of a kind."""
    return max(2, round(values * KINDS[kind].share))


# Speed.


class Load:
    """The values of one kind, in pieces."""

    def __init__(self, kind: str, timed_values: int) -> None:
        self.kind = kind
        count = self.count = count_of(kind, timed_values)
        items = self.items = {k: KINDS[kind].dumps(v) for k, v in values_of(KINDS[kind], count)}
        step = min(PIECE, max(1, count // 16))
        keys = list(items)
        self.parts = [
            {key: items[key] for key in keys[at : at + step]} for at in range(0, count, step)
        ]
        self.pieces = len(self.parts)
        random.Random(3).shuffle(keys)  # noqa: S311 - the order of reads
        self.reads = [keys[at : at + step] for at in range(0, count, step)]

    def labels(self, operation: str) -> Labels:
        """Return the labels of the figures."""
        return {"benchmark": "values", "kind": self.kind, "operation": operation}


def measure_speed(result: Result, load: Load, rounds: int) -> None:
    """Add the µs per value of each contender for each operation."""
    names = [BASE, *MAPPINGS]
    for name, module in PEERS.items():
        if find_spec(module) is None:
            result.note(f"{name}: pip install 'batchzip[bench]'")
        else:
            names.append(name)
    bare = _codec_calls(load.items)
    coded = {name: {k: call[0](v) for k, v in load.items.items()} for name, call in bare.items()}
    with ExitStack() as stack:
        everybody = {name: contender(name, stack, load.count) for name in names}

        def clear() -> None:
            for each in everybody.values():
                each.clear()

        work: Callable[[Any, Any], object]
        for operation, work in (("put", _put_all), ("update", _update)):
            calls = {name: partial(_on, work, each, load.parts) for name, each in everybody.items()}
            for name, (compress, _) in bare.items():
                calls[name] = partial(_on, _compress_all, compress, load.parts)
            _record(result, load, operation, in_pieces(calls, load.pieces, rounds, clear))
        _check(everybody, load.items)
        for operation, work in (("get", _get_all), ("get many", _get_many)):
            calls = {name: partial(_on, work, each, load.reads) for name, each in everybody.items()}
            for name, (_, decompress) in bare.items():
                work = partial(_decompress_all, coded[name])  # noqa: PLW2901 - of the codec
                calls[name] = partial(_on, work, decompress, load.reads)
            _record(result, load, operation, in_pieces(calls, load.pieces, rounds))


def _check(everybody: dict[str, Any], items: dict[str, bytes]) -> None:
    for name, each in everybody.items():
        wrong = [key for key, value in items.items() if each[key] != value]
        assert not wrong, f"{name} gives other values for {wrong[:3]}"


def _record(result: Result, load: Load, operation: str, found: dict[str, Any]) -> None:
    sizes = np.array([len(part) for part in load.parts])
    for name, spent in found.items():
        each = np.median(spent / sizes, axis=1) * 1e6
        result.add(load.labels(operation), name, "µs/value", each.tolist())


def _on(work: Callable[[Any, Any], object], kept: Any, parts: list[Any], at: int) -> None:
    work(kept, parts[at])


def _compress_all(compress: Callable[[bytes], bytes], part: dict[str, bytes]) -> None:
    for value in part.values():
        compress(value)


def _decompress_all(
    coded: dict[str, bytes], decompress: Callable[[bytes], bytes], keys: list[str]
) -> None:
    for key in keys:
        decompress(coded[key])


def _get_all(kept: Any, keys: list[str]) -> None:
    for key in keys:
        kept[key]


def _codec_calls(
    items: dict[str, bytes],
) -> dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]]:
    there, back = zstandard.ZstdCompressor(level=1), zstandard.ZstdDecompressor()
    trained: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
        "lz4": (lz4.block.compress, lz4.block.decompress),
        "zstd 1": (there.compress, back.decompress),
    }
    assert all(
        call[1](call[0](value)) == value for call in trained.values() for value in items.values()
    )
    return trained


def _put_all(kept: Any, part: dict[str, bytes]) -> None:
    for key, value in part.items():
        kept[key] = value


def _update(kept: Any, part: dict[str, bytes]) -> None:
    if hasattr(kept, "transact"):  # diskcache has no update
        with kept.transact():
            _put_all(kept, part)
    else:
        kept.update(part)


def _get_many(kept: Any, keys: list[str]) -> Iterable[Any]:
    if isinstance(kept, batchzip.CompressedMapping):
        return kept.get_many(keys)
    return {key: kept[key] for key in keys}


# Threads.


def measure_threads(result: Result, load: Load, threads: int, rounds: int) -> None:
    """Add the µs per value of one thread and of several that store and read values."""
    pool = ThreadPoolExecutor(threads)
    many = f"{threads} threads"
    calls: dict[str, Callable[[], float]] = {}
    sizes: dict[str, int] = {}
    with ExitStack() as stack:
        stack.enter_context(pool)
        list(pool.map(len, load.parts))  # starts the threads
        for name in (BASE, *MAPPINGS):
            kept = contender(name, stack)
            sizes[name] = load.count
            for way, work in (("single calls", _singles), ("batches", _batches)):
                job = partial(work, kept)
                calls[f"{name}\0{way}\0{ONE}"] = timed(partial(_run, map, job, load.parts))
                several = timed(partial(_run, pool.map, job, load.parts))
                calls[f"{name}\0{way}\0{many}"] = several
        block = bytes(random.Random(4).choices(b"compressible", k=1 << 16))  # noqa: S311
        blocks = [block] * 64
        sizes[CONTROL] = len(blocks)
        calls[f"{CONTROL}\0batches\0{ONE}"] = timed(partial(_run, map, lz4.block.compress, blocks))
        calls[f"{CONTROL}\0batches\0{many}"] = timed(
            partial(_run, pool.map, lz4.block.compress, blocks)
        )
        spent = seconds(calls, rounds)
    for label, found in spent.items():
        name, way, number = label.split("\0")
        labels = load.labels(f"put and get, {way}") | {"threads": number}
        each = [value / sizes[name] * 1e6 for value in found]
        result.add(labels, name, "µs/value", each)


def _singles(kept: Any, part: dict[str, bytes]) -> None:
    _put_all(kept, part)
    _get_all(kept, list(part))


def _batches(kept: Any, part: dict[str, bytes]) -> None:
    _update(kept, part)
    _get_many(kept, list(part))


def _run(mapped: Callable[..., Any], job: Callable[[Any], None], parts: list[Any]) -> None:
    list(mapped(job, parts))


# Output.


def tables(result: Result) -> Iterator[Table]:
    """Yield tables of memory, speed and threads."""
    for operation in dict.fromkeys(str(each.labels["operation"]) for each in result.figures):
        rows: dict[str, dict[str, str]] = {}
        for each in result.of(operation=operation):
            row = str(each.labels["kind"])
            where = each.contender
            cell = f"{each.median:.2f}"
            if operation == "memory":
                row += f", {each.labels['values']:,} values"
                cell = f"{each.median:,.0f}"
            if each.quantity.endswith("says"):
                rows[row][where] += f" (says {cell})"
                continue
            if "threads" in each.labels:
                row += f", {each.labels['threads']}"
                if each.labels["threads"] != ONE:
                    cell += f", × {times_as_fast(result, each):.2f}"
            rows.setdefault(row, {})[where] = cell
        what = (
            "growth of PSS, bytes per value"
            if operation == "memory"
            else f"{operation}: µs per value"
        )
        table = Table(what)
        names = list(dict.fromkeys(name for cells in rows.values() for name in cells))
        table.add_column("")
        for name in names:
            table.add_column(name)
        for row, cells in rows.items():
            table.add_row(row, *(cells.get(name, "") for name in names))
        yield table


def goals(result: Result) -> Iterator[str]:
    """Yield a line per goal with figures: whether it is reached, or by how much it is missed."""
    found = {
        (each.labels["kind"], each.labels["operation"], each.contender, each.quantity): each.median
        for each in result.figures
        if "threads" not in each.labels
    }

    def judged(text: str, value: float | None, most: float, unit: str = "") -> Iterator[str]:
        if value is not None:
            verdict = "reached" if value <= most else f"{value / most:.2f} × as much"
            yield f"{text}: {value:.2f}{unit}, at most {most:g}{unit}: {verdict}"

    for kind, name in itertools.product(KINDS, MAPPINGS):
        mine = found.get((kind, "memory", name, "B/value, pss"))
        base = found.get((kind, "memory", BASE, "B/value, pss"), 0)
        ratio = mine / base if mine and base > 0 else None
        yield from judged(f"{kind}, {name} ÷ {BASE}", ratio, MEMORY_GOAL)
        if kind in JSON_ROWS and name.endswith("dictionary"):
            yield from judged(f"{kind}, {name} ÷ {BASE}", ratio, DICTIONARY_GOAL)
    for name, (operation, most) in itertools.product(MAPPINGS, SINGLE_GOALS.items()):
        value = found.get(("JSON 280 B", operation, name, "µs/value"))
        yield from judged(f"JSON 280 B, {operation}, {name}", value, most, " µs")
    for kind, (name, codec), operation in itertools.product(
        SMALL, zip(MAPPINGS, ("lz4", "zstd 1"), strict=False), ("update", "get many")
    ):
        value = found.get((kind, operation, name, "µs/value"))
        more = None if value is None else value - found[kind, operation, codec, "µs/value"]
        yield from judged(f"{kind}, {operation}, {name} − {codec}", more, BATCH_GOAL, " µs")
    yield from _thread_goals(result)


def times_as_fast(result: Result, several: Figure) -> float:
    """Return the speed of several threads relative to one thread in the same rounds."""
    labels = {**several.labels, "threads": ONE}
    (one,) = (
        each
        for each in result.figures
        if each.labels == labels and each.contender == several.contender
    )
    return speed(one.values, several.values).median


def _thread_goals(result: Result) -> Iterator[str]:
    several = [each for each in result.figures if each.labels.get("threads", ONE) != ONE]
    times = {each.key: times_as_fast(result, each) for each in several}
    bounds = {e.labels["kind"]: times[e.key] for e in several if e.contender == CONTROL}
    for each in several:
        if each.contender in MAPPINGS:
            reached = times[each.key]
            verdict = "reached" if reached >= CLIENTS_GOAL else "not reached"
            what = f"{each.labels['kind']}, {each.labels['operation']}, {each.contender}"
            yield (
                f"{what}: × {reached:.2f} with {each.labels['threads']}, "
                f"at least {CLIENTS_GOAL}: {verdict}; "
                f"{CONTROL}: × {bounds[each.labels['kind']]:.2f}"
            )


def _versions() -> dict[str, str]:
    there = [package for package in ("diskcache", "zict", "cachetools") if find_spec(package)]
    found = {package: importlib.metadata.version(package) for package in there}
    return found | {"sqlite": sqlite3.sqlite_version}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--parts", type=chosen(PARTS), default=PARTS, help="with commas")
    parser.add_argument("--kinds", type=chosen(KINDS), default=list(KINDS), help="with commas")
    parser.add_argument("--values", type=int, default=30_000, help="in memory (%(default)s)")
    parser.add_argument("--timed", type=int, default=4096, help="for speed (%(default)s)")
    parser.add_argument("--threads", type=int, default=8, help="beside one (%(default)s)")
    parser.add_argument("--rounds", type=int, default=9)


def measure(options: argparse.Namespace) -> Result:
    """Measure with the given options."""
    if min(options.values, options.timed, options.rounds, options.threads - 1) < 1:
        raise BadArgument("--values, --timed and --rounds are 1 or more, and --threads 2 or more")
    settings = {"values": options.values, "timed": options.timed, "rounds": options.rounds}
    result = Result(settings, {"values": BASE})
    result.machine["versions"] |= _versions()
    if "memory" in options.parts:
        measure_memory(result, options.kinds, options.values, options.rounds)
    for kind in options.kinds:
        progress(kind)
        load = Load(kind, options.timed)
        if "speed" in options.parts:
            measure_speed(result, load, options.rounds)
        if "threads" in options.parts and kind in THREADED:
            measure_threads(result, load, options.threads, options.rounds)
    return result


SCRIPT = Script(__doc__, add_options, measure, tables, goals)

if __name__ == "__main__":
    if sys.argv[1:2] == ["--grown"]:  # the process of one measurement of memory
        name, kind, count = sys.argv[2:]
        print(json.dumps(grown(name, KINDS[kind], int(count))))
    else:
        SCRIPT.main()
