"""No descriptor of batchzip's is one of the standard ones, also where these are closed."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

BEGIN = """
import os, sys, threading
import batchzip
from batchzip import CompressBatch, Engine, SwapStore
from batchzip.descriptors import above_standard, moved_above_standard
from batchzip.store import attach
report = open(sys.argv[1], "w")
for fd in {closed}:
    os.close(fd)
def ours():
    return [fd for fd in {closed} if os.path.lexists(f"/proc/self/fd/{{fd}}")]
"""

USES = {
    "a store": """
store = SwapStore(Engine("lz4", backend="sequential"))
store.store(0, [os.urandom(4096)] * 100)
assert store.load(5)
""",
    "a store with a backing file": """
store = SwapStore(Engine("lz4", backend="sequential"), backing=sys.argv[2], max_pool_bytes=1 << 16)
store.store(0, [os.urandom(4096) for _ in range(200)])
assert store.load(5)
""",
    "a store with an unnamed backing file": """
store = SwapStore(Engine("lz4", backend="sequential"), backing=os.path.dirname(sys.argv[2]), max_pool_bytes=1 << 16)
store.store(0, [os.urandom(4096) for _ in range(200)])
assert store.load(5)
""",
    "a shared store and its reader": """
store = SwapStore(Engine("lz4", backend="sequential"))
store.store(0, [bytes([n]) * 1000 + os.urandom(3096) for n in range(100)])
share = store.share()
view = attach(share)
assert view.load(5) == store.load(5)
""",
    "workers and an arena": """
engine = Engine("lz4", backend="workers", workers=2)
assert engine.wait_ready()
arrays = [engine.arena(10) for _ in range(10)]
batch = CompressBatch(arrays[0])
engine.compress(batch)
assert not batch.has_errors
""",
}


@pytest.mark.parametrize("closed", [(0, 1, 2), (1,)], ids=str)
@pytest.mark.parametrize("use", USES)
def test_nothing_of_ours_is_a_standard_descriptor(
    use: str, closed: tuple[int, ...], tmp_path: Path
) -> None:
    report = run(BEGIN.format(closed=closed) + USES[use], tmp_path)
    assert report == "[]"


def test_many_threads_make_descriptors_at_once(tmp_path: Path) -> None:
    source = (
        BEGIN.format(closed=(0, 1, 2))
        + """
low = []
def make():
    for _ in range(300):
        with above_standard():
            fd = os.memfd_create("mine")
            if fd < 3:
                low.append(fd)
        os.close(fd)
threads = [threading.Thread(target=make) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not low
"""
    )
    assert run(source, tmp_path) == "[]"


def test_a_descriptor_can_be_moved(tmp_path: Path) -> None:
    source = (
        BEGIN.format(closed=(0,))
        + """
fd = os.memfd_create("mine")
assert fd == 0
os.write(fd, b"text")
fd = moved_above_standard(fd)
assert fd > 2 and os.pread(fd, 4, 0) == b"text" and not os.get_inheritable(fd)
assert moved_above_standard(fd) == fd
os.close(fd)
"""
    )
    assert run(source, tmp_path) == "[]"


def run(source: str, folder: Path) -> str:
    """Run a script with descriptors closed; what it has in their place at its end."""
    report = folder / "report"
    source += "\nfound = ours()\nreport.write(str(found))\nreport.close()\n"
    subprocess.run(
        [sys.executable, "-c", source, report, folder / "backing"], timeout=60, check=True
    )
    return report.read_text()
