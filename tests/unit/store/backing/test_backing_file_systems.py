"""Block devices and file systems that are full, fail or are cut say so; no page is lost."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.backing import free, write
from support.backing_targets import PAGE, made, open_fd, opened, works
from support.forked import in_forked_child

from batchzip import BadArgument, CorruptPage, Engine, PageError, StoreRejected, SwapStore

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20

NOBODY = 65534


def refused(*targets: object) -> None:
    for target in targets:
        with pytest.raises(BadArgument, match="in use"):
            opened(target)


def run(*command: object) -> str:
    """Run a command that only root may; without it there is nothing to test."""
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"{command[0]} is not installed here")
    done = subprocess.run(
        list(map(str, command)),
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"{command[0]} is not permitted here")
    return done.stdout.strip()


def mount(stack: ExitStack, where: Path, *options: object) -> Path:
    where.mkdir(exist_ok=True)
    run("mount", *options, where)
    stack.callback(subprocess.run, ["umount", str(where)], check=True)
    return where


def loop_device(stack: ExitStack, image: Path, size: int) -> Path:
    image.touch()
    os.truncate(image, size)
    device = run("losetup", "--find", "--show", image)
    stack.callback(subprocess.run, ["losetup", "--detach", device], check=True)
    return Path(device)


# Block devices.


@pytest.mark.slow
def test_a_block_device_works_and_is_under_one_store(
    engine: Engine, tmp_path: Path, stack: ExitStack
) -> None:
    device = loop_device(stack, tmp_path / "image", 4 * MIB)
    twin = tmp_path / "twin"
    os.mknod(twin, device.stat().st_mode, device.stat().st_rdev)
    for target in (device, twin):
        works(target)
    works(open_fd(stack, device, os.O_RDWR))
    forms = [device, twin, open_fd(stack, device, os.O_RDWR), open_fd(stack, twin, os.O_RDWR)]
    for first in forms:
        with SwapStore(engine, backing=first) as store:
            pages = [os.urandom(PAGE) for _ in range(100)]
            store.store(0, pages)
            assert store.writeback(100) == 100
            for second in forms:
                with pytest.raises(BadArgument, match="in use"):
                    SwapStore(engine, backing=second)
                refused(second)
            in_forked_child(lambda: refused(*forms))
            assert store.load_many(range(100)).tobytes() == b"".join(pages)


def test_a_full_block_device_refuses_and_stays_whole(tmp_path: Path, stack: ExitStack) -> None:
    with opened(loop_device(stack, tmp_path / "image", 2 * MIB)) as file:
        kept = write(file, [b"k" * PAGE] * 200)
        for _ in range(3):
            with pytest.raises(OSError, match="No space"):
                write(file, [b"x" * PAGE] * 600)
            file.check_invariants(kept)
        assert file.read(kept) == [b"k" * PAGE] * 200
        free(file, kept)
        assert len(write(file, [b"y" * PAGE] * 400)) == 400


def test_a_mounted_device_is_refused(tmp_path: Path, stack: ExitStack) -> None:
    device = loop_device(stack, tmp_path / "image", MIB)
    run("mkfs.ext2", "-q", device)
    by_descriptor = open_fd(stack, device, os.O_RDWR)
    mount(stack, tmp_path / "mounted", device)
    refused(device, by_descriptor)


# File systems.


def full_tmpfs(stack: ExitStack, folder: Path) -> Path:
    return mount(stack, folder / "small", "-t", "tmpfs", "-o", "size=1m", "none")


TARGETS: dict[str, Callable[[ExitStack, Path], Any]] = {
    "directory": lambda _, folder: folder,
    "new path": lambda _, folder: folder / "new",
    "path": lambda _, folder: made(Path.touch, folder / "there"),
    "file": lambda stack, folder: stack.enter_context((folder / "own").open("w+b")),
    "descriptor": lambda stack, folder: open_fd(stack, folder / "own", os.O_RDWR | os.O_CREAT),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_a_full_file_system_refuses_and_stays_whole(
    engine: Engine, kind: str, tmp_path: Path, stack: ExitStack
) -> None:
    target = TARGETS[kind](stack, full_tmpfs(stack, tmp_path))
    with SwapStore(engine, backing=target, shrinker_enabled=False) as store:
        pages = [os.urandom(PAGE) for _ in range(300)]
        store.store(0, pages)
        assert store.writeback(range(200)) == 200
        with pytest.raises(OSError, match="No space") as caught:
            store.writeback(range(200, 300))
        assert caught.value.errno == errno.ENOSPC
        store.max_pool_bytes = 0
        with pytest.raises(StoreRejected, match="No space"):
            store.store(400, pages)
        assert store.load_many(range(300)).tobytes() == b"".join(pages)
        store.invalidate(0, 200)
        store.store(400, pages[:100])
        assert store.load_many(range(400, 500)).tobytes() == b"".join(pages[:100])
        store.check_invariants()
        assert store.check().ok


def test_a_disk_that_fails_when_it_is_synced_loses_nothing(
    engine: Engine, tmp_path: Path, stack: ExitStack
) -> None:
    """The device takes bytes, and finds no place for them later."""
    folder = full_tmpfs(stack, tmp_path)
    device = loop_device(stack, folder / "image", 16 * MIB)
    pages = [os.urandom(PAGE) for _ in range(600)]
    with SwapStore(engine, backing=device, shrinker_enabled=False) as store:
        store.store(0, pages)
        assert store.writeback(range(150)) == 150
        for _ in range(2):
            with pytest.raises(OSError, match=r"Input/output|No space"):
                store.writeback(range(150, 600))
            store.check_invariants()
            assert store.load_many(range(600)).tobytes() == b"".join(pages)
        run("mount", "-o", "remount,size=16m", folder)
        assert store.writeback(range(150, 600)) == 450
        assert store.load_many(range(600)).tobytes() == b"".join(pages)
        assert store.check().ok


def test_where_there_is_no_room_for_a_file_it_is_said(tmp_path: Path, stack: ExitStack) -> None:
    folder = mount(stack, tmp_path / "small", "-t", "tmpfs", "-o", "size=64k,nr_inodes=2", "none")
    there = made(Path.touch, folder / "there")
    for target in (folder, folder / "new"):
        with pytest.raises(OSError, match=str(target)) as caught:
            opened(target)
        assert caught.value.errno == errno.ENOSPC
    with there.open("wb") as filling, contextlib.suppress(OSError):
        filling.write(bytes(MIB))
    with pytest.raises(BadArgument, match="is not empty and not a backing file"):
        opened(there)
    os.truncate(there, 0)
    with opened(there) as file:
        assert file.read(write(file, [b"x"] * 9)) == [b"x"] * 9
    assert list(folder.iterdir()) == [there]


def test_holes_that_cannot_be_punched_are_used_again(tmp_path: Path, stack: ExitStack) -> None:
    folder = mount(stack, tmp_path / "ram", "-t", "ramfs", "none")
    with opened(folder) as file:
        for _ in range(5):
            positions = write(file, [os.urandom(PAGE)] * 600)
            free(file, positions[:-1])
            assert len(file.read(positions[-1:])[0]) == PAGE
            free(file, positions[-1:])
        assert Path(file.name).stat().st_size <= 3 * MIB


def test_a_file_system_that_is_only_read_is_said(tmp_path: Path, stack: ExitStack) -> None:
    folder = full_tmpfs(stack, tmp_path)
    there = made(Path.touch, folder / "there")
    run("mount", "-o", "remount,ro", folder)
    for target in (folder, folder / "new", there):
        with pytest.raises(OSError, match=str(target)) as caught:
            opened(target)
        assert caught.value.errno == errno.EROFS


def test_errors_of_paths_name_them(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    codes = {
        "loop": errno.ELOOP,
        "x" * 300: errno.ENAMETOOLONG,
        "/proc/self/comm": errno.ESPIPE,
        "/proc/self/mem": errno.EIO,
        "/proc/self/fd/9999": errno.ENOENT,
    }
    for name, code in codes.items():
        with pytest.raises(OSError, match=name) as caught:
            opened(tmp_path / name)
        assert caught.value.errno == code

    def in_a_folder_that_is_gone() -> None:
        gone = tmp_path / "gone"
        gone.mkdir()
        os.chdir(gone)
        gone.rmdir()
        for target in ("swap", "."):
            with pytest.raises(FileNotFoundError, match=target):
                opened(target)

    in_forked_child(in_a_folder_that_is_gone)


# Without the rights of root.


def as_nobody(work: Callable[[], object]) -> None:
    def dropped() -> None:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        work()

    if os.geteuid():
        pytest.skip("privileges cannot be dropped here")
    in_forked_child(dropped)


def test_a_permission_error_names_the_path(stack: ExitStack) -> None:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
    there = made(Path.touch, folder / "there")
    folder.chmod(0o755)

    def work() -> None:
        for target in (folder, folder / "new", there):
            with pytest.raises(PermissionError, match=str(target)):
                opened(target)

    as_nobody(work)


def test_a_descriptor_that_cannot_be_opened_again_is_duplicated(
    tmp_path: Path, stack: ExitStack
) -> None:
    flags = os.O_RDWR | os.O_CREAT
    plain = open_fd(stack, tmp_path / "plain", flags, 0)
    direct = open_fd(stack, tmp_path / "direct", flags | os.O_DIRECT, 0)

    def work() -> None:
        with pytest.raises(PermissionError):
            os.open(f"/proc/self/fd/{plain}", os.O_RDWR)
        works(plain)
        with opened(plain), pytest.raises(BadArgument, match="in use"):
            opened(os.dup(plain))
        with pytest.raises(BadArgument, match="O_DIRECT"):
            opened(direct)

    as_nobody(work)


# What others do to the file.


def test_a_truncated_file_loses_only_the_pages_that_were_cut_off(
    engine: Engine, tmp_path: Path
) -> None:
    path = made(Path.touch, tmp_path / "there")
    pages = [os.urandom(PAGE) for _ in range(100)]
    with SwapStore(engine, backing=path) as store:
        store.store(0, pages)
        assert store.writeback(range(60)) == 60
        os.truncate(path, PAGE * 31)  # a header, and 30 of them
        assert store.load_many(range(30)).tobytes() == b"".join(pages[:30])
        for index in (30, 59):
            with pytest.raises(CorruptPage):
                store.load(index)
        report = store.check()
        lost = {index for _, index in (*report.damaged, *report.unreadable)}
        assert lost == set(range(30, 60))
        assert store.load_many(range(60, 100)).tobytes() == b"".join(pages[60:])
        store.store(200, pages)
        assert store.writeback(range(200, 300)) == 100
        store.store(30, pages[30:60])
        assert store.load_many(range(200, 300)).tobytes() == b"".join(pages)
        assert store.check().ok
    assert path.read_bytes() == b""


def test_a_descriptor_that_somebody_closes_loses_only_the_file(
    engine: Engine, tmp_path: Path
) -> None:
    """As programs do that become daemons."""
    page = os.urandom(PAGE)
    store = SwapStore(engine, backing=tmp_path, shrinker_enabled=False)
    store.store(0, [page, page])
    store.writeback([0])
    os.close(int(store.status()["backing"].rpartition("/")[2]))
    assert store.load(1) == page
    with pytest.raises(PageError, match="Bad file descriptor"):
        store.load(0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        store.writeback([1])
    store.store(2, page)
    assert store.load_many([1, 2]).tobytes() == page * 2
    store.invalidate(0)
    assert store.check().ok
    store.close()


@pytest.mark.slow
def test_without_a_descriptor_nothing_is_claimed(tmp_path: Path, stack: ExitStack) -> None:
    own = stack.enter_context((tmp_path / "own").open("w+b"))
    there = made(Path.touch, tmp_path / "there")
    targets = [tmp_path, tmp_path / "new", there, own, open_fd(stack, tmp_path / "own", os.O_RDWR)]

    def work() -> None:
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.dup(0)
        os.close(lowest)
        for target in targets:
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
            try:
                with pytest.raises(OSError, match="Too many open files"):
                    opened(target)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
            works(target)

    in_forked_child(work)
