"""Whatever answers at an address, a reader raises an error of batchzip and leaks nothing."""

import contextlib
import dataclasses
import errno
import fcntl
import multiprocessing
import os
import pickle
import random
import resource
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytest
import xxhash
from support import share_readers
from support.store_pages import text

from batchzip import (
    BadArgument,
    BatchzipError,
    ClosedError,
    CorruptPage,
    Counters,
    RequestTimeout,
    SwapStore,
    attach,
)
from batchzip.codecs.lz4 import Lz4
from batchzip.store.remote import view
from batchzip.store.remote.wire import LENGTH
from batchzip.system.segment import Segment

spawn = multiprocessing.get_context("spawn")

TOKEN = bytes(range(8))
Parts = Sequence[bytes]
Reply = tuple[Parts, Sequence[int]]
"""What is sent, piece by piece, and descriptors that go with the first."""


class Liar:
    """Listens as an owner does, and answers each request by what `answer` makes of it."""

    def __init__(self, folder: Path, answer: Callable[[bytes], Reply]) -> None:
        self._answer = answer
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / "socket"))
        self._listener.listen()
        self._path = os.open(folder / "socket", os.O_PATH)
        self.address = f"/proc/{os.getpid()}/fd/{self._path}"
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        os.close(self._path)

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                self._reply(connection)

    def _reply(self, connection: socket.socket) -> None:
        length = LENGTH.unpack(connection.recv(4, socket.MSG_WAITALL))[0]
        parts, descriptors = self._answer(connection.recv(length, socket.MSG_WAITALL))
        for part in parts:
            socket.send_fds(connection, [part], list(descriptors), socket.MSG_NOSIGNAL)
            descriptors = ()


def framed(value: object, token: bytes = TOKEN) -> Parts:
    data = token + pickle.dumps(value)
    return [LENGTH.pack(len(data)) + data]


class Memory:
    """Descriptors as a store would give them; and others."""

    def __init__(self) -> None:
        self.table = Segment((8 << 20) + 4096 + 8192)
        self.words = Segment(4096)
        self.null = os.open(os.devnull, os.O_RDWR)
        self.pipe = os.pipe()
        self.unsealed = os.memfd_create("unsealed", os.MFD_CLOEXEC)
        os.ftruncate(self.unsealed, 16 << 20)

    @property
    def good(self) -> list[int]:
        return [self.words.fd, self.words.fd, self.table.fd]

    def close(self) -> None:
        self.table.close()
        self.words.close()
        for fd in (self.null, *self.pipe, self.unsealed):
            os.close(fd)


@pytest.fixture
def memory() -> Iterator[Memory]:
    memory = Memory()
    yield memory
    memory.close()


ANSWER = {"page_size": 4096, "codecs": (1, {1: Lz4()})}


def give(reply: Reply, _: bytes) -> Reply:
    return reply


def refused(folder: Path, answer: Reply, *, token: str = "") -> type[BatchzipError]:
    with Liar(folder, partial(give, answer)) as liar:
        with pytest.raises(BatchzipError) as error:
            attach(liar.address + token)
        return error.type


class Bomb:
    """Does harm where it is unpickled."""

    exploded = False

    def __reduce__(self) -> Any:
        return setattr, (Bomb, "exploded", True)


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [b"\x08"],
        [b"\x08\x00", b"\x00\x00"],
        [b"\xff\xff\xff\xff"],
        [LENGTH.pack(0)],
        [LENGTH.pack(8), TOKEN],
        [LENGTH.pack(100), TOKEN, b"too few"],
        [LENGTH.pack(20) + b"no pickle of anything"],
        [LENGTH.pack(28) + TOKEN + b"HTTP/1.1 400 Bad Req"],
    ],
    ids=repr,
)
def test_bytes_that_are_no_reply_are_refused(tmp_path: Path, memory: Memory, parts: Parts) -> None:
    refused(tmp_path, (parts, []))
    (tmp_path / "socket").unlink()
    refused(tmp_path, (parts, memory.good))


@pytest.mark.parametrize(
    "answer",
    [
        None,
        7,
        (),
        {},
        {"page_size": 4096},
        *({**ANSWER, "page_size": size} for size in (0, -4096, 1, 3000, 1 << 40, 10**30, "4096")),
        *(
            {**ANSWER, "codecs": codecs}
            for codecs in (
                None,
                (1,),
                (-1, {}),
                (1 << 64, {}),
                (1, {0: Lz4()}),
                (1, {256: Lz4()}),
                (1, {"1": Lz4()}),
                (1, {1: "lz4"}),
                (1, [Lz4()]),
            )
        ),
        KeyboardInterrupt(),
        SystemExit(3),
        StopIteration(),
        Exception("out of nowhere"),
        Lz4,
    ],
    ids=repr,
)
def test_answers_that_no_store_gives_are_refused(
    tmp_path: Path, memory: Memory, answer: object
) -> None:
    assert refused(tmp_path, (framed(answer), memory.good)) is BadArgument


def test_descriptors_that_no_store_gives_are_refused(tmp_path: Path, memory: Memory) -> None:
    good, table = memory.words.fd, memory.table.fd
    for number, given in enumerate(
        [
            [],
            [good],
            [good, good],
            [good, good, good, good, table],
            [good] * 20,
            [good, memory.null, table],
            [good, good, memory.null],
            [good, memory.pipe[0], table],
            [good, good, memory.pipe[1]],
            [good, good, good],  # too short for a table
            [good, memory.unsealed, table],
            [good, good, memory.unsealed],
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert refused(folder, (framed(ANSWER), given)) is BadArgument, given


def store_one(memory: Memory, checksum: int) -> None:
    """Have the table say that page 0 is compressed, 78 bytes long, and lies where objects begin."""
    words = memory.words.view.cast("Q")
    words[1], words[8] = 64, 1 << 48 | 77  # slot 8 has an object
    table = memory.table.view.cast("Q")
    table[1] = 1  # one block has memory, and is block 0
    at = 4096 // 8 + (8 << 20) // 8
    table[at], table[at + 1] = 1 << 48 | 8, 1 << 40 | 2 << 32 | checksum
    words.release()
    table.release()


def test_a_codec_that_does_not_work_is_an_error_of_ours(tmp_path: Path, memory: Memory) -> None:
    codec = Lz4()
    object.__setattr__(codec, "acceleration", "fast")
    store_one(memory, (xxhash.xxh3_64_intdigest(b"x" * 78) ^ 1) % (1 << 32))
    os.pwrite(memory.unsealed, b"x" * 8192, 0)
    answer = framed({**ANSWER, "codecs": (1, {1: codec})}), [memory.unsealed, *memory.good[1:]]
    with Liar(tmp_path, partial(give, answer)) as liar, attach(liar.address) as reader:
        with pytest.raises(BatchzipError, match="codec of the store"):
            reader.load(0)
        with pytest.raises(BatchzipError, match="codec of the store"):
            reader.load_many([0])


@pytest.mark.slow
def test_objects_in_a_wrong_kind_of_file_read_as_damaged_pages(
    tmp_path: Path, memory: Memory
) -> None:
    """They are copied, not mapped: whatever they are cannot fault."""
    store_one(memory, 0)
    good = memory.good[1:]
    for number, objects in enumerate((memory.null, *memory.pipe, memory.unsealed, memory.words.fd)):
        folder = tmp_path / str(number)
        folder.mkdir()
        answer = framed(ANSWER), [objects, *good]
        with (
            Liar(folder, partial(give, answer)) as liar,
            attach(liar.address) as reader,
            pytest.raises(CorruptPage),
        ):
            reader.load(0)


def test_a_segment_cannot_be_truncated_beneath_a_reader(tmp_path: Path, memory: Memory) -> None:
    answer = framed(ANSWER), memory.good
    with Liar(tmp_path, partial(give, answer)) as liar, attach(liar.address) as reader:
        for segment in (memory.table, memory.words):
            with pytest.raises(PermissionError):
                os.ftruncate(segment.fd, 0)
        assert 0 not in reader
    with pytest.raises(PermissionError):
        fcntl.fcntl(memory.unsealed, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)


def test_a_reader_refuses_lies_told_after_attaching(tmp_path: Path, memory: Memory) -> None:
    answers: list[Reply] = []
    none = Counters(*[0] * len(dataclasses.fields(Counters)))

    def answer(_: bytes) -> Reply:
        return answers.pop(0) if answers else (framed(ANSWER), memory.good)

    with Liar(tmp_path, answer) as liar, attach(liar.address) as reader:
        asked: list[Callable[[], object]] = [
            lambda: reader.counters,
            reader.status,
            reader.classes,
            reader._shared.owner.codecs,
            lambda: reader._shared.owner.stored("", 0),
            lambda: reader.group("one"),
        ]
        for ask in asked:
            for lie in (7, {1, 2}, OSError, Exception()):
                answers.append((framed(lie), []))
                with pytest.raises(BadArgument):
                    ask()
            answers.append((framed(None, b"another!"), []))
            with pytest.raises(ClosedError):
                ask()
        for value, ask in zip((none, {}, [], (1, {}), b""), asked, strict=False):
            answers.append((framed(value), memory.good))  # they are closed
            with pytest.raises(BadArgument, match="3 descriptors"):
                ask()
        answers.append((framed(FileNotFoundError(2, "No such file")), []))
        with pytest.raises(FileNotFoundError):  # of the owner's file: the store is there
            reader._shared.owner.stored("", 0)


def test_an_answer_that_comes_byte_by_byte_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "_ANSWER_S", 0.05)
    over = threading.Event()

    def drip() -> Iterator[bytes]:
        yield LENGTH.pack(1 << 20)
        while not over.wait(0.002):
            yield b"."

    with Liar(tmp_path, lambda _: (drip(), [])) as liar:  # type: ignore[arg-type, return-value]
        with pytest.raises(RequestTimeout):
            attach(liar.address)
        over.set()


# The token


def test_nothing_is_read_of_a_reply_that_has_another_token(tmp_path: Path, memory: Memory) -> None:
    """So what has the process id and the descriptor's number by now can do nothing to a reader."""
    kind = refused(tmp_path, (framed(Bomb()), memory.good), token=f"#{'07' * 8}")
    assert kind is ClosedError
    assert not Bomb.exploded


def test_an_address_reaches_only_the_store_it_names(store: SwapStore) -> None:
    store.store(0, text(0))
    share = store.share()
    assert str(share) == f"{share.address}#{share.token}"
    for where in (share, str(share), share.address, Path(str(share))):
        with attach(where) as reader:
            assert reader.load(0) == text(0)
    with pytest.raises(ClosedError, match="another one"):
        attach(f"{share.address}#{'0' * 16}")


# What is damaged at random


def test_replies_with_damaged_bytes_give_an_error_of_ours_or_a_view(
    tmp_path: Path, memory: Memory
) -> None:
    rng = random.Random(1)
    good = framed(ANSWER)[0]

    def damage(_request: bytes) -> Reply:
        data = bytearray(good)
        for _ in range(rng.choice((1, 1, 2, 8))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        return [bytes(data)], memory.good

    with Liar(tmp_path, damage) as liar:
        for _ in range(300):
            with contextlib.suppress(BatchzipError), attach(liar.address) as reader:
                assert 0 not in reader


# What the reader's own process has no room for


def attach_with(room: int, address: str) -> int:
    """Attach where so many descriptors can be made. Return the error's number, or 0."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        first = os.open(os.devnull, os.O_RDONLY)
        stack.callback(os.close, first)
        last = first
        while last < first + 40:  # every number below the limit is taken
            last = os.dup(first)
            stack.callback(os.close, last)
        resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1 + room, hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        try:
            with attach(address) as reader:
                share_readers.version_of(reader.load(0), 0)
        except OSError as error:
            return error.errno or -1
        return 0


@pytest.mark.slow
def test_a_reader_without_room_for_descriptors_is_told_and_leaks_none() -> None:
    here, there = spawn.Pipe()
    owner = spawn.Process(target=share_readers.own_and_change, args=(there,))
    owner.start()
    there.close()
    address = here.recv()
    found = [attach_with(room, address) for room in range(9)]
    assert found == sorted(found, reverse=True)
    assert set(found) == {errno.EMFILE, 0}
    owner.kill()
    owner.join()
    owner.close()
    here.close()
