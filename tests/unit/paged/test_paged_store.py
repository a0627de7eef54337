"""The store of paged memory, and what `top`, metrics and the system say of it."""

from __future__ import annotations

import errno
import logging
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from support.entries import flip
from support.paged_memory import BUDGET, PAGE, SIZE, evict, needs_faults, run
from support.waiting import await_true

import batchzip
from batchzip import (
    BadArgument,
    LimitReached,
    PagedMemory,
    PagingUnavailable,
)
from batchzip.cli.look import print_look
from batchzip.cli.snapshot import take_snapshot
from batchzip.cli.store_look import store_look
from batchzip.core.userfaultfd import WAYS
from batchzip.metrics import collector
from batchzip.paged import Availability, availability, available, machine
from batchzip.terminal.console import make_console

if TYPE_CHECKING:
    from pathlib import Path

# The store.


@needs_faults
def test_its_store_is_a_store_and_its_group_is_the_pagers_alone(memory: PagedMemory) -> None:
    array = memory.array(SIZE // 8, "i8")
    array[:] = np.arange(len(array))
    evict(memory, array)
    store, group = memory.store, memory.store.groups["region"]
    assert store.check().ok
    assert len(group) == memory.statistics.stored_pages
    assert group.load(3) == array[512 * 3 : 512 * 4].tobytes()
    evict(memory, array)
    for change in (
        lambda: group.store(0, bytes(PAGE)),
        lambda: group.load(0, exclusive=True),
        lambda: group.load_many([0, 1], exclusive=True),
        lambda: group.invalidate(0, 5),
        lambda: group.recompress("zstd"),
        lambda: store.drop_group("region"),
        lambda: setattr(group, "max_bytes", 100),
    ):
        with pytest.raises(BadArgument, match="PagedMemory"):
            change()
    store.store(7, bytes(PAGE))
    with batchzip.Engine("zstd", level=1) as other:
        store.engine = other
        store.store(8, os.urandom(100).ljust(PAGE))
        store.recompress("lz4hc")
        array += 1
        memory.evict(array)
        assert np.array_equal(array, np.arange(1, len(array) + 1))
        memory.evict(array)
        store.compact()
    assert np.array_equal(array, np.arange(1, len(array) + 1))


@needs_faults
def test_a_name_of_ones_own_for_the_group() -> None:
    with PagedMemory(SIZE, BUDGET, name="tiles") as memory:
        assert list(memory.store.groups) == ["tiles"]
    with pytest.raises(BadArgument, match="name"):
        PagedMemory(SIZE, BUDGET, name="")


@pytest.mark.slow
@needs_faults
def test_cold_pages_go_to_the_backing_file_when_the_pool_is_full(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    with PagedMemory(8 * SIZE, 16 * PAGE, backing=tmp_path, max_pool_bytes=64 * PAGE) as memory:
        array = memory.array(8 * SIZE // 8, "i8")
        expected = rng.integers(0, 1 << 20, len(array))
        for start in range(0, len(array), 8192):
            array[start : start + 8192] = expected[start : start + 8192]
        await_true(lambda: memory.statistics.resident_bytes <= memory.budget)
        now = memory.statistics
        assert now.file_bytes > 0
        assert memory.store.counters.written_back_pages > 0
        assert np.array_equal(array, expected)
        assert memory.statistics.file_reads > 0
        assert memory.check().ok


@pytest.mark.slow
@needs_faults
def test_without_room_the_budget_is_exceeded_and_one_warning_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with PagedMemory(SIZE, BUDGET, max_pool_bytes=32 * PAGE) as memory:
        array = memory.array(SIZE, "u1")
        expected = np.random.default_rng(1).integers(0, 256, SIZE).astype("u1")
        array[:] = expected
        await_true(lambda: caplog.records)
        assert memory.statistics.over_budget > 0
        assert memory.statistics.resident_bytes > memory.budget
        assert np.array_equal(array, expected)
        [record] = caplog.records
        assert (record.name, record.levelno) == ("batchzip", logging.WARNING)
        for words in ("more than its budget of 262,144", "131,072 bytes", "raise max_pool_bytes"):
            assert words in record.message
        memory.store.max_pool_bytes = None
        await_true(lambda: memory.statistics.resident_bytes <= memory.budget)
        assert np.array_equal(array, expected)
        assert len(caplog.records) == 1


@pytest.mark.slow
@needs_faults
def test_a_full_backing_file_loses_nothing_and_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limits: dict[str, Any] = {"max_pool_bytes": 128 * PAGE, "max_backing_bytes": 256 * PAGE}
    with PagedMemory(4 * SIZE, BUDGET, backing=tmp_path, **limits) as memory:
        array = memory.array(4 * SIZE, "u1")
        expected = np.random.default_rng(1).integers(0, 256, 4 * SIZE).astype("u1")
        array[:] = expected
        await_true(
            lambda: any("the backing file accepts nothing" in each for each in caplog.messages)
        )
        assert memory.statistics.file_bytes > 0
        assert memory.statistics.resident_bytes > memory.budget
        assert np.array_equal(array, expected)
        memory.store.max_backing_bytes = None
        await_true(lambda: memory.statistics.resident_bytes <= memory.budget)
        assert np.array_equal(array, expected)
        assert memory.statistics.lost_pages == 0


@pytest.mark.slow
@needs_faults
def test_check_names_damaged_pages_by_array_and_offset(memory: PagedMemory) -> None:
    first = memory.array(5 * PAGE, "i1")
    array = memory.array(32 * PAGE // 8, "i8")
    array[:] = np.arange(len(array))
    evict(memory, array)
    assert memory.check().ok
    assert memory.check().pages == 32
    flip(memory.store.groups["region"], 5 + 3)
    report = memory.check()
    assert not report.ok
    [found] = report.damaged
    assert (found.address, found.offset) == (array.ctypes.data, 3 * PAGE)
    assert f"byte 12,288 of the array at {array.ctypes.data:#x}" in str(found)
    with pytest.raises((batchzip.CorruptPage, batchzip.PageError)) as error:
        memory.resident(array).__enter__()
    assert error.value.__notes__ == [str(found)]
    assert memory.statistics.pinned_pages == 0
    assert array[0] == 0
    del first


# What others see.


@needs_faults
def test_top_and_status_show_the_region(memory: PagedMemory) -> None:
    array = memory.array(SIZE // 8, "i8")
    array[:] = np.arange(len(array))
    with batchzip.attach(str(memory.store.share())) as view:
        before = take_snapshot(view)
        array.sum()
        now = take_snapshot(view)
    region = now.status["regions"]["region"]
    assert region["pages"] == 256
    since = region["latency"] - before.status["regions"]["region"]["latency"]
    assert since.count > 0
    assert since.mean_s > 0
    console = make_console()
    with console.capture() as capture:
        print_look(store_look(now, before), console, most=None)
    shown = capture.get()
    [line] = [line for line in shown.splitlines() if line.startswith("region ") and "MiB" in line]
    assert line.count("µs") + line.count(" ms") == 3
    assert "1.0 MiB" in line
    assert "256.0 KiB" in line or "256 KiB" in line
    for heading in ("faults/s", "hits", "p50", "p99"):
        assert heading in shown


@needs_faults
def test_metrics_have_the_region(memory: PagedMemory) -> None:
    array = memory.array(SIZE // 8, "i8")
    array[:] = np.arange(len(array))
    registry = CollectorRegistry()
    registry.register(collector(memory.store))
    text = generate_latest(registry).decode()
    figures = dict(
        line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("batchzip_region")
    )
    now = memory.statistics
    assert (
        float(figures['batchzip_region_evicted_pages_total{group="region"}']) <= now.evicted_pages
    )
    assert figures['batchzip_region_size_pages{group="region"}'] == "256.0"
    assert figures['batchzip_region_budget_pages{group="region"}'] == "64.0"
    counts = [
        float(value)
        for name, value in figures.items()
        if name.startswith("batchzip_region_fault_seconds_bucket")
    ]
    assert counts == sorted(counts)
    assert counts[-1] > 0
    assert float(figures['batchzip_region_fault_seconds_sum{group="region"}']) > 0
    memory.close()
    assert b"region" not in b"".join(
        line for line in generate_latest(registry).splitlines() if not line.startswith(b"#")
    )


# What this system offers.


def test_each_way_and_what_is_missing_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(way: str | None, features: int, failed: dict[str, int]) -> Availability:
        monkeypatch.setattr(availability, "probe", lambda: (way, features, failed))
        return available()

    everything = (1 << 17) - 1
    best = found("syscall", everything, {})
    assert best
    assert str(best) == "Paged memory works here, by the system call userfaultfd, for all faults."
    third = found("user mode", everything, {"syscall": errno.EPERM, "device": errno.EACCES})
    assert third
    for words in ("CAP_SYS_PTRACE", "vm.unprivileged_userfaultfd=1", "resident", "chmod", "EFAULT"):
        assert words in str(third)
    assert "Not available: the system call userfaultfd, for all faults (it needs root" in str(third)
    old = found("syscall", everything & ~(1 << 14 | 1 << 15), {})
    assert old
    assert "6.7" in str(old)
    assert "6.6" in str(old)
    older = found("syscall", 1 << 5, {})
    assert not older
    assert "5.14" in str(older)
    every = dict.fromkeys(WAYS, errno.ENOSYS)
    none = found(None, 0, every)
    assert not none
    assert str(none).startswith("Paged memory does not work here")
    for name in ("for all faults (", "/dev/userfaultfd (", "user mode only ("):
        assert name in str(none)
    with pytest.raises(PagingUnavailable, match="does not work here") as error:
        PagedMemory(SIZE, BUDGET)
    assert isinstance(error.value, OSError)
    found(None, 0, dict.fromkeys(WAYS, errno.EMFILE))
    with pytest.raises(LimitReached, match="RLIMIT_NOFILE"):
        PagedMemory(SIZE, BUDGET)


NOBODY = """
import os, batchzip
batchzip.PagedMemory(1 << 20, 1 << 16).close()  # nobody may not be able to import anything
os.setgroups([]); os.setgid(65534); os.setuid(65534)
ways = batchzip.paged.available()
print(ways)
if ways.way == "user mode":
    memory = batchzip.PagedMemory(1 << 20, 1 << 16)
    array = memory.array(1 << 17, "i8")
    array[:] = range(1 << 17)
    assert array.sum() == sum(range(1 << 17))
    reading, writing = os.pipe()
    memory.evict(array)
    os.write(writing, bytes(8))
    try:
        os.readv(reading, [array[:1]])
    except OSError as error:
        print(error.strerror)
    with memory.resident(array[:1]) as part:
        assert os.readv(reading, [part]) == 8
    assert array[1] == 1
"""


@pytest.mark.slow
@needs_faults
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become nobody")
def test_nobody_has_user_mode_only_and_resident_for_system_calls() -> None:
    done = run(NOBODY)
    assert done.returncode == 0, done.stderr
    if "user mode only" in done.stdout:
        assert "EFAULT" in done.stdout
        assert done.stdout.splitlines()[-1] == "Bad address"


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {}, 8 << 30),
        ("0::/a\n", {"sys/fs/cgroup/a/memory.max": "max\n"}, 8 << 30),
        ("0::/a/b\n", {"sys/fs/cgroup/a/memory.max": "1048576\n"}, 1 << 20),
        ("4:memory:/a\n", {"sys/fs/cgroup/memory/a/memory.limit_in_bytes": "4096\n"}, 4096),
        ("4:memory:/\n", {"sys/fs/cgroup/memory/memory.limit_in_bytes": f"{1 << 62}\n"}, 8 << 30),
    ],
)
def test_the_memory_there_is_is_the_least_of_what_limits_it(
    tmp_path: Path, groups: str, files: dict[str, str], expected: int
) -> None:
    mounts = (
        "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
        "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    )
    for name, text in {
        "proc/meminfo": f"MemTotal: {8 << 20} kB\nMemFree: 1 kB\n",
        "proc/self/cgroup": groups,
        "proc/self/mountinfo": mounts,
        **files,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    limit = machine.memory_limit(tmp_path)
    assert limit is not None
    assert limit[0] == expected
