"""The swap area and the groups of a measurement are gone when its program is, however it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.waiting import await_true

from batchzip.bench.kernel_swap import KernelSwap
from batchzip.bench.memory_group import find_controller

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


@pytest.mark.skipif(os.geteuid() == 0, reason="root may have it")
def test_without_root_it_says_what_is_missing() -> None:
    with KernelSwap(16 << 20) as swap:
        assert swap.missing is not None
        assert swap.groups_missing is not None
