"""Targets: what a store's owner and readers get from each other by shared memory and socket."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

import xxhash
from support.fuzzing import Source
from support.store_pages import text

from batchzip import BatchzipError, Engine, SwapStore
from batchzip.codecs.lz4 import Lz4
from batchzip.core.view import SharedPool, SharedTable
from batchzip.store.remote.share_server import _Reader
from batchzip.store.remote.wire import LENGTH, TOKEN_BYTES, Descriptors, NoAnswerError, receive
from batchzip.system.segment import Segment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.fuzzing import Target

SIZE = 512
DIRECTORY, ENTRIES = 4096, 4096 + (8 << 20)
SLOT = 8
COMPRESSED, BACKED = 1, 4
CODECS: tuple[int, dict[int, Any]] = 1, {1: Lz4()}


class View:
    """A reader of a hostile owner's memory gets a page of the right size, or an error of ours."""

    def __init__(self) -> None:
        self._table = Segment(ENTRIES + 16384)
        self._words = Segment(4096)
        self._objects, self._file = (os.memfd_create("fuzz", os.MFD_CLOEXEC) for _ in range(2))
        self._codec = Lz4()
        self._stored = self._codec.compressor(SIZE)(text(1, SIZE))

    def close(self) -> None:
        self._table.close()
        self._words.close()
        os.close(self._objects)
        os.close(self._file)

    def _reset(self) -> None:
        table, words = self._table.memory, self._words.memory
        table[:64] = struct.pack("<8Q", 0, 1, 1, 0, 0, 0, 0, 0)
        table[DIRECTORY : DIRECTORY + 64] = bytes(64)
        table[ENTRIES : ENTRIES + 4096] = bytes(4096)
        words[:256] = struct.pack("<2Q", 0, 64) + bytes(240)
        for fd in (self._objects, self._file):
            os.pwrite(fd, bytes(8192), 0)
        self._put(0, 0, COMPRESSED, 1, self._stored)

    def _put(self, index: int, place: int, kind: int, codec: int, data: bytes) -> None:
        """Have an entry, its object and its checksum agree."""
        total = (xxhash.xxh3_64_intdigest(data) ^ codec) & 0xFFFFFFFF
        entry, length = ENTRIES + 16 * (index & 7), len(data)
        value = 1 << 48 | SLOT + (index & 7)
        if kind == BACKED:
            value = place << 21 | length - 1
        self._table.memory[entry : entry + 16] = struct.pack(
            "<QQ", value, codec << 40 | kind << 32 | total
        )
        at = 8 * (SLOT + (index & 7))
        self._words.memory[at : at + 8] = struct.pack("<Q", 1 << 48 | place << 9 | length - 1)
        os.pwrite(self._objects, data, place * 16 + 4)
        os.pwrite(self._file, data, place)

    def __call__(self, data: bytes) -> None:
        source = Source(data)
        self._reset()
        how = source.byte()
        if how & 1:  # an entry that agrees with its object
            kind, codec, index = source.byte() % 8, source.byte(), source.byte()
            given = source.take(1 + source.number(2) % (2 * SIZE))
            self._put(index, source.byte() % 16, kind, codec, given or b"x")
        while source:
            area, at = source.byte(), source.number(2)
            given = source.take(1 + (area >> 4) % 8)
            memory: Any = self._table.memory
            if area & 3 == 3:
                memory, at = self._words.memory, at % 4000
            else:
                at = (at % 64, DIRECTORY + at % 64, ENTRIES + at % 4000)[area & 3]
            memory[at : at + len(given)] = given
        with contextlib.suppress(BatchzipError):
            self._read(how)

    def _read(self, how: int) -> None:
        pool = SharedPool(
            os.dup(self._objects),
            os.dup(self._words.fd),
            os.dup(self._file) if how & 2 else -1,
            SIZE,
            *CODECS,
            lambda: CODECS,
        )
        table = SharedTable(
            os.dup(self._table.fd), pool, lambda _: self._stored if how & 4 else None
        )
        try:
            for index in (0, 1, how, 1 << 9 | how, how << 40):
                with contextlib.suppress(BatchzipError):
                    assert len(table.load(index)) == SIZE
        finally:
            table.close()
            pool.close()

    def seeds(self) -> Iterator[bytes]:
        yield b"\0"
        for kind in range(6):
            head = bytes([7, kind, 1, 1]) + struct.pack("<H", len(self._stored) - 1)
            yield head + self._stored + b"\x09"
        yield bytes([0, 0x70, 0, 0, *([1] * 8), 0x71, 0, 0, *([0] * 8), 0x72, 8, 0, *([7] * 8)])


class Requests:
    """Whatever a reader sends, in whatever pieces, its owner answers it or drops it."""

    def __init__(self) -> None:
        self._engine = Engine("lz4", backend="sequential", page_size=SIZE)
        self._store = SwapStore(self._engine)
        self._store.store(0, [text(1, SIZE)])
        self._store.group("one").store(0, [text(2, SIZE)])
        self._token = bytes.fromhex(self._store.share().token)

    def close(self) -> None:
        self._store.close()
        self._engine.close()

    def __call__(self, data: bytes) -> None:
        server = self._store._servers[0]
        here, there = socket.socketpair()
        reader = _Reader(there)
        try:
            source = Source(data)
            pieces = source.byte() % 4
            for _ in range(pieces):
                here.send(source.take(source.byte()) or b"\0")
                if self._takes(reader):
                    break
            here.send(source.rest() or b"\0")
            while self._takes(reader):
                answer = server.reply_to(bytes(reader.request[LENGTH.size :]), reader.descriptors)
                assert answer.startswith(self._token)
                reader.descriptors.close()
                reader.request.clear()
        finally:
            reader.close()
            here.close()

    def _takes(self, reader: _Reader) -> bool:
        try:
            while not (reader.is_whole or reader.receive()):
                pass
        except (EOFError, BlockingIOError):
            return False
        return True

    def seeds(self) -> Iterator[bytes]:
        for request in (
            b'{"what": "attach"}',
            b'{"what": "table", "group": "one"}',
            b'{"what": "codecs"}',
            b'{"what": "stored", "index": 0, "group": ""}',
            b'{"what": "counters", "group": "two"}',
            b'{"what": "classes"}',
            b'{"what": "status"}',
            b'{"what": []}',
            b"[1e999]",
        ):
            yield b"\0" + LENGTH.pack(len(request)) + request
        yield b"\2\1\x12\1\0\0\0" + b'{"what": "status"}'


class Replies:
    """A reader of any reply gets a framed one or an error, and keeps no descriptor."""

    def __init__(self) -> None:
        self._null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._null)

    def __call__(self, data: bytes) -> None:
        source = Source(data)
        descriptors = source.byte() % 7
        here, there = socket.socketpair()
        found: Descriptors | None = None
        with here, there:
            first = source.take(1 + source.byte())
            if first:
                socket.send_fds(here, [first], [self._null] * descriptors)
            here.send(source.rest())
            here.shutdown(socket.SHUT_WR)
            try:
                reply, found = receive(there, time.monotonic() + 10)
            except (EOFError, NoAnswerError):
                return
            assert LENGTH.pack(len(reply)) + reply == data[2 : 2 + LENGTH.size + len(reply)]
            assert len(found) == descriptors
            found.close()

    def seeds(self) -> Iterator[bytes]:
        reply = LENGTH.pack(TOKEN_BYTES + 3) + bytes(TOKEN_BYTES) + b"abc"
        for descriptors in (0, 3, 5):
            yield bytes([descriptors, 3]) + reply
            yield bytes([descriptors, 200]) + reply


TARGETS: dict[str, type[Target]] = {"view": View, "requests": Requests, "replies": Replies}
