"""A backing file gives back what failed or was dropped, at once, and touches no file of others."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import io
import os
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.backing import NOTHING, free, write
from support.faulty_file import FaultyFile
from support.forked import in_forked_child

from batchzip import BadArgument
from batchzip.store.backing import file_io
from batchzip.store.backing.backing_file import BackingFile

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PAGE = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "swap"
    found.touch()
    return found


def opened(target: object) -> BackingFile:
    return BackingFile(target, page_size=PAGE)


def works(target: object) -> None:
    with opened(target) as file:
        assert file.read(write(file, [b"x"])) == [b"x"]


# Room


def test_the_next_write_gets_the_room_of_one_that_was_dropped() -> None:
    with BackingFile(io.BytesIO(), page_size=PAGE, max_bytes=64 * PAGE) as file:
        for _ in range(3):
            assert len(file.write([bytes(PAGE)] * 56)) == 56  # all there is, and dropped at once
        assert len(write(file, [bytes(PAGE)] * 56)) == 56


def test_a_write_that_fails_gives_its_room_back_at_once() -> None:
    storage = FaultyFile()
    with opened(storage) as file:
        kept = write(file, [b"kept"])
        before = bytes(storage.content)
        for name in ("pwrite", "sync"):
            storage.faults[name] = (errno.EIO, 1)
            with pytest.raises(OSError, match="Input/output"):
                file.write([bytes(PAGE)] * 600)
            assert not file.zones.unsettled
            assert not any(storage.content[4:]), "what was written of it was discarded"
            assert (file.objects, file.live_bytes) == (1, 4)
        assert storage.content.startswith(before)
        assert file.read(kept) == [b"kept"]


@pytest.mark.parametrize("kind", ["directory", "path", "memory"])
def test_zones_have_the_same_number_of_pages_after_a_header(kind: str, path: Path) -> None:
    target = {"directory": path.parent, "path": path, "memory": io.BytesIO()}[kind]
    with opened(target) as file:
        pages = [random.Random(number).randbytes(PAGE) for number in range(1024)]
        positions = write(file, pages)
        per_zone = file.zones.zone_size // PAGE
        assert np.bincount(file.zone_of(positions)).tolist() == [per_zone] * (1024 // per_zone)
        assert file.read(positions) == pages
        gone = file.zone_of(positions) == 1
        free(file, positions[gone])
        file.check_invariants(positions[~gone])
        assert file.read(positions[~gone]) == [
            page for page, is_gone in zip(pages, gone, strict=True) if not is_gone
        ]


def test_invariants_notice_an_object_that_is_missing_or_there_twice() -> None:
    with opened(io.BytesIO()) as file:
        positions = write(file, [b"one", b"two"])
        file.check_invariants(positions[::-1])
        for wrong in (positions[:1], positions[[0, 1, 1]], NOTHING, positions + np.uint64(1)):
            with pytest.raises(AssertionError):
                file.check_invariants(wrong)


# Claims


def test_an_error_that_is_kept_does_not_keep_the_file(path: Path) -> None:
    with path.open("r+b") as own:
        fcntl.flock(own, fcntl.LOCK_EX)
        with pytest.raises(BadArgument, match="locked by another program") as refused:
            opened(path)
        fcntl.flock(own, fcntl.LOCK_UN)
        works(path)
    assert refused.value.__traceback__ is not None


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_without_locks_a_file_is_still_under_one_store_of_this_process(
    monkeypatch: pytest.MonkeyPatch, path: Path, code: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", fail)
    with opened(path) as file:
        kept = write(file, [b"kept"])
        with pytest.raises(BadArgument, match="in use by another store"):
            opened(path)
        assert file.read(kept) == [b"kept"]
    works(path)


def test_a_lock_that_fails_is_told_and_leaves_the_file_to_others(
    monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", fail)
        with pytest.raises(OSError, match="Input/output") as failed:
            opened(path)
        assert failed.value.errno == errno.EIO
    works(path)


def test_a_forked_child_empties_no_file_that_has_the_number_now(path: Path) -> None:
    """It drops the parent's store, whose descriptor is closed there."""
    held = [opened(path)]
    kept = write(held[0], [b"the parent's"])
    number = held[0].descriptor
    assert number is not None
    letter = path.with_name("letter")
    letter.write_bytes(b"Dear Sir, ")

    def drop() -> None:
        fd = os.open(letter, os.O_RDWR)
        os.dup2(fd, number)
        held.clear()
        assert letter.read_bytes() == b"Dear Sir, "
        assert path.stat().st_size > PAGE

    in_forked_child(drop)
    assert held[0].read(kept) == [b"the parent's"]
    held.pop().close()
    assert path.read_bytes() == b""


# Answers


def refuse_holes(monkeypatch: pytest.MonkeyPatch, code: int) -> list[int]:
    """Have `fallocate` fail. Return the offsets for which it was called."""
    offsets: list[int] = []

    def fail(_fd: int, _mode: int, offset: int, _length: int) -> int:
        offsets.append(offset)
        ctypes.set_errno(code)
        return -1

    monkeypatch.setattr(file_io, "_fallocate", lambda: fail)
    return offsets


@pytest.mark.parametrize(
    ("code", "calls"),
    [(errno.EOPNOTSUPP, 1), (errno.ENOSYS, 1), (errno.EIO, 2), (errno.ENOSPC, 2)],
)
def test_holes_are_punched_until_the_system_says_that_it_cannot(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, calls: int
) -> None:
    offsets = refuse_holes(monkeypatch, code)
    with opened(tmp_path) as file:
        positions = write(file, [bytes(PAGE)] * 1024)
        for zone in (0, 1):
            free(file, positions[file.zone_of(positions) == zone])
        assert len(offsets) == calls
        left = positions[file.zone_of(positions) > 1]
        assert file.read(left) == [bytes(PAGE)] * len(left)
        file.check_invariants(left)


@pytest.mark.parametrize(
    ("answer", "told"),
    [(bytes(101), "101 bytes"), ("text", "'text'"), (None, "None"), (5, "5")],
    ids=["too long", "text", "None", "int"],
)
def test_a_wrong_answer_of_pread_is_an_error_that_shows_it(answer: Any, told: str) -> None:
    class Storage(FaultyFile):
        def pread(self, _length: int, _offset: int) -> Any:
            return answer

    with opened(Storage()) as file:
        position = write(file, [bytes(100)])
        with pytest.raises(OSError, match=f"must return up to 100 bytes, not {told}$") as failed:
            file.read(position)
        assert failed.value.errno == errno.EIO


@pytest.mark.parametrize("answer", [None, "5", 2.5, 101, -1, 0])
def test_a_wrong_count_of_pwrite_is_an_error_and_nothing_is_kept(answer: Any) -> None:
    class Storage(FaultyFile):
        def pwrite(self, _data: memoryview, _offset: int) -> Any:
            return answer

    with opened(Storage()) as file:
        with pytest.raises(OSError, match=r"return a number of bytes|wrote -?\d+ of") as failed:
            file.write([bytes(100)])
        assert failed.value.errno == errno.EIO
        assert file.objects == 0


def test_the_largest_number_of_a_descriptor_is_one_that_is_not_open() -> None:
    class Odd(io.BytesIO):
        def fileno(self) -> int:
            return (1 << 31) - 1

    with pytest.raises(BadArgument, match="a backing file must be open"):
        opened(Odd())


def test_only_calls_of_a_users_object_may_hold_locks_of_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found: list[bool] = []

    class Storage(FaultyFile):
        def pwrite(self, data: memoryview, offset: int) -> int:
            found.append(file.is_locked_here)
            return super().pwrite(data, offset)

    real: Callable[..., int] = os.pwrite

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        found.append(file.is_locked_here)
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    for target, expected in ((tmp_path, False), (Storage(), True)):
        with opened(target) as file:
            assert not file.is_locked_here
            write(file, [b"x"])
            assert not file.is_locked_here
        assert found == [expected]
        found.clear()
