"""store.share() and attach(): other processes read a store, and see nothing that was never there."""

import contextlib
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import loky
import numpy as np
import pytest
from support import share_readers
from support.entries import flip
from support.faulty_file import FaultyFile
from support.forked import in_forked_child
from support.share_churn import churn
from support.share_readers import SIZE, page
from support.shared_memory import entry_of, flip_value, set_codec
from support.store_pages import ZEROS, noise, text, word

from batchzip import (
    BadArgument,
    ClosedError,
    CorruptPage,
    Engine,
    ForkedProcess,
    PageNotStored,
    Share,
    StoreView,
    SwapStore,
    attach,
    train_dictionary,
)

spawn = multiprocessing.get_context("spawn")


@pytest.fixture
def view(store: SwapStore) -> Iterator[StoreView]:
    with store.share().attach() as view:
        yield view


PAGES = [text(0), noise(1), ZEROS, word(3), text(4)]


# What is read


def test_a_view_gives_what_the_store_has(store: SwapStore, view: StoreView) -> None:
    store.store(7, PAGES)
    assert [view.load(7 + number) for number in range(5)] == PAGES
    assert view.load_many([9, 7, 9]).tobytes() == PAGES[2] + PAGES[0] + PAGES[2]
    out = bytearray(SIZE)
    assert view.load(8, out=out) is out
    assert out == PAGES[1]
    room = np.empty((2, SIZE), np.uint8)
    assert view.load_many(np.array([10, 11]), out=room) is room
    assert room.tobytes() == PAGES[3] + PAGES[4]
    assert [index in view for index in (6, 7, 11, 12, -1, 1 << 63)] == [
        False,
        True,
        True,
        False,
        False,
        False,
    ]
    assert view.page_size == SIZE


@pytest.mark.parametrize("index", [0, 3, 512, 1 << 40, (1 << 63) - 1, 1 << 63, -1])
def test_what_is_not_stored_is_named(store: SwapStore, view: StoreView, index: int) -> None:
    store.store(1, PAGES[:2])
    with pytest.raises(PageNotStored) as missing:
        view.load(index)
    assert missing.value.index == index


def test_arguments_are_those_of_a_store(store: SwapStore, view: StoreView) -> None:
    store.store(0, PAGES)
    with pytest.raises(BadArgument):
        view.load("0")  # type: ignore[call-overload]
    with pytest.raises(BadArgument):
        view.load_many([[0]])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="out"):
        view.load(0, out=bytearray(SIZE - 1))
    assert view.load_many([]).shape == (0, SIZE)


def test_a_view_follows_every_change(store: SwapStore, view: StoreView) -> None:
    store.store(0, PAGES)
    assert view.load(0) == PAGES[0]
    store.store(0, noise(50))
    assert view.load(0) == noise(50)
    store.invalidate(0)
    with pytest.raises(PageNotStored):
        view.load(0)
    store.store(0, [text(9)] * 3000)  # the table grows
    store.store(1 << 50, text(8))  # and so does its directory
    assert view.load(2999) == text(9)
    assert view.load(1 << 50) == text(8)
    store.invalidate(0, 3000)
    store.store(512 * 9, text(7))  # a block's place is another's now
    for index in (0, 600, 2999):
        with pytest.raises(PageNotStored):
            view.load(index)
    assert view.load(512 * 9) == text(7)
    store.compact()
    assert view.load(512 * 9) == text(7)


def test_a_table_that_held_nothing_can_be_shared(engine: Engine) -> None:
    with SwapStore(engine) as store, store.share().attach() as view:
        with pytest.raises(PageNotStored):
            view.load(0)
        store.store(0, PAGES)
        assert view.load(1) == PAGES[1]
        store.check_invariants()


def test_sharing_twice_gives_the_same(store: SwapStore) -> None:
    assert store.share() == store.share()
    assert str(store.share()).startswith(f"{store.share().address}#")


def test_pages_of_several_codecs_are_read(store: SwapStore, view: StoreView) -> None:
    samples = [text(number) for number in range(100)]
    with (
        Engine("zstd", backend="sequential") as second,
        Engine("zstd", backend="sequential", dictionary=train_dictionary(samples)) as third,
        Engine("lz4", backend="sequential", shuffle=4) as fourth,
    ):
        for number, engine in enumerate([store.engine, second, third, fourth]):
            store.engine = engine
            store.store(number, text(number))
            assert view.load(number) == text(number)
        store.recompress(second)
        assert view.load_many(range(4)).tobytes() == b"".join(map(text, range(4)))


def test_groups_are_read(store: SwapStore, view: StoreView) -> None:
    store.group("one").store(0, text(1))
    store.store(0, text(2))
    group = view.group("one")
    assert group.load(0) == text(1)
    assert view.load(0) == text(2)
    assert view.group("one") is group
    assert group.counters == store.group("one").counters
    with pytest.raises(BadArgument, match="'two'"):
        view.group("two")


@pytest.mark.parametrize("closed_by", ["owner", "reader"])
def test_a_group_that_was_closed_can_be_opened_again(
    store: SwapStore, view: StoreView, closed_by: str
) -> None:
    store.group("one").store(0, text(1))
    before = view.group("one")
    assert view.group("one") is before
    if closed_by == "owner":
        store.drop_group("one")
        with pytest.raises(ClosedError, match="this group of it"):
            before.load(0)
        with pytest.raises(BadArgument, match="'one'"):
            view.group("one")
        store.group("one").store(0, text(1))
    else:
        before.close()
    assert view.group("one").load(0) == text(1)
    assert view.load_many([]).size == 0  # the store itself is as it was
    with pytest.raises(ClosedError):
        before.load(0)


@pytest.mark.parametrize("kind", ["directory", "path", "file", "object"])
def test_pages_in_the_backing_file_are_read(engine: Engine, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "swap"
    with path.open("w+b") as file:
        target = {"directory": tmp_path, "path": path, "file": file, "object": FaultyFile()}[kind]
        with SwapStore(engine, backing=target) as store, store.share().attach() as view:
            store.store(0, PAGES)
            assert store.writeback(range(5)) == 3
            assert [view.load(number) for number in range(5)] == PAGES
            store.store(0, noise(9))
            assert view.load(0) == noise(9)


def test_counters_status_and_classes_are_the_owners(store: SwapStore, view: StoreView) -> None:
    store.store(0, PAGES)
    assert view.counters == store.counters
    assert view.classes() == store.classes()
    status = view.status()
    assert status["pid"] == os.getpid()
    assert status["pages"] == 5
    assert status == store.status()


def test_damage_is_told_and_the_others_stay_readable(store: SwapStore, view: StoreView) -> None:
    store.store(0, PAGES)
    flip(store, 0)
    with pytest.raises(CorruptPage) as damage:
        view.load(0)
    assert damage.value.index == 0
    assert view.load(1) == PAGES[1]


def test_a_number_that_is_another_codecs_now_is_learned(store: SwapStore, view: StoreView) -> None:
    store.store(0, text(0))
    assert view.load(0) == text(0)
    first = store.engine
    for level in range(-300, 0):
        with Engine("zstd", backend="sequential", level=level) as other:
            store.engine = other
            if level % 50 == 0 or level == -1:
                store.store(0, text(level + 400))
                assert view.load(0) == text(level + 400)
    assert store._resources.objects.reused > 0
    store.engine = first
    store.store(1, text(1))
    assert view.load_many([0, 1]).tobytes() == text(399) + text(1)


# Who reads


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


def test_loky_takes_a_share(store: SwapStore) -> None:
    store.store(0, PAGES)
    executor = loky.ProcessPoolExecutor(max_workers=1)
    try:
        assert executor.submit(_first_page, store.share()).result(60) == PAGES[0]
    finally:
        executor.shutdown(kill_workers=True)


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
def test_what_is_no_address_is_refused(address: object, error: type[Exception]) -> None:
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


# How it ends


def test_a_closed_store_says_so(engine: Engine) -> None:
    with SwapStore(engine) as store:
        store.store(0, PAGES)
        view = store.share().attach()
        address = store.share().address
    for call in (lambda: view.load(0), lambda: view.counters, lambda: view.load_many([0])):
        with pytest.raises(ClosedError, match="store is closed"):
            call()
    view.close()
    view.close()
    with pytest.raises(FileNotFoundError):
        attach(address)


def test_a_closed_view_says_so(store: SwapStore) -> None:
    store.store(0, PAGES)
    view = store.share().attach()
    group = view
    view.close()
    with pytest.raises(ClosedError):
        group.load(0)
    with pytest.raises(ClosedError):
        view.counters  # noqa: B018 - raises
    assert store.load(0) == PAGES[0]


def test_a_forked_child_has_to_attach_anew(store: SwapStore) -> None:
    store.store(0, PAGES)
    view = store.share().attach()
    address = store.share().address

    def use() -> None:
        with pytest.raises(ForkedProcess):
            view.load(0)
        with attach(address) as own:
            assert own.load(0) == PAGES[0]

    in_forked_child(use)
    assert view.load(0) == PAGES[0]
    view.close()


def test_a_forked_child_closes_nothing_that_has_the_descriptor_of_a_closed_store(
    engine: Engine,
) -> None:
    with SwapStore(engine) as store:
        number = int(Path(store.share().address).name)
    opened = os.open("/dev/null", os.O_RDONLY)
    os.dup2(opened, number)
    in_forked_child(lambda: os.fstat(number))
    for fd in {opened, number}:
        os.close(fd)
    assert store.closed


def test_pages_of_an_owner_that_was_killed_stay_readable() -> None:
    here, there = spawn.Pipe()
    owner = spawn.Process(target=share_readers.own, args=(there,))
    owner.start()
    there.close()
    with attach(here.recv()) as view:
        owner.kill()
        owner.join()
        owner.close()
        assert [view.load(index) for index in range(100)] == [
            page(index, 1) for index in range(100)
        ]
        with pytest.raises(ClosedError, match="owner gone"):
            view.counters  # noqa: B018 - raises
        # The child the owner forked would live for a minute: it sees to its own end by the pipe.
    here.close()


def test_a_store_that_is_dropped_ends_its_threads(engine: Engine) -> None:
    store = SwapStore(engine)
    store.store(0, PAGES)
    view = store.share().attach()
    del store
    deadline = time.monotonic() + 30
    while [thread for thread in threading.enumerate() if "share" in thread.name]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    view.close()


def test_a_reader_that_is_killed_leaves_the_owner_alone(store: SwapStore) -> None:
    store.store(0, PAGES)
    here, there = spawn.Pipe()
    for _ in range(3):
        reader = spawn.Process(target=share_readers.answer, args=(store.share(), there))
        reader.start()
        here.send(0)
        assert here.recv() == PAGES[0]
        os.kill(reader.pid or 0, signal.SIGKILL)
        reader.join()
        reader.close()
        store.store(0, PAGES)
        assert store.load(0) == PAGES[0]
    here.close()
    there.close()


# While everything changes


@pytest.mark.slow
def test_readers_beside_an_owner_that_changes_everything(engine: Engine, tmp_path: Path) -> None:
    reads, changes = churn(tmp_path, engine, 1.5, 3)
    assert reads > 0
    assert changes > 0


# Torn entries, made by hand


@pytest.mark.parametrize(
    "tear", ["value", "rest"], ids=["the value is new", "what it is said to be is new"]
)
@pytest.mark.parametrize("old", PAGES[:4], ids=["text", "raw", "zeros", "word"])
@pytest.mark.parametrize("new", PAGES[:4], ids=["text", "raw", "zeros", "word"])
def test_half_an_entry_is_never_taken_for_one(
    store: SwapStore, view: StoreView, old: bytes, new: bytes, tear: str
) -> None:
    store.store(0, [old, new if new != old else text(99)])
    entry = entry_of(store, 0)
    before = entry.copy()
    column = 0 if tear == "value" else 1
    entry[column] = entry_of(store, 1)[column]
    healed = threading.Timer(0.05, lambda: entry.__setitem__(slice(None), before))
    healed.start()
    assert view.load(0) in {old, new}
    healed.join()


def test_bytes_of_one_codec_are_never_taken_for_anothers(store: SwapStore, view: StoreView) -> None:
    store.store(0, [text(0), text(1)])
    with Engine("zstd", backend="sequential") as other:
        store.engine = other
        store.store(2, text(2))
        for number in (0, 2, 255):  # none, zstd's, and one that nobody has
            set_codec(store, 0, number)
            with pytest.raises(CorruptPage):
                view.load(0)
            with pytest.raises(CorruptPage):
                store.load(0)
            with pytest.raises(CorruptPage):
                store.load_many([1, 0])
            assert store.check().damaged == (("", 0),)
    set_codec(store, 0, 1)
    assert view.load(0) == store.load(0) == text(0)


class _RangError(Exception):
    """What a signal handler raises."""


def test_a_signal_ends_the_wait_for_an_entry_that_does_not_fit(
    store: SwapStore, view: StoreView
) -> None:
    store.store(0, text(0))
    flip_value(store, 0)
    with pytest.raises(CorruptPage):
        view.load(0)

    def ring(*_: object) -> None:
        raise _RangError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    try:
        with pytest.raises(_RangError):
            view.load_many([0])
    finally:
        signal.signal(signal.SIGALRM, before)
    flip_value(store, 0)
    assert view.load(0) == text(0)
