"""No file or object is under two stores, however it is given; after the first, it is free."""

from __future__ import annotations

import fcntl
import gc
import io
import os
import signal
import subprocess
import sys
import tempfile
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.backing import write
from support.backing_targets import opened
from support.faulty_file import FaultyFile
from support.forked import in_forked_child
from support.interrupt_lines import interrupted_at

from batchzip import BadArgument, CompressedMapping, Engine, PageNotStored, SwapStore
from batchzip.core.memory import fail_allocation

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack
    from pathlib import Path

    from batchzip.store.backing.backing_file import BackingFile

PAGE = 4096
IN_USE = "in use by another store"


class Wrapped:
    """Storage of a user's own on top of a file, whose descriptor it tells."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("r+b", 0)

    def pread(self, length: int, offset: int) -> bytes:
        return os.pread(self.file.fileno(), length, offset)

    def pwrite(self, data: memoryview, offset: int) -> int:
        return os.pwrite(self.file.fileno(), data, offset)

    def fileno(self) -> int:
        return self.file.fileno()


def linked(make: Callable[[Path, Path], None], path: Path) -> Path:
    link = path.with_name(f"link {len(list(path.parent.iterdir()))}")
    make(link, path)
    return link


def descriptor(stack: ExitStack, path: Path, flags: int = os.O_RDWR) -> int:
    fd = os.open(path, flags)
    stack.callback(os.close, fd)
    return fd


def duplicate(stack: ExitStack, fd: int) -> int:
    again = os.dup(fd)
    stack.callback(os.close, again)
    return again


def wrapped(stack: ExitStack, path: Path) -> Wrapped:
    made = Wrapped(path)
    stack.callback(made.file.close)
    return made


def mounted(stack: ExitStack, path: Path) -> Path:
    """Return the same file by another mount; where none can be made, the path as it is."""
    where = path.with_name(f"mount {len(list(path.parent.iterdir()))}")
    where.touch()
    if not subprocess.run(["mount", "--bind", path, where], check=False).returncode:
        stack.callback(lambda: subprocess.run(["umount", where], check=True))
        return where
    return path


FORMS: dict[str, Callable[[ExitStack, Path], Any]] = {
    "Path": lambda _, path: path,
    "text": lambda _, path: str(path),
    "bytes": lambda _, path: os.fsencode(path),
    "relative": lambda _, path: os.path.relpath(path),
    "symbolic link": lambda _, path: linked(lambda a, b: a.symlink_to(b), path),
    "hard link": lambda _, path: linked(lambda a, b: a.hardlink_to(b), path),
    "bind mount": mounted,
    "/proc/self/fd": lambda stack, path: f"/proc/self/fd/{descriptor(stack, path)}",
    "/dev/fd": lambda stack, path: f"/dev/fd/{descriptor(stack, path)}",
    "descriptor": descriptor,
    "NumPy's integer": lambda stack, path: np.int32(descriptor(stack, path)),
    "file": lambda stack, path: stack.enter_context(path.open("r+b")),
    "unbuffered file": lambda stack, path: stack.enter_context(path.open("r+b", 0)),
    "file of a descriptor": lambda stack, path: stack.enter_context(
        os.fdopen(descriptor(stack, path), "r+b", closefd=False)
    ),
    "object that tells its descriptor": wrapped,
}


def refused(target: object, match: str = IN_USE) -> None:
    with pytest.raises(BadArgument, match=match):
        opened(target)


def works(target: object) -> None:
    with opened(target) as file:
        assert file.read(write(file, [b"x"])) == [b"x"]


@pytest.mark.parametrize("form", FORMS)
def test_a_file_is_known_again_in_every_form(form: str, path: Path, stack: ExitStack) -> None:
    targets = {other: make(stack, path) for other, make in FORMS.items()}
    first = targets[form]
    with opened(first) as file:
        kept = write(file, [b"kept"])
        for target in [*targets.values(), FORMS[form](stack, path)]:
            refused(target)
        assert file.read(kept) == [b"kept"]
    os.truncate(path, 0)  # as a file object's is not
    for target in targets.values():
        works(target)
        os.truncate(path, 0)


def test_duplicates_of_a_descriptor_are_the_same_file(path: Path, stack: ExitStack) -> None:
    fd = descriptor(stack, path)
    with opened(fd):
        refused(duplicate(stack, fd))
        refused(stack.enter_context(os.fdopen(os.dup(fd), "w+b")))
    works(duplicate(stack, fd))


@pytest.mark.parametrize("make", [io.BytesIO, FaultyFile])
def test_an_object_in_memory_is_under_one_store(make: Callable[[], object]) -> None:
    target = make()
    with opened(target) as file, opened(make()):
        kept = write(file, [b"kept"])
        refused(target)
        assert file.read(kept) == [b"kept"]
    works(target)


def test_a_file_that_was_made_here_is_under_one_store_too(tmp_path: Path) -> None:
    with opened(tmp_path / "swap") as file, opened(tmp_path / "swap") as other:
        refused(file.name)
        assert (file.read(write(file, [b"x"])), other.read(write(other, [b"y"]))) == (
            [b"x"],
            [b"y"],
        )


def test_a_temporary_file_by_its_object_and_by_its_name() -> None:
    with tempfile.NamedTemporaryFile() as file:
        with opened(file):
            refused(file)
            refused(file.file)
            refused(file.name)
        with opened(file.name):
            refused(file)
    with tempfile.SpooledTemporaryFile() as spooled, opened(spooled):
        refused(spooled)


@pytest.mark.parametrize("form", ["text", "file", "descriptor", "object that tells its descriptor"])
def test_stores_refuse_and_lose_nothing(
    engine: Engine, form: str, path: Path, stack: ExitStack
) -> None:
    pages = [bytes([n]) + os.urandom(999) + bytes(3096) for n in range(9)]
    with SwapStore(engine, backing=FORMS[form](stack, path)) as store:
        store.store(0, pages)
        assert store.writeback(9) == 9
        for make in FORMS.values():
            with pytest.raises(BadArgument, match=IN_USE):
                SwapStore(engine, backing=make(stack, path))
        assert store.load_many(range(9)).tobytes() == b"".join(pages)


# Other processes.


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_forked_child_is_refused_what_its_parent_uses(
    form: str, path: Path, stack: ExitStack
) -> None:
    target = FORMS[form](stack, path)
    with opened(target):
        in_forked_child(lambda: refused(target))
    os.truncate(path, 0)
    in_forked_child(lambda: works(target))


def test_a_forked_child_may_use_its_copy_of_what_is_in_memory() -> None:
    target = io.BytesIO()
    with opened(target) as file:
        kept = write(file, [b"the parent's"])
        in_forked_child(lambda: works(target))
        assert file.read(kept) == [b"the parent's"]


OTHER = """
import sys
from batchzip import BadArgument
from batchzip.store.backing.backing_file import BackingFile
path, how = sys.argv[1:]
try:
    BackingFile(open(path, "r+b") if how == "file" else path, page_size=4096).close()
    print("works")
except BadArgument as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["file", "path"])
def test_another_process_is_refused(how: str, path: Path, stack: ExitStack) -> None:
    def said() -> str:
        command = [sys.executable, "-c", OTHER, str(path), how]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    target = path if how == "file" else stack.enter_context(path.open("r+b"))
    with opened(target):
        assert "in use by another store" in said()
    os.truncate(path, 0)
    assert said() == "works\n"


OWNER = """
import os, signal, sys
from batchzip.store.backing.backing_file import BackingFile
file = BackingFile(open(sys.argv[1], "r+b"), page_size=4096)
if os.fork() == 0:
    print(os.getpid(), flush=True)
    signal.pause()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_killed_owner_uses_nothing_though_its_forked_child_lives(path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, path], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        child = int(owner.stdout.readline())
        try:
            owner.wait()
            works(path)
        finally:
            os.kill(child, signal.SIGKILL)


@pytest.mark.slow
def test_a_child_closes_only_what_is_the_claims(path: Path, stack: ExitStack) -> None:
    """A program may have closed the descriptor, and opened something else under its number."""
    with opened(path) as file:
        fd = file.descriptor
        assert fd is not None
        saved = duplicate(stack, fd)
        os.dup2(descriptor(stack, path.parent, os.O_RDONLY), fd, inheritable=False)
        in_forked_child(lambda: os.fstat(fd))
        os.dup2(saved, fd, inheritable=False)

        def is_closed() -> None:
            with pytest.raises(OSError, match="Bad file"):
                os.fstat(fd)

        in_forked_child(is_closed)


@pytest.mark.parametrize("lock", [fcntl.flock, fcntl.lockf])
def test_a_file_that_its_user_has_locked_is_refused_or_works(lock: Any, path: Path) -> None:
    with path.open("r+b") as own:
        lock(own, fcntl.LOCK_EX)
        if lock is fcntl.flock:
            refused(own, match="locked by another program")
        else:
            works(own)


# Ends of a claim, and its beginning.


def test_a_store_that_is_dropped_or_cannot_be_made_has_nothing(path: Path) -> None:
    dropped = opened(path)
    refused(path)
    del dropped
    gc.collect()
    fail_allocation(1)
    with pytest.raises(MemoryError):
        opened(path)
    fail_allocation(0)
    path.write_bytes(b"a letter")
    with pytest.raises(BadArgument, match="is not empty and not a backing file"):
        opened(path)
    with path.open("r+b") as own:
        works(own)


def write_back(store: SwapStore) -> None:
    store.store(0, [os.urandom(4096) for _ in range(9)])
    assert store.writeback(9) == 9
    assert store.load(3)
    with pytest.raises(PageNotStored):
        store.load(10)


USES: dict[str, Callable[[SwapStore], object]] = {
    "nothing": lambda _: None,
    "pages": write_back,
    "groups": lambda store: store.group("other").store(0, os.urandom(4096)),
    "a mapping": lambda store: CompressedMapping(store).update(key=os.urandom(9999)),
    "recompression": lambda store: store.recompress("zstd"),
    "readers": lambda store: store.share().attach().close(),
}


@pytest.mark.slow
@pytest.mark.parametrize("use", USES)
def test_a_store_that_is_dropped_lets_go_of_its_file_at_once(
    engine: Engine, use: str, path: Path
) -> None:
    gc.collect()
    gc.disable()
    try:
        store = SwapStore(engine, backing=path)
        USES[use](store)
        refused(path)
        del store
        assert path.read_bytes() == b""
        works(path)
    finally:
        gc.enable()


@pytest.mark.slow
def test_of_many_threads_one_gets_the_file(path: Path) -> None:
    together = threading.Barrier(4)
    got: list[BackingFile] = []
    told: list[BadArgument] = []

    def take(target: object) -> None:
        together.wait()
        try:
            got.append(opened(target))
        except BadArgument as error:
            told.append(error)

    for turn in range(1, 21):
        target = io.BytesIO() if turn % 2 else path
        threads = [threading.Thread(target=take, args=(target,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(got), len(told)) == (1, 3 * turn)
        got.pop().close()


@pytest.mark.slow
def test_an_interrupt_at_any_line_of_opening_leaves_the_file_to_others(path: Path) -> None:
    def of_the_store(file: Path) -> bool:
        return file.name in {"backing_file.py", "claims.py", "file_io.py"}

    def interrupted_before_line(nth: int, target: object) -> bool:
        made: list[BackingFile] = []
        place = interrupted_at(nth, lambda: made.append(opened(target)), of_the_store)
        for file in made:
            file.close()
        works(target)
        return place is not None

    for target in (path, path.parent, io.BytesIO()):
        nth = 1
        while interrupted_before_line(nth, target):
            nth += 1
        assert nth > 20
