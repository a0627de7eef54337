"""Mutants: faults put into a copy of the core. The explorer has to find each.

    .venv/bin/python tests/model/mutants.py            all of them: it compiles each, for minutes
    .venv/bin/python tests/model/mutants.py bell       those with one of these words in their names

Run it after a change to the ring, the division or the explorer.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
CORE = "batchzip/core"


class Mutant(NamedTuple):
    """A fault: what is replaced in which file, and scenarios of which one finds it."""

    name: str
    file: str
    old: str
    new: str
    scenarios: str


MUTANTS = [
    Mutant(
        "a lane sleeps without a second look",
        "lane.pyx",
        "if bz_load32(&control.posted) == done and not bz_load32(&control.stop):",
        "if True:",
        "wake",
    ),
    Mutant(
        "a lane takes no second look at stop",
        "lane.pyx",
        "if bz_load32(&control.posted) == done and not bz_load32(&control.stop):",
        "if bz_load32(&control.posted) == done:",
        "stop-idle",
    ),
    Mutant(
        "a lane reads the bell after its second look",
        "lane.pyx",
        "            bz_futex_wait(&control.bell, bell, -1)",
        "            bz_futex_wait(&control.bell, bz_load32(&control.bell), -1)",
        "wake stop-idle",
    ),
    Mutant(
        "a lane announces its sleep after its second look",
        "lane.pyx",
        "        bz_store32(&control.asleep, 1)\n",
        "        if bz_load32(&control.posted) != done or bz_load32(&control.stop):\n"
        "            continue\n"
        "        bz_store32(&control.asleep, 1)\n"
        "        bz_futex_wait(&control.bell, bell, -1)\n",
        "wake",
    ),
    Mutant(
        "no fence between a lane's announcement and its second look",
        "lane.pyx",
        "        bz_store32(&control.asleep, 1)\n        bz_fence()\n",
        "        bz_store32(&control.asleep, 1)\n",
        "wake",
    ),
    Mutant(
        "no fence between posting and looking whether the lane sleeps",
        "ring.pyx",
        "    bz_store32(&control.posted, posted)\n    bz_fence()\n".replace(
            "&control", "&ring.control"
        ),
        "    bz_store32(&ring.control.posted, posted)\n",
        "wake",
    ),
    Mutant(
        "no fence between done and looking whether anybody waits",
        "lane.pyx",
        "        bz_fence()\n        if bz_load32(&control.waiters):",
        "        if bz_load32(&control.waiters):",
        "wake",
    ),
    Mutant(
        "whoever waits does not say so",
        "ring.pyx",
        "    bz_add32(&ring.control.waiters, 1)\n",
        "",
        "wake",
    ),
    Mutant(
        "a lane looks for waiters before it says done",
        "lane.pyx",
        "        bz_store32(&control.done, done)\n",
        "        cpu = bz_load32(&control.waiters)\n        bz_store32(&control.done, done)\n"
        "        if not cpu:\n            continue\n",
        "wake",
    ),
    Mutant(
        "a lane that sleeps is not woken",
        "ring.pyx",
        "    bz_add32(&ring.control.bell, 1)\n    bz_futex_wake(&ring.control.bell)\n    return",
        "    return",
        "wake",
    ),
    Mutant(
        "taking is no compare-and-swap",
        "ring.pyx",
        "        if bz_cas64(claim, &seen, seen + 1):",
        "        bz_store64(claim, seen + 1)\n        if True:",
        "divide",
    ),
    Mutant(
        "taking back is no compare-and-swap",
        "ring.pyx",
        "        if bz_cas64(claim, &seen, seen - (<uint64_t>left << 32)):",
        "        bz_store64(claim, seen - (<uint64_t>left << 32))\n        if True:",
        "divide",
    ),
    Mutant(
        "two callers may post at once",
        "ring.pyx",
        "    if bz_exchange32(&ring.lock, 1):",
        "    if bz_exchange32(&ring.lock, 0):",
        "two-callers",
    ),
    Mutant(
        "a share is posted before its claim is written",
        "ring.pyx",
        "        _write_slot(ring, &ring.slots[number % SLOTS], share, number)\n",
        "        bz_store32(&ring.control.posted, number + 1)\n"
        "        _write_slot(ring, &ring.slots[number % SLOTS], share, number)\n",
        "divide wake reuse-slots",
    ),
    Mutant(
        "a fifth share is posted to four slots",
        "ring.pyx",
        "        and under_way < SLOTS\n",
        "        and under_way <= SLOTS\n",
        "withdraw-all-from-worker",
    ),
    Mutant(
        "a slot is used again while its job still looks at it",
        "ring.pyx",
        "        bz_store32(&ring.held[number % SLOTS], 1)\n",
        "",
        "reuse-worker-slots",
    ),
    Mutant(
        "a share counts as done before its last page",
        "lane.pyx",
        "        if not _do_share(lane, done):\n            return\n        done += 1\n",
        "        bz_store32(&control.done, done + 1)\n"
        "        if not _do_share(lane, done):\n            return\n        done += 1\n",
        "divide withdraw",
    ),
    Mutant(
        "a lane touches a batch of which it took no page",
        "lane.pyx",
        "        if number >= descriptor.count:\n            break\n",
        "        if number >= descriptor.count:\n            if lane.is_thread:\n"
        "                batch.dlens[first] = batch.dlens[first] + 0\n"
        "                batch.errors[first] = 0\n            break\n",
        "withdraw drop",
    ),
    Mutant(
        "a withdrawn share that is begun is not waited for",
        "division.pyx",
        "        if posted.first < posted.end and not posted.in_slot:\n            at += 1\n"
        "            continue\n",
        "",
        "withdraw",
    ),
    Mutant(
        "a dropped job does not wait",
        "division.pyx",
        "                while state.posted_count and state.posted[0].ring.is_thread:\n"
        "                    _await_rest(state, bz_now_ns() + DROP_NS)\n"
        "                _await_rest(state, bz_now_ns() + DROP_NS)\n",
        "",
        "drop",
    ),
    Mutant(
        "the page that a dead lane was at is forgotten",
        "division.pyx",
        "        _suspect(job, posted.first + <uint32_t>finished, posted.first + begun, weight)\n",
        "        pass\n",
        "killed-lane",
    ),
    Mutant(
        "pages that a dead lane had finished are forgotten",
        "division.pyx",
        "        _push(job, &job.only_lanes, posted.first, posted.first + begun - 1)\n",
        "",
        "worker-ends-at-coded-2 worker-ends-at-took-2",
    ),
]


def outdated() -> list[str]:
    """Return a line for each mutant whose text is not in the core exactly once."""
    counts = [(ROOT / CORE / mutant.file).read_text().count(mutant.old) for mutant in MUTANTS]
    return [
        f"{mutant.name}: {mutant.file} has the text that it replaces {count} times, not once"
        for mutant, count in zip(MUTANTS, counts, strict=True)
        if count != 1
    ]


def find(mutant: Mutant, folder: Path) -> str:
    """Return what the explorer says of a mutant; empty if it finds nothing."""
    for name in ("batchzip", "backends", "hatch_build.py", "pyproject.toml"):
        source, target = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copyfile(source, target)
    shutil.copytree(ROOT / "build/core/explore", folder / "build/core/explore")
    path = folder / CORE / mutant.file
    path.write_text(path.read_text().replace(mutant.old, mutant.new))
    environment = os.environ | {"BATCHZIP_CORE_PROFILE": "explore"}
    tree = folder / "tree"
    command = [sys.executable, "hatch_build.py", "--into", str(tree)]
    subprocess.run(command, cwd=folder, env=environment, check=True)
    explorer = ROOT / "tests/model/explore.py"
    done = subprocess.run(
        [sys.executable, str(explorer), *mutant.scenarios.split()],
        cwd=tree,
        env=environment | {"PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if not done.returncode:
        return ""
    said = [line for line in done.stderr.splitlines() if "; choices" in line]
    return said[-1] if said else f"exit status {done.returncode}: {done.stderr[-300:]}"


def main() -> None:
    if old := outdated():
        sys.exit("\n".join(old))
    subprocess.run([ROOT / ".ci/with_core.sh", "explore", "-c", "pass"], check=True)
    missed, words = [], sys.argv[1:]
    chosen = [
        mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)
    ]
    for mutant in chosen:
        with tempfile.TemporaryDirectory() as folder:
            found = find(mutant, Path(folder))
        print(f"{'found ' if found else 'MISSED'} {mutant.name}: {found}", flush=True)
        if not found:
            missed.append(mutant.name)
    print(f"{len(chosen) - len(missed)} of {len(chosen)} mutants found")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
