"""Every kind of file works as a backing file, or is refused with what is wrong."""

# ruff: noqa: SIM115 - a stack closes what a target is
from __future__ import annotations

import fcntl
import io
import mmap
import os
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.backing_targets import PAGE, made, open_fd, opened, works
from support.store_pages import noise

from batchzip import (
    BadArgument,
    CorruptPage,
    Engine,
    SwapStore,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack


MIB = 1 << 20


# What is no file.


def pipe(stack: ExitStack) -> tuple[int, int]:
    reading, writing = os.pipe()
    stack.callback(os.close, reading)
    stack.callback(os.close, writing)
    return reading, writing


def bound(stack: ExitStack, path: Path) -> Path:
    stack.enter_context(socket.socket(socket.AF_UNIX)).bind(str(path))
    return path


def eventfd(stack: ExitStack) -> int:
    fd = os.eventfd(0)
    stack.callback(os.close, fd)
    return fd


NO_FILES: dict[str, Callable[[ExitStack, Path], Any]] = {
    "/dev/null": lambda *_: "/dev/null",
    "/dev/full": lambda *_: "/dev/full",
    "/dev/zero": lambda *_: "/dev/zero",
    "/dev/tty": lambda *_: "/dev/tty",
    "descriptor of /dev/full": lambda stack, _: open_fd(stack, "/dev/full", os.O_RDWR),
    "file of /dev/null": lambda stack, _: stack.enter_context(Path("/dev/null").open("r+b", 0)),
    "pipe": lambda stack, _: pipe(stack)[1],
    "file of a pipe": lambda stack, _: stack.enter_context(os.fdopen(os.dup(pipe(stack)[1]), "wb")),
    "named pipe": lambda _, path: made(os.mkfifo, path),
    "socket": lambda stack, _: stack.enter_context(socket.socket()),
    "descriptor of a socket": lambda stack, _: stack.enter_context(socket.socket()).fileno(),
    "file of a socket": lambda stack, _: stack.enter_context(
        stack.enter_context(socket.socket()).makefile("rwb")
    ),
    "path of a socket": bound,
    "directory's descriptor": lambda stack, path: open_fd(stack, path.parent, os.O_RDONLY),
    "O_PATH": lambda stack, path: open_fd(stack, made(Path.touch, path), os.O_PATH),
    "read-only": lambda stack, path: open_fd(stack, made(Path.touch, path), os.O_RDONLY),
    "write-only": lambda stack, path: open_fd(stack, made(Path.touch, path), os.O_WRONLY),
    "O_APPEND": lambda stack, path: open_fd(stack, made(Path.touch, path), os.O_RDWR | os.O_APPEND),
    "epoll": lambda stack, _: eventfd(stack),
    "text": lambda stack, path: stack.enter_context(path.open("w+")),
    "text in memory": lambda *_: io.StringIO(),
}


@pytest.mark.parametrize("kind", NO_FILES)
def test_a_target_that_is_no_readable_and_writable_file_is_refused(
    engine: Engine, kind: str, tmp_path: Path, stack: ExitStack
) -> None:
    target = NO_FILES[kind](stack, tmp_path / "it")
    before = set(Path("/proc/self/fd").iterdir())
    with pytest.raises(BadArgument, match="backing file"):
        opened(target)
    with pytest.raises(BadArgument, match="backing file"):
        SwapStore(engine, backing=target)
    assert set(Path("/proc/self/fd").iterdir()) == before


# Files of every kind.


class NoFileno(io.BytesIO):
    def fileno(self) -> int:
        raise RuntimeError("of the user's own")


def memfd(stack: ExitStack) -> int:
    fd = os.memfd_create("mine")
    stack.callback(os.close, fd)
    return fd


def sparse(path: Path, size: int) -> Path:
    path.touch()
    os.truncate(path, size)
    return path


def at_a_position(stack: ExitStack, path: Path) -> Any:
    path.write_bytes(b"somebody's letter" * 1000)
    file = stack.enter_context(path.open("r+b"))
    file.seek(5000)
    return file


def deep(folder: Path) -> Path:
    for _ in range(20):
        folder /= "x" * 100
        folder.mkdir()
    return folder


def linked_folder(path: Path) -> Path:
    path.with_name("folder").mkdir()
    path.symlink_to("folder")
    return path


FILES: dict[str, Callable[[ExitStack, Path], Any]] = {
    "memfd": lambda stack, _: memfd(stack),
    "file of a memfd": lambda stack, _: stack.enter_context(os.fdopen(os.dup(memfd(stack)), "r+b")),
    "O_DIRECT": lambda stack, path: open_fd(stack, path, os.O_RDWR | os.O_CREAT | os.O_DIRECT),
    "O_TMPFILE": lambda stack, path: open_fd(stack, path.parent, os.O_RDWR | os.O_TMPFILE),
    "O_SYNC": lambda stack, path: open_fd(stack, path, os.O_RDWR | os.O_CREAT | os.O_SYNC),
    "mode 0": lambda stack, path: open_fd(stack, path, os.O_RDWR | os.O_CREAT, 0),
    "a TiB of holes": lambda stack, path: stack.enter_context(sparse(path, 1 << 40).open("r+b")),
    "at a position": at_a_position,
    "spooled": lambda stack, _: stack.enter_context(tempfile.SpooledTemporaryFile()),
    "named": lambda stack, _: stack.enter_context(tempfile.NamedTemporaryFile()),
    "wrapped text": lambda stack, _: stack.enter_context(tempfile.NamedTemporaryFile("w+")),
    "buffered": lambda *_: io.BufferedRandom(io.BytesIO()),  # type: ignore[arg-type]
    "fileno() raises": lambda *_: NoFileno(),
    "mapping": lambda stack, _: stack.enter_context(mmap.mmap(-1, 8 * MIB)),
    "in a deep folder": lambda _, path: deep(path.parent) / "swap",
    "spaces and newlines": lambda _, path: path.with_name(" a\nb "),
    "no UTF-8": lambda _, path: os.fsencode(path) + b"\xff",
    "a link to nothing yet, in a link": lambda _, path: linked_folder(path) / "swap",
}


@pytest.mark.parametrize("kind", FILES)
def test_files_of_every_kind_work(kind: str, tmp_path: Path, stack: ExitStack) -> None:
    works(FILES[kind](stack, tmp_path / "own"))


def test_a_file_objects_position_is_its_users(tmp_path: Path, stack: ExitStack) -> None:
    own = at_a_position(stack, tmp_path / "own")
    works(own)
    assert own.tell() == 5000


def test_a_sealed_memfd_fails_and_nothing_is_lost(engine: Engine, stack: ExitStack) -> None:
    fd = os.memfd_create("mine", os.MFD_ALLOW_SEALING)
    stack.callback(os.close, fd)
    os.truncate(fd, MIB)
    with SwapStore(engine, backing=fd, shrinker_enabled=False) as store:
        store.store(9, os.urandom(PAGE))
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        with pytest.raises(PermissionError):
            store.writeback([9])
        assert len(store.load(9)) == PAGE
        assert store.check().ok


class Far:
    """Storage that keeps only the last write, so that a file of gigabytes takes no memory."""

    def __init__(self) -> None:
        self.last = 0, b""

    def pwrite(self, data: memoryview, offset: int) -> int:
        self.last = offset, bytes(data)
        return len(data)

    def pread(self, length: int, offset: int) -> bytes:
        begin = offset - self.last[0]
        return self.last[1][begin : begin + length] if begin >= 0 else b""


@pytest.mark.slow
def test_a_page_beyond_4_gib_of_the_backing_file_comes_back() -> None:
    """mosaicml/streaming 671: offsets of 32 bits wrapped around, and other data was read."""
    size, count = 2 << 20, 2100
    page = noise(1, size)
    with (
        Engine("lz4", backend="sequential", page_size=size) as engine,
        SwapStore(engine, max_pool_bytes=0, backing=Far()) as store,
    ):
        for index in range(count):
            store.store(index, page)
        assert store.counters.backing_file_size == store.stored_bytes == count * size > 1 << 32
        assert store.load(count - 1) == page
        with pytest.raises(CorruptPage):
            store.load(count - 2049)  # 4 GiB and a page before: not taken for the last one
        store.check_invariants()
