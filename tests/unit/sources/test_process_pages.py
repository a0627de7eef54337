"""The pages of a process whose memory is known, because files stand in for /proc/PID."""

from __future__ import annotations

import errno
import itertools
import mmap
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from batchzip.advice import BLOCK_BYTES
from batchzip.errors import BadArgument, UnreadableProcess
from batchzip.sources import process_memory
from batchzip.sources.file_pages import FilePages
from batchzip.sources.process_memory import ProcessMemory
from batchzip.sources.sampling import sample_process

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

PID = 4194305
"""Above the largest pid, so that there is no such process."""

GRAIN = mmap.PAGESIZE
IN_MEMORY, SWAPPED, ABSENT = 1 << 63, 1 << 62, (1 << 55) | 0xFFFF


class Process:
    """Files that look like /proc/PID: mappings, which pages exist, and what is on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.maps: list[str] = []
        self.pagemap = np.zeros(128, np.uint64)
        self.vanished: set[int] = set()
        """Numbers of pages that the process frees before they are read."""
        self.memory = np.random.default_rng(3).integers(1, 256, 128 * GRAIN, np.uint8)

    def map(self, first: int, pages: int, *, mode: str = "rw-p", inode: int = 0) -> None:
        """Add a mapping."""
        end = (first + pages) * GRAIN
        self.maps.append(f"{first * GRAIN:x}-{end:x} {mode} 00000000 00:00 {inode} [heap]\n")

    def exists(self, *pages: int, state: int = IN_MEMORY) -> None:
        """Let pages exist."""
        self.pagemap[[*pages]] = state

    def write(self) -> None:
        """Write the files."""
        (self.folder / "maps").write_text("".join(self.maps))
        (self.folder / "pagemap").write_bytes(self.pagemap.tobytes())
        (self.folder / "mem").write_bytes(self.memory.tobytes())

    def expected(self, *pages: int) -> bytes:
        """Return what is on these pages."""
        return b"".join(self.memory[at * GRAIN : (at + 1) * GRAIN].tobytes() for at in pages)


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Process:
    made = Process(tmp_path)
    real_open, real_preadv = os.open, os.preadv
    mem: list[int] = []

    def elsewhere(path: Any) -> Any:
        return os.fspath(path).replace(f"/proc/{PID}", str(tmp_path))

    def open_number(path: Any, *arguments: Any, **options: Any) -> int:
        number = real_open(elsewhere(path), *arguments, **options)
        if str(path).endswith("/mem"):
            mem.append(number)
        return number

    def preadv(number: int, buffers: Any, offset: int) -> int:
        if number not in mem:
            return real_preadv(number, buffers, offset)
        (buffer,) = buffers
        for page in sorted(made.vanished):
            if page * GRAIN <= offset < (page + 1) * GRAIN:
                raise OSError(errno.EIO, "Input/output error")
            if offset < page * GRAIN < offset + len(buffer):
                buffer = buffer[: page * GRAIN - offset]
        return real_preadv(number, [buffer], offset)

    monkeypatch.setattr(os, "open", open_number)
    monkeypatch.setattr(os, "preadv", preadv)
    real = open
    monkeypatch.setattr(
        process_memory, "open", lambda path, mode: real(elsewhere(path), mode), raising=False
    )
    return made


def packed(memory: ProcessMemory) -> bytes:
    return b"".join(chunk.tobytes() for chunk in memory.chunks())


def test_pages_in_memory_and_in_swap_are_taken_of_private_writable_mappings_only(
    process: Process,
) -> None:
    process.map(10, 20)
    process.map(40, 5, mode="r--p")
    process.map(50, 5, mode="rw-s")
    process.map(60, 5, inode=77)
    process.map(70, 1)
    process.exists(*range(5, 13), 14, *range(40, 65), 70)
    process.exists(29, state=SWAPPED)
    process.exists(20, state=ABSENT)
    process.write()
    with ProcessMemory(PID) as memory:
        assert memory.found_bytes == 6 * GRAIN
        assert packed(memory) == process.expected(10, 11, 12, 14, 29, 70)
        assert [memory.where(at) for at in range(6)] == [
            f"address {at * GRAIN:#x}" for at in (10, 11, 12, 14, 29, 70)
        ]
        assert memory.details() == {"pid": PID, "vanished_bytes": 0}


def test_of_a_large_mapping_the_pagemap_is_read_in_steps(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_memory, "_PAGEMAP_STEP", 8)
    process.map(3, 30)
    process.exists(*range(2, 6), *range(9, 14), 19, 32, 33)
    process.write()
    with ProcessMemory(PID) as memory:
        assert packed(memory) == process.expected(3, 4, 5, *range(9, 14), 19, 32)


@pytest.mark.parametrize("entries", [0, 12, 29])
def test_where_the_pagemap_ends_whole_mappings_are_taken(process: Process, entries: int) -> None:
    process.map(10, 20)
    process.exists(11)
    process.pagemap = process.pagemap[:entries]
    process.write()
    with ProcessMemory(PID) as memory:
        assert packed(memory) == process.expected(*range(10, 30))


@pytest.mark.parametrize("page_size", [512, GRAIN, 4 * GRAIN])
@pytest.mark.parametrize("chunk_pages", [1, 3, 64])
@pytest.mark.parametrize(
    "vanished", [(), (10,), (12, 13), (29,), (19, 20, 21), (10, 11, 15, 28, 29)]
)
def test_vanished_pages_are_left_out_and_the_rest_are_packed(
    process: Process, page_size: int, chunk_pages: int, vanished: tuple[int, ...]
) -> None:
    process.map(10, 20)
    existing = [*range(10, 14), *range(15, 22), *range(25, 30)]
    process.exists(*existing)
    process.write()
    process.vanished.update(vanished)
    with ProcessMemory(PID, page_size=page_size, chunk_pages=chunk_pages) as memory:
        assert memory.pages == -(-len(existing) * GRAIN // page_size)
        chunks = [chunk.copy() for chunk in memory.chunks()]
        left = [page for page in existing if page not in vanished]
        content = process.expected(*left)
        whole = -(-len(content) // page_size)
        assert memory.vanished_bytes == len(vanished) * GRAIN
        assert (memory.pages, memory.padded_bytes) == (whole, whole * page_size - len(content))
        pages = np.concatenate(chunks)
        assert pages.tobytes() == content + bytes(memory.padded_bytes)
        assert {len(chunk) for chunk in chunks[:-1]} <= {chunk_pages}
        assert len(chunks[-1]) <= chunk_pages
        order = np.random.default_rng(1).permutation(whole)
        assert np.array_equal(memory.read(order), pages[order])
        for at in range(whole):
            page, offset = divmod(at * page_size, GRAIN)
            assert memory.where(at) == f"address {left[page] * GRAIN + offset:#x}"


def test_a_process_that_frees_all_its_memory_is_a_clear_error(process: Process) -> None:
    process.map(10, 2)
    process.exists(10, 11)
    process.write()
    process.vanished.update((10, 11))
    with (
        ProcessMemory(PID) as memory,
        pytest.raises(UnreadableProcess, match=f"process {PID} freed all its memory"),
    ):
        list(memory.chunks())


def test_memory_is_read_at_any_packed_offset_until_it_vanishes(process: Process) -> None:
    process.map(10, 20)
    existing = [10, 11, 13, 20, 21]
    process.exists(*existing)
    process.write()
    content = process.expected(*existing)
    with ProcessMemory(PID) as memory:
        for offset, length in itertools.product(
            range(0, len(content), 1000), (1, 900, GRAIN, 9000)
        ):
            out = np.zeros(length, np.uint8)
            fits = offset + length <= len(content)
            assert memory.read_packed(offset, out) is fits
            if fits:
                assert out.tobytes() == content[offset : offset + length]
        process.vanished.add(13)
        out = np.zeros(GRAIN, np.uint8)
        readable = [memory.read_packed(at * GRAIN, out) for at in range(len(existing))]
        assert readable == [True, True, False, True, True]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EPERM, "may not be read: run as the user it belongs to, or as root"),
        (errno.EACCES, "may not be read: run as the user it belongs to, or as root"),
        (errno.ESRCH, f"there is no process {PID}"),
        (errno.ENXIO, "cannot be read: the reason"),
    ],
)
def test_why_memory_cannot_be_read_is_told(
    process: Process, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    process.map(10, 2)
    process.exists(10, 11)
    process.write()

    def fail(*_: object) -> int:
        raise OSError(number, "the reason")

    with ProcessMemory(PID) as memory:
        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(UnreadableProcess, match=said):
            list(memory.chunks())


@pytest.mark.parametrize("number", [errno.EIO, errno.EFAULT, errno.ENOMEM])
def test_pages_without_memory_have_vanished(
    process: Process, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    process.map(10, 2)
    process.exists(10, 11)
    process.write()
    real = os.preadv

    def fail(descriptor: int, buffers: Any, offset: int) -> int:
        if offset < 11 * GRAIN:
            raise OSError(number, "the reason")
        return real(descriptor, buffers, offset)

    with ProcessMemory(PID) as memory:
        monkeypatch.setattr(os, "preadv", fail)
        assert packed(memory) == process.expected(11)
        assert memory.vanished_bytes == GRAIN


def test_closing_again_closes_nothing_else(process: Process, tmp_path: Path) -> None:
    process.map(10, 2)
    process.exists(10, 11)
    process.write()
    memory, file = ProcessMemory(PID), FilePages(tmp_path / "mem")
    for each in (memory, file):
        each.close()
        others = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - /proc
        each.close()
        assert sorted(os.listdir("/proc/self/fd")) == others  # noqa: PTH208


# Samples


def test_blocks_that_vanish_are_left_out_of_a_sample(process: Process) -> None:
    each = BLOCK_BYTES // GRAIN
    process.map(10, 4 * each + 3)
    process.exists(*range(10, 10 + 4 * each + 3))
    process.write()
    process.vanished.add(10 + each)
    sample = sample_process(PID, 1 << 30, 0, name="a process")
    assert sample.total_bytes == 4 * BLOCK_BYTES + 3 * GRAIN
    assert (sample.kind, sample.name, sample.details) == ("process", "a process", {"pid": PID})
    blocks = [process.expected(*range(10 + at * each, 10 + (at + 1) * each)) for at in (0, 2, 3)]
    assert sample.blocks.tobytes() == b"".join(blocks)
    process.vanished.update(range(10, 10 + 5 * each))
    with pytest.raises(UnreadableProcess, match="freed all its memory while it was read"):
        sample_process(PID, 1 << 30, 0)


@pytest.mark.parametrize(("sample", "blocks"), [(1, 1), (BLOCK_BYTES, 1), (3 * BLOCK_BYTES - 1, 2)])
def test_a_sample_has_as_many_blocks_as_fit_and_at_least_one(
    process: Process, sample: int, blocks: int
) -> None:
    process.map(10, 100)
    process.exists(*range(10, 100))
    process.write()
    found: NDArray[np.uint8] = sample_process(PID, sample, 0).blocks
    assert found.shape == (blocks, BLOCK_BYTES)


def test_less_than_a_block_is_no_sample(process: Process) -> None:
    process.map(10, 100)
    process.exists(*range(10, 10 + BLOCK_BYTES // GRAIN - 1))
    process.write()
    with pytest.raises(
        BadArgument, match=f"process {PID} has 61,440 bytes: advice needs at least 64"
    ):
        sample_process(PID, 1 << 30, 0)
