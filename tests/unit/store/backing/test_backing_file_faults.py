"""A fault of the backing file is told, harms nothing that was written before, and can pass."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.backing import NOTHING, free, write
from support.faulty_file import CODES, FaultyFile
from support.interrupt_lines import interrupted_at

from batchzip.errors import ClosedError
from batchzip.store.backing.backing_file import BackingFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PAGE = 4096
BATCH = [bytes([at % 256]) * (1000 + at) for at in range(100)]
OTHER = [bytes([at % 251]) * (2000 - at) for at in range(600)]
FOREVER = float("inf")


@pytest.fixture
def storage() -> FaultyFile:
    return FaultyFile()


@pytest.fixture
def file(storage: FaultyFile) -> Iterator[BackingFile]:
    with BackingFile(storage, page_size=PAGE) as file:
        yield file


@pytest.mark.parametrize("times", [1, FOREVER])
@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("call", ["pwrite", "sync"])
def test_a_write_that_fails_keeps_nothing_and_harms_nothing(
    storage: FaultyFile, file: BackingFile, call: str, code: int, times: float
) -> None:
    kept = write(file, BATCH)
    held = file.held_bytes
    storage.faults[call] = (code, times)
    for _ in range(3 if times == FOREVER else 1):
        with pytest.raises(OSError, match=r".") as caught:
            write(file, OTHER)
        assert caught.value.errno == code
        assert (file.objects, file.held_bytes) == (len(BATCH), held)
        file.check_invariants(kept)
        assert file.read(kept) == BATCH
    storage.faults.clear()
    later = write(file, OTHER)
    assert file.read(later) == OTHER
    assert file.read(kept) == BATCH
    file.check_invariants(np.concatenate([kept, later]))


@pytest.mark.parametrize("nth", range(1, 4))
def test_a_write_that_fails_at_its_nth_zone_keeps_nothing(nth: int) -> None:
    class FailsAt(FaultyFile):
        def pwrite(self, data: memoryview, offset: int) -> int:
            if self.calls["pwrite"] == nth - 1:
                self.faults["pwrite"] = (errno.EIO, 1)
            return super().pwrite(data, offset)

    with BackingFile(FailsAt(), page_size=PAGE) as file:
        many = [bytes(PAGE)] * 700
        with pytest.raises(OSError, match=r"."):
            write(file, many)
        file.check_invariants(NOTHING)
        assert file.held_bytes == 0
        positions = write(file, many)
        assert file.zone_of(positions).min() == 0


@pytest.mark.parametrize("times", [1, FOREVER])
def test_short_writes_and_reads_are_continued(
    storage: FaultyFile, file: BackingFile, times: float
) -> None:
    storage.faults["pwrite"] = (0, times)
    storage.faults["pread"] = (0, times)
    positions = write(file, BATCH)
    assert file.read(positions) == BATCH
    assert min(storage.calls["pwrite"], storage.calls["pread"]) > 1


@pytest.mark.parametrize("taken", [0, -1, 1 << 40])
def test_a_write_that_takes_nothing_or_too_much_is_an_error(
    storage: FaultyFile, file: BackingFile, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    monkeypatch.setattr(storage, "pwrite", lambda _data, _offset: taken)
    with pytest.raises(OSError, match="wrote") as caught:
        write(file, BATCH)
    assert caught.value.errno == errno.EIO
    file.check_invariants(NOTHING)


@pytest.mark.parametrize("times", [1, FOREVER])
@pytest.mark.parametrize("code", CODES)
def test_a_read_that_fails_is_told_and_can_pass(
    storage: FaultyFile, file: BackingFile, code: int, times: float
) -> None:
    positions = write(file, BATCH)
    storage.faults["pread"] = (code, times)
    with pytest.raises(OSError, match=r".") as caught:
        file.read(positions)
    assert caught.value.errno == code
    storage.faults.clear()
    assert file.read(positions) == BATCH


def test_a_file_that_was_cut_gives_short_bytes_and_no_error(
    storage: FaultyFile, file: BackingFile
) -> None:
    positions = write(file, BATCH)
    del storage.content[1500:]
    assert file.read(positions) == [BATCH[0], BATCH[1][:500], *[b""] * 98]


@pytest.mark.parametrize("times", [1, FOREVER])
@pytest.mark.parametrize("code", [*CODES, errno.EOPNOTSUPP])
@pytest.mark.parametrize("call", ["discard", "truncate"])
def test_room_that_cannot_be_given_back_is_used_again(
    storage: FaultyFile, file: BackingFile, call: str, code: int, times: float
) -> None:
    storage.faults[call] = (code, times)
    for _ in range(10):
        positions = write(file, OTHER)
        assert file.read(positions) == OTHER
        free(file, positions)
        file.check_invariants(NOTHING)
    assert len(storage.content) <= 3 << 20


def test_zones_whose_sync_failed_are_not_written_again(
    storage: FaultyFile, file: BackingFile
) -> None:
    kept = write(file, BATCH)
    storage.faults["sync"] = (errno.EIO, 1)
    with pytest.raises(OSError, match=r"."):
        write(file, BATCH)
    syncs = storage.calls["sync"]
    storage.ranges.clear()
    later = write(file, OTHER)
    assert storage.calls["sync"] == syncs + 1
    assert 0 not in file.zone_of(later)
    free(file, kept)
    again = write(file, OTHER)
    assert 0 not in file.zone_of(again)
    assert min(start for start, _ in storage.ranges) >= 1 << 20
    free(file, again)
    free(file, later)
    assert 0 not in file.zone_of(write(file, OTHER))


def test_a_failed_sync_fails_every_batch_that_was_being_written() -> None:
    """The kernel tells each failure once: who syncs next is told that all is well."""
    written, told = threading.Event(), threading.Event()
    slow: list[BaseException] = []

    class Paused(FaultyFile):
        def pwrite(self, data: memoryview, offset: int) -> int:
            done = super().pwrite(data, offset)
            if threading.current_thread() is not threading.main_thread():
                written.set()
                told.wait()
            return done

    storage = Paused()
    with BackingFile(storage, page_size=PAGE) as file:

        def write_slowly() -> None:
            try:
                write(file, BATCH)
            except OSError as error:
                slow.append(error)

        thread = threading.Thread(target=write_slowly)
        thread.start()
        written.wait()
        storage.faults["sync"] = (errno.EIO, 1)
        with pytest.raises(OSError, match=r"."):
            write(file, OTHER)
        told.set()
        thread.join()
        assert [type(error) for error in slow] == [OSError]
        file.check_invariants(NOTHING)


class Interrupted(FaultyFile):
    """A storage that is interrupted before or after a call does its work."""

    def __init__(self) -> None:
        super().__init__()
        self.at: tuple[str, bool] | None = None

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name not in {"pread", "pwrite", "sync", "discard", "truncate"}:
            return value

        def call(*arguments: Any) -> Any:
            at, self.at = self.at, None
            if at == (name, True):
                raise KeyboardInterrupt
            result = value(*arguments)
            if at == (name, False):
                raise KeyboardInterrupt
            self.at = at
            return result

        return call


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("call", ["pread", "pwrite", "sync", "discard", "truncate"])
def test_an_interrupt_in_a_call_loses_nothing(call: str, before: bool) -> None:
    storage = Interrupted()
    with BackingFile(storage, page_size=PAGE) as file:
        kept = write(file, BATCH)
        gone = write(file, OTHER)
        storage.at = (call, before)
        steps: list[Callable[[], Any]] = [
            lambda: file.read(kept),
            lambda: free(file, gone),
            lambda: file.write(OTHER),
        ]
        interrupts = 0
        for step in steps:
            try:
                step()
            except KeyboardInterrupt:
                interrupts += 1
            file.check_invariants(kept if step is not steps[0] else np.concatenate([kept, gone]))
        assert interrupts == 1
        assert file.read(kept) == BATCH
        again = write(file, OTHER)
        assert file.read(again) == OTHER
        assert file.zone_of(again).max() <= 1, "nothing was lost of the room"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["object", "stream", "path"])
def test_an_interrupt_at_any_line_loses_nothing(kind: str, tmp_path: Path) -> None:
    def of_the_store(file: Path) -> bool:
        return "/batchzip/store/" in file.as_posix()

    def interrupted_before_line(nth: int) -> bool:
        targets = {"object": FaultyFile(), "stream": io.BytesIO(), "path": tmp_path / "swap"}
        file = BackingFile(targets[kind], page_size=PAGE)
        kept, gone = write(file, BATCH), write(file, OTHER)

        def work() -> None:
            assert file.read(kept[:3]) == BATCH[:3]
            file.write(OTHER)
            free(file, gone)

        place = interrupted_at(nth, work, of_the_store)
        if place is not None:
            all_there = file.objects == len(kept) + len(gone)
            file.check_invariants(np.concatenate([kept, gone]) if all_there else kept)
            if all_there:
                free(file, gone)
            again = write(file, OTHER)
            assert file.read(again) == OTHER
            assert file.zone_of(again).max() <= 1, "nothing was lost of the room"
            assert file.read(kept) == BATCH
            file.check_invariants(np.concatenate([kept, again]))
        file.close()
        assert not list(tmp_path.iterdir())
        return place is not None

    nth = 1
    while interrupted_before_line(nth):
        nth += 1
    assert nth > 50


def test_closing_that_was_cut_short_can_be_finished(tmp_path: Path) -> None:
    path = tmp_path / "swap"
    path.touch()

    def closed_before_line(nth: int) -> bool:
        file = BackingFile(path, page_size=PAGE)
        descriptor = file.descriptor
        assert descriptor is not None
        write(file, BATCH)
        ours = {"file_io.py", "claims.py"}
        place = interrupted_at(nth, file.close, lambda path: path.name in ours)
        file.close()
        assert path.read_bytes() == b""
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(descriptor)
        return place is not None

    nth = 1
    while closed_before_line(nth):
        nth += 1
    assert nth > 5


def test_a_file_closed_in_the_middle_of_a_write_is_closed_after_it() -> None:
    """By a signal handler, another thread, or the last reference to a store."""
    storage = FaultyFile()
    closed: list[bool] = []
    file = BackingFile(storage, page_size=PAGE)
    sync = storage.sync

    def close_and_sync() -> None:
        file.close()
        closed.append(True)
        sync()

    storage.sync = close_and_sync  # type: ignore[method-assign]
    assert len(write(file, BATCH)) == len(BATCH)
    assert closed
    with pytest.raises(ClosedError):
        file.read(np.ones(1, np.uint64))


class Visitor:
    """Uses a backing file within one of its own calls, as signal handlers and finalizers do."""

    def __init__(self, call: str) -> None:
        self.call = call
        self.file: BackingFile | None = None
        self.kept = NOTHING
        self.visits = self.refusals = 0

    def around(self, call: str, method: Any) -> Any:
        def visited(*arguments: Any) -> Any:
            self._visit()
            done = method(*arguments)
            self._visit()
            return done

        return visited if call == self.call and self.file is not None else method

    def _visit(self) -> None:
        file, self.file = self.file, None
        if file is None:
            return
        self.visits += 1
        assert file.read(self.kept) == BATCH
        try:
            more = write(file, BATCH)
        except BlockingIOError:
            self.refusals += 1
        else:
            assert file.read(more) == BATCH
            free(file, more)
        file.settle()
        self.file = file


class VisitedObject(FaultyFile):
    visitor: Visitor | None = None

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        visitor = super().__getattribute__("visitor")
        return value if visitor is None else visitor.around(name, value)


class VisitedStream(io.BytesIO):
    visitor: Visitor | None = None

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        visitor = super().__getattribute__("visitor")
        call = {"read": "pread", "write": "pwrite", "flush": "sync"}.get(name, name)
        return value if visitor is None else visitor.around(call, value)


@pytest.mark.parametrize("call", ["pread", "pwrite", "sync", "discard", "truncate"])
@pytest.mark.parametrize("target", [VisitedObject, VisitedStream])
def test_every_call_may_come_into_the_middle_of_every_other(call: str, target: Any) -> None:
    if (target, call) == (VisitedStream, "discard"):
        pytest.skip("a stream has no such call")
    storage = target()
    with BackingFile(storage, page_size=PAGE) as file:
        visitor = storage.visitor = Visitor(call)
        kept = visitor.kept = write(file, BATCH)
        visitor.file = file
        for _ in range(3):
            other = write(file, OTHER)
            assert file.read(other) == OTHER
            assert file.read(kept) == BATCH
            free(file, other)
            file.check_invariants(kept)
        assert visitor.visits >= 2
        # What is cut off cannot be given to the very thread that cuts.
        assert visitor.refusals == (visitor.visits if call == "truncate" else 0)
        visitor.file = None


LIMITED = """
import errno, resource, sys
import numpy as np
from batchzip.errors import ClosedError
from batchzip.store.backing.backing_file import BackingFile
with BackingFile(sys.argv[1], page_size=4096) as file:
    kept = file.write([b"k" * 4096] * 100).keep()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, resource.RLIM_INFINITY))
    for _ in range(3):
        try:
            file.write([b"x" * 4096] * 100)
        except OSError as error:
            assert error.errno == errno.EFBIG, error
        else:
            sys.exit("no error")
        file.check_invariants(kept)
        assert file.read(kept) == [b"k" * 4096] * 100
    small = file.write([b"s" * 4096] * 20).keep()
    assert file.read(small) == [b"s" * 4096] * 20
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swap", ".", "there"])
def test_a_file_that_may_not_grow_refuses_and_stays_whole(tmp_path: Path, name: str) -> None:
    there = tmp_path / "there"
    there.touch()
    done = subprocess.run([sys.executable, "-c", LIMITED, tmp_path / name], check=False)
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == [there]
    assert there.read_bytes() == b""
