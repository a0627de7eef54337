"""A backing file's room, exactly at its limit; and what is read at once."""

from __future__ import annotations

import errno
import os
import random
from typing import TYPE_CHECKING

import pytest
from support.backing import write

from batchzip import BadArgument
from batchzip.store.backing.backing_file import BackingFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from batchzip.store.backing.positions import Positions

PAGE = 4096


class Object:
    """Storage in memory that notes what is asked of it, and gives what it is told to."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.reads: list[tuple[int, int]] = []
        self.writes: list[tuple[int, int]] = []
        self.most = PAGE * 1000
        self.taken: int | None = None

    def pread(self, length: int, offset: int) -> bytes:
        self.reads.append((offset, length))
        return bytes(self.data[offset : offset + min(length, self.most)])

    def pwrite(self, data: memoryview, offset: int) -> int:
        self.writes.append((offset, len(data)))
        if self.taken is not None:
            return self.taken
        part = data[: self.most]
        self.data[offset : offset + len(part)] = part
        return len(part)


@pytest.fixture
def target() -> Object:
    return Object()


@pytest.fixture
def file(target: Object) -> Iterator[BackingFile]:
    with BackingFile(target, page_size=PAGE) as file:
        yield file


def noise(length: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(length)


def written(file: BackingFile, *objects: bytes) -> Positions:
    return write(file, list(objects))


def test_objects_of_one_byte_to_a_page_are_taken_and_no_others(file: BackingFile) -> None:
    for length in (1, PAGE):
        assert file.read(written(file, noise(length))) == [noise(length)]
    for length in (0, PAGE + 1):
        with pytest.raises(BadArgument, match=f"1 to {PAGE} bytes"):
            file.write([noise(length)])
        with pytest.raises(BadArgument, match=f"1 to {PAGE} bytes"):
            file.write([noise(5), noise(length), noise(5)])
    assert file.objects == 2


def test_room_is_told_exactly(file: BackingFile) -> None:
    written(file, noise(1000))
    assert file.room_for(1 << 40) == (True, False)
    held = file.held_bytes
    file.max_bytes = held + 10_000
    spare = file.zones.spare
    most = 10_000 - spare
    assert file.room_for(most) == (True, True)
    assert file.room_for(most + 1) == (False, False)


def test_a_short_write_goes_on_and_a_wrong_count_is_an_error(
    file: BackingFile, target: Object
) -> None:
    target.most = 1000
    data = noise(PAGE)
    position = written(file, data)
    assert [length for _, length in target.writes] == [4096, 3096, 2096, 1096, 96]
    offsets = [offset - target.writes[0][0] for offset, _ in target.writes]
    assert offsets == [0, 1000, 2000, 3000, 4000]
    assert file.read(position) == [data]
    assert [length for _, length in target.reads] == [4096, 3096, 2096, 1096, 96]
    for count in (0, -1, PAGE + 1):
        target.taken = count
        with pytest.raises(OSError, match=f"wrote {count} of {PAGE} bytes") as failed:
            file.write([data])
        assert failed.value.errno == errno.EIO
    target.taken = PAGE
    file.write([data])
    assert file.objects == 1


def test_neighbours_are_read_at_once_and_in_the_order_asked_for(
    file: BackingFile, target: Object
) -> None:
    objects = [noise(100 + number, number) for number in range(50)]
    positions = written(file, *objects)
    target.reads.clear()
    order = random.Random(1).sample(range(50), 50)
    assert file.read(positions[order]) == [objects[number] for number in order]
    assert len(target.reads) == 1
    assert file.read(positions[[3, 3, 7, 3]]) == [objects[number] for number in (3, 3, 7, 3)]
    assert file.read(positions[:0]) == []


def test_several_runs_are_announced_and_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced: list[tuple[int, int]] = []
    monkeypatch.setattr(
        os, "posix_fadvise", lambda _, offset, length, __: announced.append((offset, length))
    )
    with BackingFile(tmp_path, page_size=PAGE) as file:
        positions = written(file, *(noise(PAGE, number) for number in range(600)))
        assert len(file.read(positions[:1])) == 1
        assert announced == []
        found = file.read(positions[[0, 599]])
        assert found == [noise(PAGE, 0), noise(PAGE, 599)]
        assert [length for _, length in announced] == [PAGE, PAGE]
        assert announced[1][0] - announced[0][0] >= 599 * PAGE
