"""Who may attach to a shared store: processes of the same user, by an address or a token."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import loky
import pytest
from support import share_readers
from support.forked import in_forked_child
from support.share_clients import PAGES
from support.store_pages import noise, text

from batchzip import (
    BadArgument,
    ClosedError,
    PageNotStored,
    Share,
    StoreView,
    SwapStore,
    attach,
)

spawn = multiprocessing.get_context("spawn")


# Who reads


@pytest.mark.slow
def test_any_process_of_the_user_can_attach(store: SwapStore) -> None:
    store.store(0, PAGES)
    here, there = spawn.Pipe()
    for share in (store.share(), str(store.share())):
        reader = spawn.Process(target=share_readers.answer, args=(share, there))
        reader.start()
        here.send(1)
        assert here.recv() == PAGES[1]
        here.send([4, 2])
        assert here.recv().tobytes() == PAGES[4] + PAGES[2]
        here.send(77)
        assert isinstance(here.recv(), PageNotStored)
        here.send(None)
        reader.join()
        reader.close()
    here.close()
    there.close()


def _first_page(share: Share) -> bytes:
    with share.attach() as view:
        return view.load(0)


@pytest.mark.slow
def test_loky_takes_a_share(store: SwapStore) -> None:
    store.store(0, PAGES)
    executor = loky.ProcessPoolExecutor(max_workers=1)
    try:
        assert executor.submit(_first_page, store.share()).result(60) == PAGES[0]
    finally:
        executor.shutdown(kill_workers=True)


@pytest.mark.slow
def test_a_process_that_knows_the_address_alone_can_attach(store: SwapStore) -> None:
    store.store(0, PAGES)
    script = "import batchzip, sys; print(batchzip.attach(sys.argv[1]).load(2) == bytes(4096))"
    command = [sys.executable, "-c", script, str(store.share())]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    assert done.stdout == b"True\n"


def test_a_share_can_be_pickled(store: SwapStore) -> None:
    assert pickle.loads(pickle.dumps(store.share())) == store.share()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_refused(store: SwapStore) -> None:
    store.store(0, PAGES)
    address = store.share().address

    def become_another_user_and_attach() -> None:
        os.setgid(65534)
        os.setuid(65534)
        with pytest.raises(PermissionError):
            attach(address)

    in_forked_child(become_another_user_and_attach)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_process_of_another_user_that_was_let_in_is_sent_away(store: SwapStore) -> None:
    """What counts is what the kernel says of the other side, not how it came to the socket."""
    address = Path(store.share().address)
    address.chmod(0o666)

    def become_another_user_and_connect() -> None:
        opened = os.open(address, os.O_PATH)
        os.setgid(65534)
        os.setuid(65534)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(20)
            connection.connect(f"/proc/self/fd/{opened}")
            assert connection.recv(1) == b""

    in_forked_child(become_another_user_and_connect)


@pytest.mark.parametrize(
    ("address", "error"),
    [
        (None, BadArgument),
        (7, BadArgument),
        ("", BadArgument),
        ("/tmp/somewhere", BadArgument),
        ("/proc/1/fd/x", BadArgument),
        ("/proc/1/fd/3#", BadArgument),
        ("/proc/1/fd/3#0123", BadArgument),
        ("/proc/1/fd/3#0123456789abcdef/", BadArgument),
        ("/proc/\u0661/fd/3", BadArgument),
        ("/proc/1/fd/3\n", BadArgument),
        ("/proc/self/fd/0", BadArgument),
        ("/proc/{pid}/fd/99999", FileNotFoundError),
        ("/proc/{pid}/fd/0", OSError),
        ("/proc/4194304/fd/3", FileNotFoundError),
    ],
)
def test_an_invalid_address_is_refused(address: object, error: type[Exception]) -> None:
    where: Any = address.format(pid=os.getpid()) if isinstance(address, str) else address
    with pytest.raises(error):
        attach(where)


def test_a_socket_at_the_address_of_another_process_is_no_store(store: SwapStore) -> None:
    number = Path(store.share().address).name
    command = [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[int(number)]) as other:
        with pytest.raises(BadArgument, match="not a store of this user"):
            attach(f"/proc/{other.pid}/fd/{number}")
        other.communicate()


def _hang_up(listener: socket.socket) -> None:
    listener.accept()[0].close()


def test_a_socket_that_is_no_store_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        fd = os.open(tmp_path / "socket", os.O_PATH)
        with ThreadPoolExecutor(1) as executor:
            hanging_up = executor.submit(_hang_up, listener)
            with pytest.raises(ClosedError):
                attach(f"/proc/{os.getpid()}/fd/{fd}")
            hanging_up.result()
        os.close(fd)


@pytest.mark.parametrize(
    "request_",
    [b"", b"{", b"[]", b"7", b'{"what": 1}', b'{"what": "table", "group": [1]}', b"x" * 100_000],
)
def test_a_request_that_makes_no_sense_harms_nobody(
    store: SwapStore, view: StoreView, request_: bytes
) -> None:
    store.store(0, PAGES)
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(store.share().address)
        other.sendall(len(request_).to_bytes(4, "little") + request_)
        other.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while other.recv(4096):
                pass
    assert view.load(0) == PAGES[0]
    assert view.counters == store.counters


# Descriptors


def test_descriptors_received_by_a_view_are_not_inherited(store: SwapStore, tmp_path: Path) -> None:
    """cpython#128881: socket.recv_fds ignores its flags, so every child inherited descriptors."""

    def inheritable() -> set[str]:
        found = list(Path("/proc/self/fd").iterdir())
        return {fd.name for fd in found if fd.exists() and os.get_inheritable(int(fd.name))}

    before = inheritable()
    with SwapStore(store.engine, backing=tmp_path) as backed:
        backed.store(0, [noise(n) for n in range(9)])
        backed.group("more").store(0, text(1))
        backed.writeback(5)
        with backed.share().attach() as view:
            assert view.load(0) == noise(0)
            assert view.group("more").load(0) == text(1)
            assert inheritable() == before
