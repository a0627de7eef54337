"""The server of a shared store serves a thousand readers, whatever the system refuses."""

import contextlib
import errno
import gc
import multiprocessing
import os
import resource
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support import share_readers
from support.forked import in_forked_child
from support.share_clients import ask, connect, descriptors
from support.share_readers import page
from support.store_pages import text
from support.waiting import await_true

from batchzip import (
    BatchzipError,
    ClosedError,
    Engine,
    RequestTimeout,
    StoreView,
    SwapStore,
    attach,
)
from batchzip.store.remote import reach, share_server, view
from batchzip.store.remote.answers import answer

spawn = multiprocessing.get_context("spawn")

READERS = 1000

PROCESSES = 4


# A thousand readers


@pytest.mark.slow
def test_a_thousand_readers_attach_at_the_same_time_and_cost_the_owner_no_descriptor(
    shared: SwapStore,
) -> None:
    # Each needs four descriptors, and one more while it asks.
    most = (resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 200) // 5
    each = min(READERS // PROCESSES, most)
    pipes, processes = [], []
    start = spawn.Event()
    for _ in range(PROCESSES):
        here, there = spawn.Pipe()
        arguments = (shared.share(), each, start, there)
        process = spawn.Process(target=share_readers.attach_many, args=arguments)
        process.start()
        there.close()
        pipes.append(here)
        processes.append(process)
    start.set()
    assert [pipe.recv() for pipe in pipes] == [(each, [])] * PROCESSES
    await_true(lambda: not shared._servers[0]._readers)
    assert shared.load(1) == page(1, 1)
    for pipe in pipes:
        pipe.send("done")
    for pipe, process in zip(pipes, processes, strict=True):
        process.join()
        process.close()
        pipe.close()


def test_a_view_that_is_lost_closes_its_descriptors(shared: SwapStore) -> None:
    shared.group("one").store(0, text(1))
    with shared.share().attach() as first:  # the tables are moved to shared memory
        first.group("one")
    await_true(lambda: not shared._servers[0]._readers)
    before = descriptors()
    gc.disable()
    try:
        opened = shared.share().attach()
        assert opened.load(0) == page(0, 1)
        with contextlib.suppress(KeyError):  # pytest.raises() would keep the view
            opened.load(4000)
        assert opened.group("one").load(0) == text(1)
        group = opened.group("one")
        del opened
        assert group.load(0) == text(1)
        assert descriptors() > before
        del group
        await_true(lambda: not shared._servers[0]._readers)
        assert descriptors() == before
    finally:
        gc.enable()


# In the thread that answers


def test_a_finalizer_in_the_thread_that_answers_may_read_the_store(
    shared: SwapStore, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would wait for itself."""
    shared.group("one").store(0, text(1))
    found: list[object] = []
    with SwapStore(engine) as other, SwapStore(engine) as closed:
        other.store(0, text(2))
        over = closed.share()
        closed.close()

        def read_all_first(store: SwapStore, *rest: Any) -> object:
            monkeypatch.setattr(share_server, "answer", answer)
            with shared.share().attach() as reader, other.share().attach() as another:
                found.extend((reader.load(0), reader.group("one").load(0), another.load(0)))
                found.append(reader.counters.stored_pages)
            with pytest.raises(ClosedError):
                over.attach()
            return answer(store, *rest)

        monkeypatch.setattr(share_server, "answer", read_all_first)
        with shared.share().attach() as reader:
            assert reader.load(1) == page(1, 1)
    assert found == [page(0, 1), text(1), text(2), 101]


# What the system refuses


def test_an_owner_out_of_descriptors_waits_and_recovers(
    shared: SwapStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(share_server, "_PAUSE_S", 0.01)
    refusals = iter([errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ECONNABORTED])
    accepted = share_server._accepted
    calls = []

    def refuse(listener: socket.socket) -> socket.socket:
        calls.append(0)
        for number in refusals:
            raise OSError(number, os.strerror(number))
        return accepted(listener)

    monkeypatch.setattr(share_server, "_accepted", refuse)
    with shared.share().attach() as reader:
        assert reader.load(0) == page(0, 1)
    assert len(calls) < 12


def test_a_reply_that_finds_no_descriptors_is_sent_later(
    shared: SwapStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(share_server, "_PAUSE_S", 0.01)
    refusals = iter([errno.EMFILE, errno.ETOOMANYREFS])

    def refuse(*arguments: object) -> object:
        for number in refusals:
            raise OSError(number, os.strerror(number))
        return answer(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(share_server, "answer", refuse)
    with shared.share().attach() as reader:
        assert reader.load(0) == page(0, 1)
    assert next(refusals, None) is None


def test_a_listener_that_fails_ends_the_server_and_the_next_share_makes_another(
    shared: SwapStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = shared.share().address

    def fail(_: socket.socket) -> socket.socket:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    with monkeypatch.context() as patch:
        patch.setattr(share_server, "_accepted", fail)
        with pytest.raises((ClosedError, ConnectionError)):
            attach(address)
    with shared.share().attach() as reader:
        assert reader.load(0) == page(0, 1)


def test_no_thread_for_the_server_is_an_error_that_leaves_nothing(
    store: SwapStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.store(0, text(0))
    before = descriptors()

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(BatchzipError, match="no thread"):
            store.share()
    assert descriptors() == before
    with store.share().attach() as reader:
        assert reader.load(0) == text(0)


def test_no_folder_for_the_socket_is_an_error_that_leaves_nothing(
    store: SwapStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store.store(0, text(0))
    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
        patch.setattr(reach, "_ELSEWHERE", str(tmp_path / "nor this"))
        with pytest.raises(FileNotFoundError, match="missing"):
            store.share()
    assert descriptors() == before
    with store.share().attach() as reader:
        assert reader.load(0) == text(0)


def test_a_store_does_not_wait_for_an_answer_that_takes_long(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(share_server, "_END_S", 0.01)
    begun, go_on = threading.Event(), threading.Event()

    def answer_late(*_: object) -> object:
        begun.set()
        return go_on.wait(60)

    with SwapStore(engine) as store:
        monkeypatch.setattr(share_server, "answer", answer_late)
        with connect(store) as client:
            ask(client, what="attach")
            begun.wait(60)
            store.close()
            go_on.set()
            threads = [each for each in threading.enumerate() if each.name == "batchzip-share"]
            for thread in threads:
                thread.join(60)
                assert not thread.is_alive()


@pytest.mark.slow
def test_an_owner_that_is_stopped_answers_too_late_and_its_pages_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here, there = spawn.Pipe()
    owner = spawn.Process(target=share_readers.own_and_change, args=(there,))
    owner.start()
    there.close()
    with attach(here.recv()) as reader:
        for number in range(20):
            time.sleep(0.003 * (number % 7))  # somewhere in the middle of a change
            os.kill(owner.pid or 0, signal.SIGSTOP)
            for index in range(64):
                share_readers.version_of(reader.load(index), index)
            os.kill(owner.pid or 0, signal.SIGCONT)
        os.kill(owner.pid or 0, signal.SIGSTOP)
        with monkeypatch.context() as patch:
            patch.setattr(view, "_ANSWER_S", 0.2)
            with pytest.raises(RequestTimeout):
                reader.counters  # noqa: B018 - raises
        os.kill(owner.pid or 0, signal.SIGCONT)
        assert reader.counters.stored_pages == 64
        owner.kill()
        owner.join()
        owner.close()
        assert len(reader.load_many(range(64))) == 64
    here.close()


# Forks, signals, threads


@pytest.mark.slow
def test_a_forked_child_has_nothing_of_the_server(shared: SwapStore) -> None:
    number = int(Path(shared.share().address).name)
    server = shared._servers[0]
    listener = server._listener.fileno()
    with connect(shared) as client:
        ask(client, what="status")
        client.recv(4)
        connections = [reader.connection.fileno() for reader in server._readers]
        assert connections

        def look() -> None:
            for fd in (number, listener, *connections):
                with pytest.raises(OSError, match="Bad file"):
                    os.fstat(fd)

        in_forked_child(look)
    with shared.share().attach() as reader:
        assert reader.load(0) == page(0, 1)


@contextlib.contextmanager
def ringing(call: Callable[[], object]) -> Iterator[list[int]]:
    """Have something called from a signal handler, a thousand times a second; count how often."""
    rung: list[int] = []
    depth = 0

    def handle(*_: object) -> None:
        nonlocal depth
        if depth < 2:
            depth += 1
            try:
                call()
            finally:
                depth -= 1
            rung.append(0)

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        yield rung
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.slow
def test_a_signal_handler_may_do_all_that_it_interrupts(shared: SwapStore) -> None:
    shared.group("one").store(0, text(1))
    with shared.share().attach() as reader:

        def use_all() -> None:
            assert reader.load(3) == page(3, 1)
            assert reader.load_many([5, 6]).tobytes() == page(5, 1) + page(6, 1)
            assert reader.counters.stored_pages == 101
            assert reader.group("one").load(0) == text(1)
            shared.share().attach().close()

        with ringing(use_all) as rung:
            while len(rung) < 50:
                use_all()


def load_until_closed(reader: StoreView, begun: threading.Barrier) -> type[BaseException] | None:
    begun.wait()
    try:
        while True:
            assert reader.load_many([1, 2]).tobytes() == page(1, 1) + page(2, 1)
    except ClosedError as error:
        return type(error)


@pytest.mark.slow
def test_a_view_can_be_closed_while_others_load(shared: SwapStore) -> None:
    with ThreadPoolExecutor(4) as executor:
        for _ in range(20):
            reader = shared.share().attach()
            begun = threading.Barrier(5)
            loads = [executor.submit(load_until_closed, reader, begun) for _ in range(4)]
            begun.wait()
            time.sleep(0.002)
            reader.close()
            assert [load.result() for load in loads] == [ClosedError] * 4
