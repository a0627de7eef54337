"""Run the campaign: faults by the thousand and inputs by the million, for hours, with a record.

    .venv/bin/python .ci/campaign.py --list              the parts, their goals, and how far each is
    .venv/bin/python .ci/campaign.py --hours 8           all parts, for eight hours or to their goals
    .venv/bin/python .ci/campaign.py --hours 1 kills     some parts
    .venv/bin/python .ci/campaign.py --jobs 3 restore restore worker    a part twice at a time
    .venv/bin/python .ci/campaign.py --page              write docs/reliability.md from the record

A part runs in slices of some minutes, each with a seed of its own. A slice appends one line to
docs/reliability.jsonl when it ends, so that a campaign goes on where it was stopped. A part counts
what was done since the last change of batchzip/ or backends/, except for batchzip/bench, and with
the revisions that `--also` names: those since which nothing changed that the part meets. In a copy
without git, $BATCHZIP_REVISION tells which revision of the code it is. The exit code is 1 if a
slice found anything; its record has the end of the output. When the cause is known, add it to the
record as `cause`, in a sentence.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import secrets
import shlex
import signal
import string
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from batchzip.bench.figure import describe_machine

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build/campaign"
RECORD = ROOT / "docs/reliability.jsonl"
PAGE = ROOT / "docs/reliability.md"
TEMPLATE = ROOT / ".ci/reliability.md.in"
CODE = ("batchzip", ":(exclude)batchzip/bench", "backends", "hatch_build.py")
"""The code under test. After a change there, the counts start again. Benchmarks are not part of it."""

OUTCOMES = ("lost", "wrong", "hung", "left over")
GRACE_S = 900
"""Seconds that a slice may take beyond its time, for what it makes and checks, until it hangs."""
STOP_S = 5
"""Seconds for slices to end when the campaign is stopped."""
INTERRUPTED = 72
"""libFuzzer's exit code after SIGTERM. It has printed its count."""


@dataclass(frozen=True)
class Part:
    """One kind of fault: `goal` of `unit`, by tests or by a target of the fuzzer."""

    what: str
    goal: int
    unit: str
    tests: tuple[str, ...] = ()
    target: str = ""
    endless: int = 1
    """Tests that go on for as long as they are told to, of a slice; 0: a slice is the whole part."""

    def command(self, seed: int, seconds: int, left: int) -> list[str]:
        """Return the command of a slice. It stands in the record, so it is one to repeat."""
        if self.target:
            limits = [f"--seconds={seconds}", f"--runs={left}", f"--seed={seed}"]
            return [".ci/with_core.sh", "fuzz", "tests/fuzz/run.py", self.target, *limits]
        pytest = [".venv/bin/python", "-m", "pytest", "-q", "-n0", "-m", "stress or not stress"]
        lasts = [f"--stress-s={max(1, seconds // self.endless)}"] if self.endless else []
        return [*pytest, f"--stress-seed={seed}", *lasts, *self.tests]


def _fuzz(target: str, what: str, goal: int) -> Part:
    return Part(what, goal, "executions", target=target)


_STRESS, _FAULTS = "tests/stress/", "tests/faults/"
PARTS = {
    "kills": Part(
        "workers killed and stopped under load",
        10_000,
        "kills and stops",
        (
            f"{_STRESS}test_soak.py::test_no_result_is_wrong_while_workers_are_killed_and_stopped[stress]",
        ),
    ),
    "owners": Part(
        "owners killed, of workers, of a store with a file and a reader, of paged memory",
        1_000,
        "owners killed",
        (
            f"{_STRESS}test_owner_killed.py",
            f"{_STRESS}test_paged_ends.py::test_nothing_is_left_of_a_killed_owner",
        ),
        endless=4,
    ),
    "flips": Part(
        "bits flipped: in the pool for each codec, in the file, and beside the objects",
        10_000_000,
        "bits flipped",
        (f"{_STRESS}test_flipped_bits.py",),
        endless=0,
    ),
    "allocations": Part(
        "each allocation of the core fails in turn, and allocations at random",
        3_000,
        "allocations failed",
        (
            f"{_FAULTS}test_memory.py",
            f"{_FAULTS}test_engine_memory.py",
            f"{_FAULTS}test_thread_memory.py",
            f"{_FAULTS}test_paged_without_memory.py",
        ),
        endless=0,
    ),
    "points": Part(
        "an interrupt at every point of Python code in calls to an engine and a store",
        5_000,
        "points",
        (f"{_STRESS}test_interrupts.py", f"{_FAULTS}test_store_interrupts.py"),
        endless=0,
    ),
    "interrupts": Part(
        "signals at random moments in calls to an engine and a store",
        1_000_000,
        "interrupts",
        (
            f"{_STRESS}test_interrupts.py::test_signals_at_random_moments_leave_nothing_under_way",
            f"{_STRESS}test_interrupts.py::test_signals_at_random_moments_leave_a_store_whole",
        ),
        endless=9,
    ),
    "soak": Part(
        "a store, a mapping, a file, readers and engines in use",
        3_600,
        "seconds",
        (f"{_STRESS}test_growth.py",),
    ),
    "restore": _fuzz("restore", "inputs of each codec to restore", 40_000_000),
    "compress": _fuzz("compress", "pages, and buffers of other sizes, to compress", 10_000_000),
    "worker": _fuzz("worker", "descriptors of a hostile owner, in a worker's loop", 20_000_000),
    "owner": _fuzz("owner", "ring words of a hostile worker, in a batch", 8_000_000),
    "arguments": _fuzz("arguments", "entry points with odd arguments", 8_000_000),
    "replies": _fuzz("replies", "what an owner sends over the socket", 5_000_000),
    "requests": _fuzz("requests", "what a reader sends over the socket", 5_000_000),
    "file": _fuzz("file", "bytes of the backing file", 1_500_000),
    "values": _fuzz("values", "programs of calls to a mapping's records", 1_000_000),
    "view": _fuzz("view", "memory of a hostile owner, read by a reader", 1_000_000),
    "store": _fuzz("store", "programs of calls to a store", 500_000),
}
"""Fuzzing is for 10⁸ executions in all. Goals of targets follow what an execution takes."""


def revision() -> str:
    """Return the last commit that changed the code; with a + if the checkout has other changes.

    A copy without git has to be told, by $BATCHZIP_REVISION.
    """
    if told := os.environ.get("BATCHZIP_REVISION"):
        return told
    log = ["git", "log", "-1", "--format=%h", "--", *CODE]
    dirty = ["git", "status", "--porcelain", "--", *CODE]
    commit, changes = (
        subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for command in (log, dirty)
    )
    return commit.strip() + ("+" if changes.strip() else "")


def machine() -> str:
    """Return the CPUs, the kernel and the Python on which the campaign runs."""
    found = describe_machine()
    return (
        f"{found['cpus']} CPUs, {found['processor']}, "
        f"Linux {platform.release().partition('-')[0]}, Python {found['versions']['python']}"
    )


def records() -> list[dict[str, Any]]:
    """Return what was recorded."""
    return [json.loads(line) for line in RECORD.read_text().splitlines()] if RECORD.exists() else []


class Slice:
    """One run of a part."""

    def __init__(self, name: str, seconds: int, left: int) -> None:
        self._part = PARTS[name]
        self._seconds = seconds
        self._seed = 1 + secrets.randbelow(1 << 24)
        self._command = self._part.command(self._seed, seconds, left)
        self._results = WORK / f"{name}-{self._seed}.xml"
        self._log = WORK / f"{name}-{self._seed}.log"
        self._begun = time.monotonic()
        self._pid = 0
        self.stopped = False
        self.record: dict[str, Any] = {
            "part": name,
            "count": 0,
            "unit": self._part.unit,
            "seed": self._seed,
            "command": shlex.join(self._command),
            "revision": revision(),
            "machine": machine(),
            "begun": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def run(self) -> None:
        """Run it, and record what came of it."""
        command = list(self._command)
        if not self._part.target:
            command += [f"--junitxml={self._results}", "-o", "junit_family=xunit1"]
        with self._log.open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "KEEP_TREE": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._pid = process.pid
            if self.stopped:  # meanwhile
                self.end(signal.SIGKILL)
            limit = threading.Timer(self._limit_s(), self.end, (signal.SIGABRT,))
            limit.start()
            _, status, used = os.wait4(process.pid, 0)
            limit.cancel()
            self.end(signal.SIGKILL)  # what it left running
        process.returncode = code = os.waitstatus_to_exitcode(status)
        self.record["cpu_s"] = round(used.ru_utime + used.ru_stime, 1)
        if self.stopped and code == INTERRUPTED:
            code = 0
        if not self.stopped or code >= 0:
            self._note(code)

    def stop(self) -> None:
        """End it before its time. What the fuzzer did counts; tests count only as a whole."""
        self.stopped = True
        fuzzes = self._part.target and re.search(r"^#\d+\s", self._output(), re.MULTILINE)
        self.end(signal.SIGTERM if fuzzes else signal.SIGKILL)

    def end(self, number: int) -> None:
        """Send a signal to all of its processes."""
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._pid, number)

    def _limit_s(self) -> float:
        """Return the seconds after which it hangs."""
        return self._seconds + (GRACE_S if self._part.endless else 16 * GRACE_S)

    def _output(self) -> str:
        return self._log.read_text(errors="replace")

    def _note(self, code: int) -> None:
        output = self._output()
        found, details = self._fuzzed(output) if self._part.target else self._tested()
        outcomes = Counter(found)
        if code and not found:
            outcomes[_outcome_of(output)] += 1
        self.record |= {
            "wall_s": round(time.monotonic() - self._begun, 1),
            **details,
            **{outcome: outcomes[outcome] for outcome in OUTCOMES},
        }
        if any(outcomes.values()):
            told = output.replace(str(ROOT), ".").replace(str(Path.home()), "~")
            self.record["found"] = told[-3000:]
        with RECORD.open("a") as file:
            file.write(json.dumps(self.record) + "\n")

    def _fuzzed(self, output: str) -> tuple[list[str], dict[str, Any]]:
        done = [int(count) for count in re.findall(r"number_of_executed_units: (\d+)", output)]
        seen = [int(count) for count in re.findall(r"^#(\d+)\s", output, re.MULTILINE)]
        places = re.findall(r"cov: (\d+)", output)
        details = {"count": max(done or seen or [0]), "coverage": int((places or ["0"])[-1])}
        return [], details

    def _tested(self) -> tuple[list[str], dict[str, Any]]:
        if not self._results.exists():
            return [], {}
        found, counts, told = [], Counter[str](), []
        for case in ET.parse(self._results).iter("testcase"):  # noqa: S314 - our own
            for one in case.iter("property"):
                name, value = str(one.get("name")), str(one.get("value"))
                if name == "survived":
                    told.append(value)
                elif name.startswith("count "):
                    counts[name.removeprefix("count ")] += int(value)
            problems = [*case.iter("failure"), *case.iter("error")]
            found += [_outcome_of(f"{one.get('message')}\n{one.text}") for one in problems]
        count = counts.pop(self._part.unit, 0)
        return found, {"count": count, "told": told}


def _outcome_of(text: str) -> str:
    """Return which of the outcomes a failure is."""
    signs = {
        "hung": r"Timeout \(|libFuzzer: timeout|does not end|HANG_LIMIT|SIGABRT|Aborted",
        "left over": r"left behind|LeakCheck|leaves_nothing",
        "lost": r"PageNotStored|CorruptPage|CorruptValue|KeyError",
    }
    return next((name for name, sign in signs.items() if re.search(sign, text)), "wrong")


def done(name: str, revisions: tuple[str, ...]) -> int:
    """Return the count of a part with these revisions of the code."""
    return sum(
        one["count"] for one in records() if one["part"] == name and one["revision"] in revisions
    )


def progress(name: str, revisions: tuple[str, ...]) -> float:
    """Return the same as a fraction of the part's goal."""
    return done(name, revisions) / PARTS[name].goal


def can_fuzz() -> bool:
    """Build the core for the fuzzer. Return whether it is there, with all that it needs."""
    command = [".ci/with_core.sh", "fuzz", "-c", "import atheris, batchzip.core.view"]
    done = subprocess.run(command, cwd=ROOT, check=False)
    if done.returncode:
        print("the parts that fuzz are left out: they need clang and atheris", file=sys.stderr)
    return done.returncode == 0


class Campaign:
    """Slices of parts, those that are least far first, several at a time."""

    def __init__(
        self, names: list[str], hours: float, seconds: int, jobs: int, revisions: tuple[str, ...]
    ) -> None:
        self._names = dict(enumerate(names))  # by place: a part may be there twice
        self._seconds, self._jobs = seconds, jobs
        self._until = time.monotonic() + 3600 * hours
        self._running: dict[int, Slice | None] = {}
        self._lock = threading.Lock()
        self._revisions = revisions
        self.found = 0

    def run(self) -> None:
        """Run slices until the time is over, or each part has reached its goal."""
        WORK.mkdir(parents=True, exist_ok=True)
        if any(PARTS[name].target for name in self._names.values()) and not can_fuzz():
            self._names = {
                place: name for place, name in self._names.items() if not PARTS[name].target
            }
        threads = [threading.Thread(target=self._work) for _ in range(self._jobs)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:  # Ctrl-C, or SIGTERM
            self._until = 0.0
            running = list(filter(None, list(self._running.values())))
            for run in running:
                run.stop()
            limit = time.monotonic() + STOP_S
            for thread in threads:
                thread.join(max(0.0, limit - time.monotonic()))
            for run in running:
                run.end(signal.SIGKILL)
            raise

    def _next(self) -> int | None:
        with self._lock:
            open_parts = {
                place: progress(name, self._revisions)
                for place, name in self._names.items()
                if place not in self._running
            }
            open_parts = {place: far for place, far in open_parts.items() if far < 1}
            if not open_parts or time.monotonic() >= self._until:
                return None
            place = min(open_parts, key=open_parts.__getitem__)
            self._running[place] = None
            return place

    def _work(self) -> None:
        while (place := self._next()) is not None:
            name = self._names[place]
            left = PARTS[name].goal - done(name, self._revisions)
            seconds = max(1, min(self._seconds, round(self._until - time.monotonic())))
            self._running[place] = run = Slice(name, seconds, left)
            print(f"{name}: {run.record['command']}", flush=True)
            run.run()
            if run.stopped:
                return
            one = run.record
            bad = {outcome: one[outcome] for outcome in OUTCOMES if one[outcome]}
            self.found += sum(bad.values())
            print(f"{name}: {one['count']:,} {one['unit']}, {bad or 'all well'}", flush=True)
            with self._lock:
                del self._running[place]
                if not one["count"]:  # it cannot run: its record or its log tells why
                    del self._names[place]


def rows(recorded: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the sums of the records of each part."""
    found = []
    for name, part in PARTS.items():
        own = [one for one in recorded if one["part"] == name]
        cpu_s = sum(one["cpu_s"] for one in own)
        count = sum(one["count"] for one in own)
        found.append(
            {
                "name": name,
                "part": part,
                "count": count,
                "rate": count / cpu_s if cpu_s else 0,
                "outcomes": [sum(one[outcome] for one in own) for outcome in OUTCOMES],
            }
        )
    return found


def grouped(recorded: list[dict[str, Any]], *names: str) -> dict[tuple[Any, ...], list[Any]]:
    """Return the records by what they have under the names."""
    found: dict[tuple[Any, ...], list[Any]] = {}
    for one in recorded:
        found.setdefault(tuple(one.get(name, "") for name in names), []).append(one)
    return found


def findings(recorded: list[dict[str, Any]]) -> list[str]:
    """Return a line for each thing that was found, with its cause if that is on record."""
    bad = [one for one in recorded if any(one[outcome] for outcome in OUTCOMES)]
    return [
        f"* {some[0]['begun'][:10]}, {part}, revision {now}, "
        f"seed {some[0]['seed']}{f' and {len(some) - 1} more' if some[1:] else ''}: "
        + ", ".join(outcome for outcome in OUTCOMES if any(one[outcome] for one in some))
        + (f". {cause}" if cause else "")
        for (part, now, cause), some in grouped(bad, "part", "revision", "cause").items()
    ]


def page() -> str:
    """Return docs/reliability.md."""
    recorded = records()
    by_part = rows(recorded)
    lines = [
        f"| part | what | goal | done | {' | '.join(OUTCOMES)} | per CPU second |",
        f"|---|---|---:|---:|{'---:|' * len(OUTCOMES)}---:|",
    ]
    for row in by_part:
        part: Part = row["part"]
        rate = f"{row['rate']:,.3g}" if row["rate"] < 100 else f"{row['rate']:,.0f}"
        lines.append(
            f"| {row['name']} | {part.what} | {part.goal:,} {part.unit} | {row['count']:,} "
            f"| {' | '.join(map(str, row['outcomes']))} | {rate if row['count'] else '–'} |"
        )
    runs = [
        f"| {part} | {host} | {', '.join(dict.fromkeys(one['revision'] for one in some))} "
        f"| {len(some):,} | {sum(one['count'] for one in some):,} {some[0]['unit']} "
        f"| {sum(one['wall_s'] for one in some) / 60:,.0f} min |"
        for (part, host), some in grouped(recorded, "part", "machine").items()
    ]
    fuzzed = sum(row["count"] for row in by_part if row["part"].target)
    return string.Template(TEMPLATE.read_text()).substitute(
        table="\n".join(lines),
        found="\n".join(findings(recorded)) or "Nothing.",
        machines="\n".join(f"* {name}" for name in dict.fromkeys(o["machine"] for o in recorded)),
        runs="\n".join(
            [
                "| part | machine | revisions | slices | count | lasted in all |",
                "|---|---|---|---:|---:|---:|",
                *runs,
            ]
        ),
        fuzzed=f"{fuzzed:,}",
        targets=sum(bool(part.target) for part in PARTS.values()),
    )


def show_parts(revisions: tuple[str, ...]) -> None:
    """Print the parts, and how far each is."""
    print(f"with the code of {', '.join(revisions)}:")
    for name, part in PARTS.items():
        print(
            f"{name:12} {done(name, revisions):>12,} of {part.goal:>12,} {part.unit:18} {part.what}"
        )


def main() -> int:
    """Run what the arguments tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--hours", type=float, default=1.0, help="for all parts together")
    parser.add_argument("--slice-s", type=int, default=300, help="seconds of a slice")
    parser.add_argument("--jobs", type=int, default=1, help="parts that run at the same time")
    parser.add_argument(
        "--also", action="append", default=[], help="count what was done with this revision, too"
    )
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--page", action="store_true")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}: {', '.join(PARTS)}")
    revisions = (revision(), *options.also)
    if options.list:
        show_parts(revisions)
        return 0
    found = 0
    if not options.page:
        campaign = Campaign(
            options.parts or list(PARTS),
            options.hours,
            options.slice_s,
            options.jobs,
            revisions,
        )
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        campaign.run()
        found = campaign.found
    PAGE.write_text(page())
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
