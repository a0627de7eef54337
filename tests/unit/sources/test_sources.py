"""Where pages come from: nothing of a process or file is lost, invented or counted twice."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from batchzip.errors import BadArgument, BatchzipError, UnreadableProcess
from batchzip.sources.file_pages import FilePages
from batchzip.sources.process_memory import ProcessMemory
from batchzip.sources.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

MIB = 1 << 20
MACHINE_PAGE = os.sysconf("SC_PAGE_SIZE")

# A program with 2 MiB of known words, 64 MiB never touched, and 8 MiB it gives back when told to.
PROGRAM = """
import mmap, sys, tempfile
private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
known = mmap.mmap(-1, 2 << 20, flags=private)
for at in range(0, 2 << 20, 8):
    known[at:at + 8] = b"\\xb7" + (at // 8).to_bytes(7, "little")
untouched = mmap.mmap(-1, 64 << 20, flags=private)
shared = mmap.mmap(-1, 2 << 20)
shared[:] = b"\\xc9" * (2 << 20)
with tempfile.TemporaryFile() as file:
    file.truncate(2 << 20)
    of_a_file = mmap.mmap(file.fileno(), 2 << 20, flags=mmap.MAP_PRIVATE)
for at in range(0, 2 << 20, 4096):
    of_a_file[at:at + 4096] = b"\\xe5" * 4096
fleeting = mmap.mmap(-1, 8 << 20, flags=private)
fleeting[:] = b"\\xd3" * (8 << 20)
print("ready", flush=True)
sys.stdin.readline()
fleeting.close()
print("given back", flush=True)
sys.stdin.readline()
"""


class Program:
    """The running program; `give_back()` unmaps its fleeting 8 MiB."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self.child = child
        self.pid = child.pid

    def say(self) -> str:
        assert self.child.stdout is not None
        return self.child.stdout.readline()

    def give_back(self) -> None:
        assert self.child.stdin is not None
        self.child.stdin.write("\n")
        self.child.stdin.flush()
        assert self.say() == "given back\n"


@contextmanager
def running() -> Iterator[Program]:
    command = [sys.executable, "-c", PROGRAM]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as child:
        program = Program(child)
        try:
            assert program.say() == "ready\n"
            yield program
        finally:
            child.kill()


@pytest.fixture
def program() -> Iterator[Program]:
    with running() as program:
        yield program


KNOWN = (np.arange(2 * MIB // 8, dtype="<u8") << np.uint64(8)) | np.uint64(0xB7)


def times_known(pages: NDArray[np.uint8]) -> int:
    """Return how often the known 2 MiB stand on `pages`, whole and in one piece."""
    words = pages.reshape(-1).view("<u8")
    starts = np.flatnonzero(words == KNOWN[0]).tolist()
    return sum(np.array_equal(words[at : at + len(KNOWN)], KNOWN) for at in starts)


def everything(memory: ProcessMemory) -> NDArray[np.uint8]:
    return np.concatenate(list(memory.chunks()))


@pytest.mark.slow
@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_private_memory_is_taken_whole_and_once(program: Program, page_size: int) -> None:
    with ProcessMemory(program.pid, page_size=page_size, chunk_pages=48) as memory:
        expected = memory.pages
        pages = everything(memory)
        assert pages.shape == (expected, page_size) == (memory.pages, page_size)
        assert times_known(pages) == 1
        assert memory.vanished_bytes == 0
        assert memory.padded_bytes < page_size
        assert (pages.reshape(-1)[pages.size - memory.padded_bytes :] == 0).all()


@pytest.mark.slow
def test_untouched_and_shared_memory_and_that_of_files_is_left_out(program: Program) -> None:
    with ProcessMemory(program.pid) as memory:
        assert memory.pages * 4096 < 40 * MIB
        pages = everything(memory)
    for value in (0xC9, 0xE5):
        assert not (pages == value).all(axis=1).any()


@pytest.mark.slow
def test_without_a_pagemap_whole_mappings_are_read(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open = os.open

    def no_pagemap(path: str, *args: int) -> int:
        if str(path).endswith("pagemap"):
            raise PermissionError(13, "Permission denied", path)
        return real_open(path, *args)

    monkeypatch.setattr(os, "open", no_pagemap)
    with ProcessMemory(program.pid, chunk_pages=4096) as memory:
        assert memory.pages * 4096 >= 72 * MIB
        pages = everything(memory)
    assert times_known(pages) == 1


@pytest.mark.slow
def test_pages_are_read_again_from_the_copy_and_named_by_address(program: Program) -> None:
    with ProcessMemory(program.pid, chunk_pages=100) as memory:
        pages = everything(memory)
        order = np.random.default_rng(1).permutation(memory.pages)
        np.testing.assert_array_equal(memory.read(order), pages[order])
        with Path(f"/proc/{program.pid}/mem").open("rb") as mem:
            # Only pages that certainly stand still: those of the known words.
            still = np.isin(pages.view("<u8")[:, :2], KNOWN).all(axis=1)
            assert still.sum() >= 2 * MIB // 4096
            for index in np.flatnonzero(still)[::50].tolist():
                mem.seek(int(memory.where(index).removeprefix("address "), 16))
                assert mem.read(4096) == pages[index].tobytes()


def test_memory_given_back_meanwhile_is_left_out_and_counted(program: Program) -> None:
    with ProcessMemory(program.pid, chunk_pages=64) as memory:
        expected = memory.pages
        program.give_back()
        pages = everything(memory)
        assert 8 * MIB <= memory.vanished_bytes < 9 * MIB
        assert len(pages) == memory.pages == expected - memory.vanished_bytes // 4096
        assert memory.details() == {"pid": program.pid, "vanished_bytes": memory.vanished_bytes}
        assert times_known(pages) == 1


@pytest.mark.slow
def test_a_process_that_ends_midway_is_a_clear_error(program: Program) -> None:
    with ProcessMemory(program.pid, chunk_pages=16) as memory:
        chunks = memory.chunks()
        next(chunks)
        program.child.kill()
        program.child.wait()
        with pytest.raises(UnreadableProcess, match=rf"process {program.pid} ended"):
            list(chunks)


@pytest.mark.slow
def test_a_process_that_is_gone_is_a_clear_error() -> None:
    with running() as program:
        pass
    with pytest.raises(UnreadableProcess, match=f"no process {program.pid}"):
        ProcessMemory(program.pid)


@pytest.mark.slow
def test_a_zombie_has_no_memory(program: Program) -> None:
    program.child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(UnreadableProcess, match="no anonymous memory"):
        ProcessMemory(program.pid)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_process_of_another_user_is_a_clear_error(program: Program) -> None:
    os.seteuid(65534)
    try:
        with pytest.raises(UnreadableProcess, match=r"may not be read: run as the user"):
            ProcessMemory(program.pid)
    finally:
        os.seteuid(0)


def test_the_own_process_is_refused() -> None:
    with pytest.raises(BadArgument, match="batchzip itself"):
        ProcessMemory(os.getpid())


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 100_000])
def test_a_file_comes_whole_with_its_last_page_padded(tmp_path: Path, size: int) -> None:
    path = tmp_path / "some.bin"
    content = np.random.default_rng(size).integers(1, 256, size, np.uint8).tobytes()
    path.write_bytes(content)
    with FilePages(path, chunk_pages=3) as file:
        pages = np.concatenate([chunk.copy() for chunk in file.chunks()])
        assert pages.shape == (file.pages, 4096)
        assert pages.tobytes() == content + bytes(file.padded_bytes)
        assert file.padded_bytes == -size % 4096
        order = np.random.default_rng(0).permutation(file.pages)
        np.testing.assert_array_equal(file.read(order), pages[order])
        assert file.where(2) == "file offset 8192"
        file.check_unchanged()


def test_a_large_file_is_never_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "sparse.bin"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with FilePages(path) as pages:
        assert pages.pages == 1 << 28
        assert next(pages.chunks()).nbytes == 4 * MIB
        assert not pages.read(np.array([(1 << 28) - 1])).any()


def test_files_that_cannot_be_taken_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FilePages(tmp_path / "missing")
    (tmp_path / "empty").touch()
    with pytest.raises(BadArgument, match="is empty"):
        FilePages(tmp_path / "empty")
    with pytest.raises(BadArgument, match="is a directory"):
        FilePages(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadArgument, match="cannot be read twice"):
        FilePages(tmp_path / "pipe")
    with pytest.raises(BadArgument, match="cannot be read twice"):
        FilePages("/dev/zero")


def test_a_file_cut_short_meanwhile_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "cut.bin"
    path.write_bytes(bytes(10 * 4096))
    with FilePages(path, chunk_pages=4) as file:
        chunks = file.chunks()
        next(chunks)
        os.truncate(path, 5 * 4096)
        with pytest.raises(OSError, match="became shorter"):
            list(chunks)
        with pytest.raises(OSError, match="was changed"):
            file.check_unchanged()


@pytest.mark.slow
def test_the_workload_is_ready_readable_and_gone_afterwards() -> None:
    with Workload(4) as workload, ProcessMemory(workload.pid) as memory:
        assert memory.pages * 4096 >= 4 * MIB
        pages = everything(memory)
        assert (pages[:, 0] != 0).any()
    assert not Path(f"/proc/{workload.pid}").exists()


@pytest.mark.slow
def test_the_workload_ends_with_its_parent() -> None:
    script = (
        "import os, signal\n"
        "from batchzip.sources.workload import Workload\n"
        "with Workload(1) as workload:\n"
        "    print(workload.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        # The workload keeps no copy of this pipe open; were it alive, pidfd would say so.
        try:
            with_pidfd = os.pidfd_open(pid)
        except ProcessLookupError:  # it has ended, and was waited for
            with_pidfd = -1
        parent.wait(timeout=10)
    if with_pidfd >= 0:
        try:
            assert gone(with_pidfd, timeout_s=10)
        finally:
            os.close(with_pidfd)


def gone(pidfd: int, timeout_s: float) -> bool:
    return bool(select.select([pidfd], [], [], timeout_s)[0])


@pytest.mark.slow
def test_a_workload_that_cannot_be_built_says_why() -> None:
    workload = Workload("many")  # type: ignore[arg-type] # what the child cannot read
    with pytest.raises(BatchzipError, match=r"ended early: ValueError"):
        workload.__enter__()
    assert not Path(f"/proc/{workload.pid}").exists()


@pytest.mark.slow
def test_the_workload_holds_every_kind_of_data() -> None:
    # In a process of its own: how far memory has grown says nothing in one that freed some before.
    script = (
        "from batchzip.sources.workload import build\n"
        "print(*sorted({type(item).__name__ for item in build(8)}))"
    )
    command = [sys.executable, "-c", script]
    held = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert held.stdout.split() == ["Module", "dict", "ndarray", "str"]
