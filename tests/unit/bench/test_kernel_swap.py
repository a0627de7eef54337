"""The swap area and the groups of a measurement are gone when its program is, however it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.waiting import await_true

from batchzip.bench.algorithm import Algorithm
from batchzip.bench.kernel_swap import KernelSwap
from batchzip.bench.memory_group import find_controller
from batchzip.bench.pages import PAGE
from batchzip.bench.peer_stores import KernelPages

PROGRAM = """
from batchzip.bench.kernel_swap import KernelSwap
swap = KernelSwap(16 << 20)
group = swap.group(8 << 20)
print("made", flush=True)
input()
"""


def areas() -> int:
    return Path("/proc/swaps").read_text().count("/dev/zram")


def groups(pid: int) -> list[Path]:
    return list(find_controller()[1].glob(f"batchzip-{pid}-*"))


@pytest.fixture
def swap_here() -> None:
    with KernelSwap(16 << 20) as swap:
        missing = swap.missing or swap.groups_missing
    if missing:
        pytest.skip(missing)


@pytest.mark.slow
@pytest.mark.usefixtures("swap_here")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_of_a_program_that_is_killed(end: signal.Signals) -> None:
    before = areas()
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"made\n"
        assert areas() == before + 1
        assert len(groups(program.pid)) == 1
        program.send_signal(end)
    await_true(lambda: areas() <= before and not groups(program.pid))


@pytest.mark.slow
@pytest.mark.usefixtures("swap_here")
def test_a_group_limits_what_is_charged_to_it() -> None:
    with KernelSwap(64 << 20) as swap, swap.group(8 << 20) as group:
        script = "input(); data = bytearray(range(256)) * (128 << 10); print(len(data))"
        with subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            group.take(process.pid)
            output, _ = process.communicate(b"\n")
        assert int(output) == 32 << 20
        assert 0 < group.peak_bytes <= 8 << 20
        assert swap.peak_bytes > 0


@pytest.mark.slow
@pytest.mark.usefixtures("swap_here")
@pytest.mark.parametrize("folio", [1, 16])
def test_pages_go_to_the_swap_and_come_back_equal(folio: int) -> None:
    pages = np.random.default_rng(1).integers(0, 4, (64, PAGE), np.uint8)
    indices = np.random.default_rng(2).permutation(len(pages))
    with (
        KernelSwap(16 << 20) as swap,
        KernelPages(Algorithm("lz4"), pages, swap, folio) as store,
    ):
        store.open()
        assert store.held_bytes >= pages.nbytes, "nothing is swapped out yet"
        for at in range(0, len(pages), folio):
            store.store(at, pages[at : at + folio])
        stored = store.held_bytes
        assert 0 < stored < pages.nbytes
        out = np.zeros_like(pages)
        store.load_many(indices, out)
        assert np.array_equal(out, pages[indices])
        assert store.held_bytes >= pages.nbytes, "loading takes pages out"
        store.put_back(indices)
        assert store.held_bytes < pages.nbytes
        assert store.load(3) == pages[3, 0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may have it")
def test_without_root_it_says_what_is_missing() -> None:
    with KernelSwap(16 << 20) as swap:
        assert swap.missing is not None
        assert swap.groups_missing is not None
