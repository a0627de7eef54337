"""What is written to a backing file is read back, wherever it lies; its room is used again."""

from __future__ import annotations

import errno
import io
import os
import random
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.backing import NOTHING, free, write
from support.faulty_file import FaultyFile

from batchzip.errors import BadArgument, ClosedError
from batchzip.store.backing.backing_file import BackingFile
from batchzip.store.backing.file_io import open_storage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PAGE = 4096
MIB = 1 << 20


def objects(count: int, seed: int = 0, longest: int = PAGE) -> list[bytes]:
    chance = random.Random(seed)
    return [chance.randbytes(chance.randint(1, longest)) for _ in range(count)]


def empty_file(path: Path) -> Path:
    path.touch(0o600)
    return path


def opened(stack: ExitStack, path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> int:
    fd = os.open(path, flags)
    stack.callback(os.close, fd)
    return fd


TARGETS: dict[str, Callable[[ExitStack, Path], Any]] = {
    "path": lambda _, folder: folder / "swap",
    "path as text": lambda _, folder: str(folder / "swap"),
    "path as bytes": lambda _, folder: os.fsencode(folder / "swap"),
    "path of an empty file": lambda _, folder: empty_file(folder / "swap"),
    "directory": lambda _, folder: folder,
    "descriptor": lambda stack, folder: opened(stack, folder / "own"),
    "file": lambda stack, folder: stack.enter_context((folder / "own").open("w+b")),
    "unbuffered": lambda stack, folder: stack.enter_context((folder / "own").open("w+b", 0)),
    "unnamed": lambda stack, folder: stack.enter_context(tempfile.TemporaryFile(dir=folder)),  # noqa: SIM115 - the stack closes it
    "memory": lambda *_: io.BytesIO(),
    "storage": lambda *_: FaultyFile(),
}


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    with ExitStack() as stack:
        yield TARGETS[request.param](stack, tmp_path)


def test_objects_are_read_back_in_the_order_asked_for(target: Any) -> None:
    with BackingFile(target, page_size=PAGE) as file:
        first, second = objects(1000, 1), objects(1, 2)
        positions = np.concatenate([write(file, first), write(file, second)])
        expected = first + second
        assert file.read(positions) == expected
        order = np.random.default_rng(0).permutation(len(expected))
        assert file.read(positions[order]) == [expected[at] for at in order]
        few = order[:7]
        assert file.read(positions[few]) == [expected[at] for at in few]
        assert file.read(positions[[3, 3, 3]]) == [expected[3]] * 3
        assert file.live_bytes == sum(map(len, expected))
        assert file.objects == len(expected)
        file.check_invariants(positions)
        free(file, positions)
        assert (file.objects, file.live_bytes, file.held_bytes) == (0, 0, 0)
        file.check_invariants(NOTHING)


def test_no_objects_are_no_work() -> None:
    storage = FaultyFile()
    with BackingFile(storage, page_size=PAGE) as file:
        assert len(write(file, [])) == 0
        assert file.read(NOTHING) == []
        free(file, NOTHING)
    assert not storage.calls


@pytest.mark.parametrize("page_size", [512, PAGE, 2 << 20])
def test_objects_have_one_byte_to_a_page(page_size: int) -> None:
    with BackingFile(io.BytesIO(), page_size=page_size) as file:
        sizes: list[bytes | memoryview] = [b"a", bytes(page_size), memoryview(b"b" * page_size)]
        assert file.read(write(file, sizes)) == sizes
        for wrong in (b"", bytes(page_size + 1)):
            with pytest.raises(BadArgument, match=f"1 to {page_size}"):
                write(file, [b"fine", wrong])
        assert file.objects == 3


def test_a_batch_is_one_write_and_neighbours_are_one_read() -> None:
    storage = FaultyFile()
    with BackingFile(storage, page_size=PAGE) as file:
        positions = write(file, objects(200))
        assert (storage.calls["pwrite"], storage.calls["sync"]) == (1, 1)
        file.read(positions)
        assert storage.calls["pread"] == 1
        file.read(positions[[0, 1, 198, 199]])
        assert storage.calls["pread"] == 3


def test_no_object_lies_in_two_zones() -> None:
    with BackingFile(io.BytesIO(), page_size=PAGE) as file:
        written = [bytes(PAGE - 1)] * 1000
        positions = write(file, written)
        file.check_invariants(positions)
        assert np.unique(file.zone_of(positions)).tolist() == [0, 1, 2, 3]


@pytest.mark.slow
def test_room_is_used_again_over_rounds_of_overwriting(target: Any) -> None:
    with BackingFile(target, page_size=PAGE) as file:
        old = NOTHING
        total = 0
        for seed in range(20):
            batch = objects(800, seed)
            total = max(total, sum(map(len, batch)))
            new = write(file, batch)
            free(file, old)
            assert file.held_bytes <= 2 * total + 2 * MIB
            assert file.read(new) == batch
            file.check_invariants(new)
            old = new


@pytest.mark.parametrize("kind", ["path", "path of an empty file", "directory", "file"])
def test_memory_of_what_was_freed_is_given_back(kind: str) -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        where = TARGETS[kind](stack, folder)
        with BackingFile(where, page_size=PAGE) as file:
            positions = write(file, [b"x" * PAGE] * 2048)
            path = Path(file.name)
            assert path.stat().st_blocks * 512 >= 8 * MIB
            last = positions[-1:]
            free(file, positions[:-1])
            assert path.stat().st_blocks * 512 <= MIB + PAGE, "holes were punched"
            assert path.stat().st_size >= 7 * MIB
            assert file.read(last) == [b"x" * PAGE]
            free(file, last)
            assert path.stat().st_size <= PAGE, "the end was cut off"


def test_zones_that_are_mostly_dead_are_found_emptiest_first() -> None:
    with BackingFile(io.BytesIO(), page_size=PAGE) as file:
        positions = write(file, [bytes(PAGE)] * 1024)
        assert not file.zones.sparse()
        zones = file.zone_of(positions)
        kept = {0: 100, 1: 200, 2: 10, 3: 10}  # of 256 each; the last zone is still being filled
        gone = [positions[zones == zone][count:] for zone, count in kept.items()]
        free(file, np.concatenate(gone))
        assert list(file.zones.sparse()) == [2, 0]


def test_the_limit_counts_what_is_held_and_may_be_moved() -> None:
    with BackingFile(io.BytesIO(), page_size=PAGE, max_bytes=64 * PAGE) as file:
        room = 64 - file.zones.spare // PAGE
        assert room == 56
        positions = write(file, [bytes(PAGE)] * room)
        with pytest.raises(OSError, match="limit") as caught:
            write(file, [b"x"])
        assert caught.value.errno == errno.ENOSPC
        file.check_invariants(positions)
        file.write([bytes(PAGE)] * 8, cleaning=True).undo()
        file.max_bytes = 65 * PAGE
        positions = np.concatenate([positions, write(file, [b"x"])])
        free(file, positions)
        assert len(write(file, [bytes(PAGE)] * 56)) == 56
        file.max_bytes = None
        assert file.max_bytes is None
        write(file, [b"x"])
        with pytest.raises(BadArgument, match="number of bytes, or None"):
            file.max_bytes = -1


@pytest.mark.parametrize("mask", [0, 0o777])
@pytest.mark.parametrize("name", ["swap", "."])
def test_a_new_backing_file_is_private_and_has_no_name(
    tmp_path: Path, name: str, mask: int
) -> None:
    before = os.umask(mask)
    try:
        file = BackingFile(tmp_path / name, page_size=PAGE)
    finally:
        os.umask(before)
    with file:
        status = Path(file.name).stat()
        assert (stat.S_IMODE(status.st_mode), status.st_nlink) == (0o600, 0)
        assert status.st_dev == tmp_path.stat().st_dev
        assert file.read(write(file, [b"x"])) == [b"x"]
        assert not list(tmp_path.iterdir())


def test_after_close_nothing_can_be_done(tmp_path: Path) -> None:
    file = BackingFile(tmp_path / "swap", page_size=PAGE)
    write(file, [b"x"])
    file.close()
    file.close()
    with pytest.raises(ClosedError):
        write(file, [b"x"])
    with pytest.raises(ClosedError):
        file.read(np.ones(1, np.uint64))
    file.settle()  # a finalizer may come late


@pytest.mark.parametrize("name", ["swap", "."])
def test_where_the_file_system_has_no_unnamed_files_one_is_unlinked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    opened = os.open

    def refuse(path: Any, flags: int, mode: int = 0o777, **others: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return opened(path, flags, mode, **others)

    monkeypatch.setattr(os, "open", refuse)
    with BackingFile(tmp_path / name, page_size=PAGE) as file:
        assert file.read(write(file, [b"x"])) == [b"x"]
        assert not list(tmp_path.iterdir())


def test_a_file_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "letter"
    path.write_bytes(b"Dear Sir, ")
    with pytest.raises(BadArgument, match="letter' is not empty and not a backing file"):
        BackingFile(path, page_size=PAGE)
    assert path.read_bytes() == b"Dear Sir, "


def test_an_empty_file_is_used_and_left_empty(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    with BackingFile(path, page_size=PAGE) as file:
        assert file.read(write(file, [b"x"])) == [b"x"]
    assert path.read_bytes() == b""


OWNER = """
import os, signal, sys
from batchzip.store.backing.backing_file import BackingFile
file = BackingFile(sys.argv[1], page_size=4096)
kept = file.write([b"secret" * 100] * 5000)
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_owner_of(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", OWNER, path], check=False)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_file_left_by_a_killed_owner_is_taken_over(tmp_path: Path) -> None:
    path = empty_file(tmp_path / "swap")
    killed_owner_of(path)
    assert path.stat().st_size > 2 * MIB
    with BackingFile(path, page_size=PAGE) as file:
        assert path.stat().st_size == PAGE
        assert file.read(write(file, [b"x"])) == [b"x"]
    assert path.read_bytes() == b""


@pytest.mark.parametrize("was_there", [False, True])
def test_a_file_that_is_put_at_the_path_meanwhile_is_left_alone(
    tmp_path: Path, was_there: bool
) -> None:
    path = tmp_path / "swap"
    if was_there:
        path.touch()
    with BackingFile(path, page_size=PAGE) as file:
        kept = write(file, [b"ours"])
        (tmp_path / "new").write_bytes(b"another's")
        (tmp_path / "new").rename(path)
        assert file.read(kept) == [b"ours"]
    assert path.read_bytes() == b"another's"


def test_errors_of_opening_keep_their_number_and_name_the_path(tmp_path: Path) -> None:
    for missing in ("missing/swap", "missing/", ""):
        with pytest.raises(FileNotFoundError, match=f"{missing}'"):
            BackingFile(f"{tmp_path}/{missing}" if missing else "", page_size=PAGE)
    (tmp_path / "plain").touch()
    with pytest.raises(NotADirectoryError, match="plain/swap"):
        BackingFile(tmp_path / "plain" / "swap", page_size=PAGE)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="dangling"):
        BackingFile(tmp_path / "dangling", page_size=PAGE)


def test_an_invalid_backing_file_is_refused(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe")
    with ExitStack() as stack:
        wrong = [
            None,
            True,
            -1,
            10**40,
            10**5000,
            np.ones(3),
            np.True_,
            0.5,
            object(),
            "a\0b",
            b"a\0b",
            "\ud800",
            io.StringIO(),
            "/dev/null",
            tmp_path / "pipe",
            stack.enter_context(own.open("rb")),
            stack.enter_context(own.open("r+")),
            stack.enter_context(own.open("a+b")),
        ]
        for target in wrong:
            with pytest.raises(BadArgument, match="backing file"):
                BackingFile(target, page_size=PAGE)
        stack.close()
        with pytest.raises(BadArgument, match="closed file"):
            BackingFile(wrong[-1], page_size=PAGE)
    assert own.read_bytes() == b"x"


def test_a_file_object_may_be_closed_meanwhile(tmp_path: Path) -> None:
    own = (tmp_path / "own").open("w+b")
    with own, BackingFile(own, page_size=PAGE) as file, ExitStack() as stack:
        kept = write(file, [b"x"])
        own.close()
        others = [stack.enter_context((tmp_path / f"{n}").open("w+b")) for n in range(9)]
        kept = np.concatenate([kept, write(file, [b"y"])])
        assert file.read(kept) == [b"x", b"y"]
        assert [other.read() for other in others] == [b""] * 9
    assert (tmp_path / "own").read_bytes() == b"xy"


def test_a_file_object_stays_open(tmp_path: Path) -> None:
    with (tmp_path / "own").open("w+b") as own:
        with BackingFile(own, page_size=PAGE) as file:
            write(file, [b"kept"])
        own.seek(0)
        assert own.read() == b"kept"


@pytest.mark.slow
def test_threads_write_read_and_free_at_once(target: Any) -> None:
    kept: list[Any] = []
    failures: list[BaseException] = []

    def churn(seed: int) -> None:
        chance = random.Random(seed)
        mine: list[tuple[Any, list[bytes]]] = []
        try:
            for round_ in range(40):
                batch = objects(chance.randint(1, 100), seed * 1000 + round_)
                mine.append((write(file, batch), batch))
                positions, expected = chance.choice(mine)
                assert file.read(positions) == expected
                if len(mine) > 4:
                    free(file, mine.pop(chance.randrange(len(mine)))[0])
            kept.extend(mine)
        except BaseException as error:  # noqa: BLE001 - told in the main thread
            failures.append(error)

    with BackingFile(target, page_size=PAGE) as file:
        threads = [threading.Thread(target=churn, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        for positions, expected in kept:
            assert file.read(positions) == expected
        file.check_invariants(np.concatenate([positions for positions, _ in kept]))


# What is asked of the system


def test_sync_waits_until_the_file_is_on_its_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    storage = open_storage(tmp_path / "cold")
    storage.sync()
    assert synced == [storage.descriptor]
    storage.close()


def test_a_descriptor_that_a_child_still_has_locks_nobody_out(tmp_path: Path) -> None:
    path = empty_file(tmp_path / "cold")
    storage = open_storage(path)
    assert storage.descriptor is not None
    held = os.dup(storage.descriptor)  # as a forked child does: the lock is the same
    storage.close()
    open_storage(path).close()
    os.close(held)


def test_a_file_object_s_buffer_is_flushed_before_any_page_is_written(tmp_path: Path) -> None:
    with (tmp_path / "own").open("w+b") as own:
        own.write(b"held in a buffer")
        storage = open_storage(own)
        storage.pwrite(memoryview(b"a page"), 0)
        own.flush()
        assert storage.pread(100, 0) == b"a pagen a buffer"
        storage.close()


def test_a_stream_is_flushed_and_its_error_comes_through() -> None:
    class Full(io.BytesIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "full")

    stream = Full()
    with pytest.raises(OSError, match="full"):
        open_storage(stream).sync()
    stream.flush = lambda: None  # type: ignore[method-assign] # for its end


def test_a_header_that_is_not_written_whole_is_a_full_disk_and_no_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwrite", lambda _fd, data, _offset: len(data) - 1)
    path = empty_file(tmp_path / "cold")
    with pytest.raises(OSError, match="No space left") as failure:
        open_storage(path)
    assert failure.value.errno == errno.ENOSPC
    assert failure.value.filename == str(path)
    assert path.read_bytes() == b""
