"""Whatever a client of the server sends ends in a reply or a closed connection."""

import contextlib
import json
import os
import random
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from support.share_clients import ask, connect, descriptors
from support.share_readers import page
from support.waiting import await_true

from batchzip import (
    BadArgument,
    BatchzipError,
    ClosedError,
    Engine,
    Share,
    SwapStore,
)
from batchzip.store.remote import share_server

# Odd clients


@pytest.mark.slow
def test_clients_that_stand_still_hold_up_nobody(
    shared: SwapStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a request, replies that nobody takes, more connections than there may be."""
    monkeypatch.setattr(share_server, "_CROWDED_S", 0.05)
    shared._servers[0]._most = 8
    with contextlib.ExitStack() as stack:
        for number in range(40):
            client = stack.enter_context(connect(shared))
            if number % 2:
                client.sendall(b"\x10\x00\x00\x00{")
        with shared.share().attach() as reader:
            assert reader.counters == shared.counters
    assert len(shared._servers[0]._readers) <= 8


def test_a_client_that_takes_no_reply_can_ask_no_more(shared: SwapStore) -> None:
    """So nothing piles up in the owner but one reply."""
    with connect(shared) as client:
        client.setblocking(False)
        sent = 0
        until = time.monotonic() + 30
        while time.monotonic() < until:
            try:
                ask(client, what="attach")
                sent += 1
            except BlockingIOError:
                with shared.share().attach() as reader:  # all that came is served by now
                    assert reader.load(0) == page(0, 1)
                with contextlib.suppress(BlockingIOError):
                    ask(client, what="attach")
                    continue
                break
        else:
            pytest.fail("it could ask for ever")
        assert sent < 100_000
    with shared.share().attach() as reader:
        assert reader.load(0) == page(0, 1)


@pytest.mark.parametrize(
    "request_",
    [
        b"[" * 4000,
        b"[" * 2000 + b"]" * 2000,
        b'{"what":' * 450 + b"1" + b"}" * 450,
        b'{"what": "attach", "index": ' + b"9" * 4000 + b"}",
        b'{"what": ["attach"]}',
        b"\xff\xfe\x00",
        b"",
    ],
)
def test_an_invalid_request_ends_its_connection_and_no_other(
    shared: SwapStore, request_: bytes
) -> None:
    with connect(shared) as client:
        client.sendall(len(request_).to_bytes(4, "little") + request_)
        client.shutdown(socket.SHUT_WR)
        while client.recv(1 << 16):
            pass
    with shared.share().attach() as reader:
        assert reader.counters == shared.counters


def odd_requests(rng: random.Random) -> Iterator[bytes]:
    """Make bytes that look more or less like a request, framed and not."""
    words = ["what", "group", "index", "attach", "stored", "codecs", "table", "status", ""]

    def value(depth: int) -> object:
        kind = rng.randrange(9 if depth < 3 else 7)
        if kind < 4:
            odd = (rng.choice(words), rng.randrange(-5, 1000), None, rng.random() * 1e308)
            return odd[kind]
        if kind < 7:
            return rng.choice((True, -(10**300), 2**63, "\ud800", "\0" * 50, float("nan")))
        if kind == 7:
            return [value(depth + 1) for _ in range(rng.randrange(4))]
        return {rng.choice(words): value(depth + 1) for _ in range(rng.randrange(4))}

    for _ in range(60):
        request = {"what": rng.choice(words), "group": value(1), "index": value(1)}
        kinds = request, value(0), {**request, "what": value(1)}
        data = bytearray(json.dumps(rng.choice(kinds)).encode())
        if rng.random() < 0.3:
            for _ in range(rng.randrange(1, 4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
        length = len(data) + rng.choice((0, 0, 0, 0, 1, -1, 5000, 1 << 31))
        yield max(0, length).to_bytes(4, "little") + data * rng.choice((1, 1, 3))
        yield rng.randbytes(rng.randrange(1, 40))


def test_any_request_ends_in_a_reply_or_a_closed_connection(
    shared: SwapStore, capfd: pytest.CaptureFixture[str]
) -> None:
    shared.share().attach().close()  # the table is in shared memory from here on
    await_true(lambda: not shared._servers[0]._readers)
    before = descriptors()
    for request in odd_requests(random.Random(1)):
        with connect(shared) as client, contextlib.suppress(ConnectionError):
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
            while client.recv(1 << 16):
                pass
    with shared.share().attach() as reader:
        assert reader.counters == shared.counters
    await_true(lambda: not shared._servers[0]._readers)
    assert descriptors() == before
    assert capfd.readouterr() == ("", "")


def test_a_request_may_come_byte_by_byte_and_a_reply_be_left_in_the_middle(
    shared: SwapStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = json.dumps({"what": "counters"}).encode()
    with connect(shared) as client:
        for byte in len(request).to_bytes(4, "little") + request:
            client.sendall(bytes([byte]))
        assert int.from_bytes(client.recv(4, socket.MSG_WAITALL), "little") > 50
    with monkeypatch.context() as patch:
        patch.setattr(share_server, "answer", lambda *_: bytes(8 << 20))
        for _ in range(3):
            with connect(shared) as client:
                ask(client, what="status")
                client.recv(100, socket.MSG_WAITALL)
    with shared.share().attach() as reader:
        assert reader.counters == shared.counters


def test_a_client_that_sends_too_slowly_is_disconnected(
    shared: SwapStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(share_server, "_IDLE_S", 0.05)
    with connect(shared) as client:
        client.sendall((4000).to_bytes(4, "little"))
        with contextlib.suppress(ConnectionError):
            for _ in range(3000):
                client.sendall(b" ")
                time.sleep(0.002)
            pytest.fail("it stays")


def test_descriptors_that_a_client_sends_are_closed(shared: SwapStore) -> None:
    before = descriptors()
    reading, writing = os.pipe()
    with connect(shared) as client:
        socket.send_fds(client, [b"\x12\x00\x00\x00"], [writing] * 100)
        os.close(writing)
        socket.send_fds(client, [b'{"what": "status"}'], [reading])
        client.recv(4)
        assert os.read(reading, 1) == b"", "nobody has its other end any more"
    os.close(reading)
    await_true(lambda: not shared._servers[0]._readers)
    assert descriptors() == before


class UnspeakableError(Exception):
    """Has no text."""

    def __repr__(self) -> str:
        raise ValueError

    __str__ = __repr__


class OwnError(BatchzipError):
    """A reader does not have this class, or another one of that name."""


class OwnOSError(OSError):
    """Likewise."""


@pytest.mark.parametrize(
    "raised", [SystemExit, KeyboardInterrupt, GeneratorExit, UnspeakableError, OwnError, OwnOSError]
)
def test_an_owner_reports_any_error_of_a_request_to_the_reader(
    shared: SwapStore,
    raised: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> object:
        raise raised

    with shared.share().attach() as reader:
        with monkeypatch.context() as patch:
            patch.setattr(share_server, "answer", fail)
            with pytest.raises(BadArgument, match=rf"request failed: .*{raised.__name__}"):
                reader.counters  # noqa: B018 - raises
            patch.setattr(share_server, "answer", lambda *_: threading.Lock())
            with pytest.raises(BadArgument, match=r"request failed: .*cannot pickle"):
                reader.counters  # noqa: B018 - raises
        assert reader.counters == shared.counters
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "wrong",
    [
        {"what": "stored", "index": 1 << 63},
        {"what": "stored", "index": -(1 << 70)},
        {"what": "stored", "index": True},
        {"what": "stored", "index": float("inf")},
        {"what": "counters", "group": [[]]},
        {"what": "counters", "group": "\ud800"},
        {"what": "nothing"},
    ],
    ids=str,
)
def test_a_reader_with_a_wrong_question_gets_none_or_an_error(
    shared: SwapStore, wrong: dict[str, object]
) -> None:
    with shared.share().attach() as reader:
        owner = reader._shared.owner
        with contextlib.suppress(BatchzipError):
            assert owner.ask(kind=object, **wrong) is None  # type: ignore[arg-type]
        assert reader.counters == shared.counters


def test_readers_of_a_store_that_was_there_before_are_told(engine: Engine) -> None:
    with SwapStore(engine) as first:
        share = first.share()
        reader = share.attach()
    with SwapStore(engine) as second:
        # As if it had got the same number.
        reader._shared.owner._address = address = second.share().address
        with pytest.raises(ClosedError):
            reader.counters  # noqa: B018 - raises
        with pytest.raises(ClosedError):
            Share(address, share.token).attach()
    reader.close()
