"""The logged history of a store that many clients share, and the check whether it is allowed.

Each page is filled with its index and its version. Each client logs what it begins and how that
ends before it goes on, and its log survives it. `check` reads all logs afterwards. It shares no
code with the store. For each index it requires:

* A page that was read is whole, of this index, and of a version that somebody had begun to store.
  Nothing was acknowledged there between the end of that store and the begin of the read: no other
  version, no invalidation, no recovery that named the page.
* A page is absent only if no store of it was acknowledged, or if since the last one began it was
  invalidated, a PagesLost or recover() named it to anybody, or a store of it failed.
* Only allowed exceptions were raised, and no call took longer than its limit.

Times are of CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import struct
import threading
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

PAGE = 4096
HELD = -1
"""In place of a version: `in` said that there is one."""

_STAMP = struct.Struct("<QQ")
_FOREVER = 1 << 62

now = time.monotonic_ns


def page_of(index: int, version: int) -> bytes:
    """Make a page; one version in four does not compress."""
    stamp = _STAMP.pack(index, version)
    if version % 4:
        return stamp * (PAGE // len(stamp))
    return stamp + random.Random(index << 64 | version).randbytes(PAGE - len(stamp))


def version_of(page: bytes, index: int) -> int | None:
    """Give the version of a page, or None if it is not whole, or another one's."""
    if len(page) != PAGE:
        return None
    found, version = _STAMP.unpack_from(page)
    return version if found == index and page == page_of(index, version) else None


class Log:
    """What one client did, in a file. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._numbers = itertools.count()

    def close(self) -> None:
        os.close(self._file)

    def write(self, *event: object) -> None:
        os.write(self._file, json.dumps(event).encode() + b"\n")

    def begin(self, kind: str, first: int, count: int, version: int) -> int:
        """Note the beginning of what changes something; its number."""
        number = next(self._numbers)
        self.write("begin", number, kind, first, count, version, now())
        return number

    def end(self, number: int, done: bool) -> None:
        self.write("end", number, done, now())

    def named(self, begin: int, ranges: Iterable[range], *, recovered: bool) -> None:
        """Note which pages were said to be lost, by an error or by recover()."""
        parts = [(part.start, part.stop) for part in ranges]
        self.write("named", begin, now(), recovered, parts)

    def read(self, begin: int, found: Sequence[tuple[int, int | None]]) -> None:
        """Note versions that were read, None of what was absent, by index."""
        self.write("read", begin, now(), found)

    def call(self, kind: str, begin: int, outcome: str) -> None:
        self.write("call", kind, begin, now(), outcome)

    def wrong(self, text: str) -> None:
        """Note what is wrong whatever else happened."""
        self.write("wrong", now(), text)

    def fault(self, kind: str) -> None:
        self.write("fault", now(), kind)


@dataclass
class Verdict:
    """What `check` found."""

    wrong: list[str] = field(default_factory=list)
    """Pages that must not be there as they were read, and exceptions that must not come out."""
    unnamed: list[str] = field(default_factory=list)
    """Pages that are absent, and that nobody was told of."""
    calls: Counter[str] = field(default_factory=Counter)
    """How many there were of each kind and outcome."""
    faults: Counter[str] = field(default_factory=Counter)
    reads: int = 0
    absent: int = 0
    stored: int = 0
    """Pages of stores that were acknowledged."""
    named: int = 0
    """Of these, such that were the last ones at their index when they were named."""
    named_late: int = 0
    """Absent pages of another client that were named only later, after a scheduler was lost."""
    orphaned: int = 0
    """Absent pages of a client that was killed before a scheduler was lost, so nobody was told."""
    killed: set[int] = field(default_factory=set)
    """Numbers of the clients that were."""
    undone: int = 0
    """Absent pages whose last store failed, and that nobody named."""
    longest: dict[str, float] = field(default_factory=dict)
    """Seconds of the longest call of each kind."""
    named_ranges: list[tuple[int, int]] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{self.stored:,} pages stored, {self.named:,} lost and named",
            f"{len(self.unnamed):,} lost and unnamed, {len(self.wrong):,} wrong",
            f"{self.reads:,} pages read, {self.absent:,} of them absent",
            (
                f"of these {self.named_late:,} named later, {self.orphaned:,} of killed clients, "
                f"{self.undone:,} after a store that failed"
            ),
            "calls: " + ", ".join(f"{what} {n:,}" for what, n in sorted(self.calls.items())),
            "faults: " + ", ".join(f"{what} {n}" for what, n in sorted(self.faults.items())),
            "longest calls: "
            + ", ".join(f"{kind} {s:.2f} s" for kind, s in sorted(self.longest.items())),
            *self.wrong[:20],
            *self.unnamed[:20],
        ]
        return "\n".join(lines)


@dataclass
class _Store:
    begin: int
    end: int
    version: int
    done: bool


@dataclass
class _Index:
    """All that happened at one index; spans are (begin, end)."""

    stores: dict[int, _Store] = field(default_factory=dict)
    dropped: list[tuple[int, int]] = field(default_factory=list)
    """Invalidations that are certain."""
    recovered: list[tuple[int, int]] = field(default_factory=list)
    """Recoveries that named it."""
    maybe_dropped: list[tuple[int, int]] = field(default_factory=list)
    named: list[tuple[int, int]] = field(default_factory=list)
    reads: list[tuple[int, int, int | None, str]] = field(default_factory=list)


class _Spans:
    """Spans, and the greatest end, or beginning, of those that begin, or end, before a time."""

    def __init__(self, keyed: Iterable[tuple[int, int]]) -> None:
        pairs = sorted(keyed)
        self._keys = [key for key, _ in pairs]
        self._most = list(itertools.accumulate((value for _, value in pairs), max))

    def most_before(self, time: int) -> int:
        at = bisect_left(self._keys, time)
        return self._most[at - 1] if at else -1


class _Overwritten:
    """Whether something certain lies wholly between two times."""

    def __init__(self, spans: Iterable[tuple[int, int]]) -> None:
        pairs = sorted(spans)
        self._begins = [begin for begin, _ in pairs]
        self._ends = list(itertools.accumulate((end for _, end in reversed(pairs)), min))[::-1]

    def between(self, after: int, before: int) -> bool:
        at = bisect_left(self._begins, after + 1)
        return at < len(self._ends) and self._ends[at] < before


def check(logs: Iterable[Path], *, losses: bool = True, limit_s: float = 60.0) -> Verdict:
    """Read the logs, and judge. Without `losses`, nothing may be named lost at all."""
    verdict = Verdict()
    indices: defaultdict[int, _Index] = defaultdict(_Index)
    ended: list[int] = []
    for path in logs:
        reader = _Reader(path.name, verdict, indices, ended)
        for line in path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):  # its client was killed while it wrote the other
                what, *event = json.loads(line)
                getattr(reader, what)(*event)
        reader.close()
    if not losses and verdict.named_ranges:
        verdict.wrong.append(f"named lost, which nothing explains: {verdict.named_ranges[:20]}")
    slow = {kind: seconds for kind, seconds in verdict.longest.items() if seconds > limit_s}
    if slow:
        verdict.wrong.append(f"calls took longer than {limit_s:g} s: {slow}")
    for index, of in sorted(indices.items()):
        _judge(index, of, verdict, ended)
    return verdict


class _Reader:
    """What one log's events are to the indices: methods are named as the events."""

    def __init__(
        self,
        name: str,
        verdict: Verdict,
        indices: defaultdict[int, _Index],
        ended: list[int],
    ) -> None:
        self._name = name
        self._verdict = verdict
        self._indices = indices
        self._ended = ended
        """When a scheduler was."""
        self._begun: dict[int, tuple[str, int, int, int, int]] = {}

    def begin(self, number: int, *of: Any) -> None:
        self._begun[number] = of

    def end(self, number: int, done: bool, end: int) -> None:
        kind, first, count, version, begin = self._begun.pop(number)
        self._verdict.stored += count * (kind == "store" and done)
        for index in range(first, first + count):
            of = self._indices[index]
            if kind == "store":
                of.stores[version] = _Store(begin, end, version, done)
            else:
                (of.dropped if done else of.maybe_dropped).append((begin, end))

    def named(self, begin: int, end: int, recovered: bool, parts: list[tuple[int, int]]) -> None:
        self._verdict.named_ranges += parts
        for index in itertools.chain.from_iterable(range(*part) for part in parts):
            self._indices[index].named.append((begin, end))
            if recovered:
                self._indices[index].recovered.append((begin, end))

    def read(self, begin: int, end: int, found: list[tuple[int, int | None]]) -> None:
        for index, version in found:
            self._indices[index].reads.append((begin, end, version, self._name))

    def call(self, kind: str, begin: int, end: int, outcome: str) -> None:
        self._verdict.calls[f"{kind}: {outcome}"] += 1
        longest = self._verdict.longest
        longest[kind] = max(longest.get(kind, 0), (end - begin) / 1e9)

    def wrong(self, time: int, text: str) -> None:
        self._verdict.wrong.append(f"{self._name}, {time / 1e9:.3f} s: {text}")

    def fault(self, time: int, kind: str) -> None:
        self._verdict.faults[kind] += 1
        if kind.startswith("scheduler"):
            self._ended.append(time)

    def killed(self, number: int) -> None:
        self._verdict.killed.add(number)

    def close(self) -> None:
        """What had begun when the log ends may have happened, and may still."""
        for number in list(self._begun):
            self.end(number, False, _FOREVER)


def _judge(index: int, of: _Index, verdict: Verdict, ended: list[int]) -> None:
    acknowledged = [store for store in of.stores.values() if store.done]
    _sort_recoveries(of, ended)
    overwritten = _Overwritten([*((s.begin, s.end) for s in acknowledged), *of.dropped])
    last_begin = _Spans((store.end, store.begin) for store in acknowledged)
    named = _Spans(of.named)
    dropped = _Spans([*of.dropped, *of.maybe_dropped])
    undone = _Spans((s.begin, s.end) for s in of.stores.values() if not s.done)
    stores = _Spans((s.begin, s.end) for s in of.stores.values())
    last_drop = _Spans((end, begin) for begin, end in of.dropped)
    for begin, end, version, who in of.reads:
        verdict.reads += 1
        told = f"{who}: page {index}, read at {begin / 1e9:.3f} to {end / 1e9:.3f} s, "
        if version is None:
            verdict.absent += 1
            last = last_begin.most_before(begin)
            if last < 0 or max(named.most_before(end), dropped.most_before(end)) > last:
                continue
            restarted = any(last < at < end for at in ended)
            if restarted and _is_explained(of, last, verdict):
                pass
            elif undone.most_before(end) > last:
                verdict.undone += 1
            else:
                verdict.unnamed.append(f"{told}is absent; stored at {last / 1e9:.3f} s")
        elif version == HELD:
            if stores.most_before(end) < last_drop.most_before(begin) or not of.stores:
                verdict.wrong.append(f"{told}was said to be there")
        else:
            store = of.stores.get(version)
            if store is None or store.begin > end:
                verdict.wrong.append(f"{told}has version {version:#x}, which nobody stored")
            elif overwritten.between(store.end, begin):
                verdict.wrong.append(
                    f"{told}has version {version:#x} of {store.begin / 1e9:.3f} "
                    f"to {store.end / 1e9:.3f} s, "
                    "which was replaced or forgotten meanwhile"
                )
    counted = {last_begin.most_before(end) for _, end in of.named}
    verdict.named += len(counted - {-1})


def _sort_recoveries(of: _Index, ended: list[int]) -> None:
    """Take recoveries for invalidations; they are not certain after a scheduler ended.

    Then a client is told what it had lost with it, wherever others have stored since.
    """
    for span in of.recovered:
        certain = not any(at < span[1] for at in ended)
        (of.dropped if certain else of.maybe_dropped).append(span)


def _is_explained(of: _Index, last: int, verdict: Verdict) -> bool:
    """Count a page lost with a scheduler if it was named later or its client was killed."""
    late = any(until > last for _, until in of.named)
    client = next(store.version >> 40 for store in of.stores.values() if store.begin == last)
    orphaned = not late and client in verdict.killed
    verdict.named_late += late
    verdict.orphaned += orphaned
    return late or orphaned


class Watch:
    """Calls that are under way in this process; those that take too long are noted."""

    def __init__(self, log: Log, limit_s: float) -> None:
        self._log = log
        self._limit = int(limit_s * 1e9)
        self._under_way: dict[object, tuple[str, int]] = {}
        self._lock = threading.Lock()

    def begin(self, key: object, kind: str) -> int:
        begin = now()
        with self._lock:
            self._under_way[key] = kind, begin
        return begin

    def end(self, key: object) -> None:
        with self._lock:
            del self._under_way[key]

    def longest_s(self) -> float:
        """Give the seconds that the oldest call takes by now; 0 if none is under way."""
        with self._lock:
            begins = [begin for _, begin in self._under_way.values()]
        return max(0.0, (now() - min(begins, default=_FOREVER)) / 1e9)

    def look(self) -> list[Any]:
        """Note what has taken too long by now, once; what that is."""
        with self._lock:
            late = [
                (key, kind, begin)
                for key, (kind, begin) in self._under_way.items()
                if now() - begin > self._limit
            ]
            for key, kind, _ in late:
                self._under_way[key] = kind, _FOREVER
        for _, kind, begin in late:
            self._log.wrong(f"{kind}, begun at {begin / 1e9:.3f} s, has not ended")
        return late
