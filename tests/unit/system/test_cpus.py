"""The CPUs that a process may use: its affinity, and the smallest quota of the groups it is in."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from batchzip.system import cpus
from batchzip.system.cpus import MOST_LANES, cpu_quota, default_lanes, usable_cpus

if TYPE_CHECKING:
    from pathlib import Path

V2_MOUNT = "30 23 0:26 {shown} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNT = "33 31 0:30 {shown} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
OTHER_MOUNTS = (
    "22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "36 31 0:33 / /mnt/a\\040folder rw shared:1 master:2 - tmpfs tmpfs rw\n"
)


def make_root(root: Path, groups: str, mount: str, files: dict[str, str]) -> Path:
    for name, text in {
        "proc/self/cgroup": groups,
        "proc/self/mountinfo": OTHER_MOUNTS + mount,
        **files,
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max 100000\n", None),
        ("100000 100000\n", 1),
        ("150000 100000\n", 2),
        ("50000 100000\n", 1),
        ("400000 50000\n", 8),
        ("", None),
    ],
)
def test_a_quota_is_rounded_up(text: str, expected: int | None, tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/cpu.max": text}
    assert cpu_quota(make_root(tmp_path, "0::/\n", V2_MOUNT.format(shown="/"), files)) == expected


def test_of_nested_groups_the_smallest_quota_counts(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
        "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
        "sys/fs/cgroup/a/b/c/cpu.max": "800000 100000\n",
        "sys/fs/cgroup/a/other/cpu.max": "100000 100000\n",
    }
    root = make_root(tmp_path, "0::/a/b/c\n", V2_MOUNT.format(shown="/"), files)
    assert cpu_quota(root) == 3


@pytest.mark.parametrize(
    ("shown", "group"),
    [
        pytest.param("/docker/1", "/docker/1/b", id="the mount shows a group and those below it"),
        pytest.param("/", "/b", id="the group's name is that of a namespace"),
    ],
)
def test_in_a_container_the_mount_shows_a_part(shown: str, group: str, tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/b/cpu.max": "200000 100000\n"}
    root = make_root(tmp_path, f"0::{group}\n", V2_MOUNT.format(shown=shown), files)
    assert cpu_quota(root) == 2


def test_of_a_group_beside_the_mount_only_its_top_counts(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/cpu.max": "200000 100000\n"}
    root = make_root(tmp_path, "0::/../other\n", V2_MOUNT.format(shown="/x"), files)
    assert cpu_quota(root) == 2


@pytest.mark.parametrize(("quota", "expected"), [("250000", 3), ("-1", None)])
def test_version_1_of_control_groups(quota: str, expected: int | None, tmp_path: Path) -> None:
    folder = "sys/fs/cgroup/cpu,cpuacct/a"
    files = {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": "100000"}
    groups = "5:memory:/m\n4:cpu,cpuacct:/a\n1:name=systemd:/s\n0::/u\n"
    assert cpu_quota(make_root(tmp_path, groups, V1_MOUNT.format(shown="/"), files)) == expected


def test_a_machine_without_control_groups_has_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(make_root(tmp_path, "", "", {})) is None


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError, ValueError, IndexError])
def test_an_unreadable_quota_limits_nothing(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> int:
        raise error

    monkeypatch.setattr(cpus, "cpu_quota", fail)
    assert usable_cpus() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("affine", "quota", "usable", "lanes"),
    [(1, None, 1, 1), (8, None, 8, 7), (8, 3, 3, 2), (2, 64, 2, 1), (128, None, 128, MOST_LANES)],
)
def test_affinity_and_quota_make_the_number_of_lanes(
    affine: int, quota: int | None, usable: int, lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affine)))
    monkeypatch.setattr(cpus, "cpu_quota", lambda: quota)
    assert usable_cpus() == usable
    assert default_lanes() == lanes


def test_this_process_may_use_a_cpu() -> None:
    assert 1 <= usable_cpus() <= len(os.sched_getaffinity(0))
