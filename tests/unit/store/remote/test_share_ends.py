"""A store, a view, an owner or a reader ends: the others hear of it, or go on."""

import multiprocessing
import os
import signal
import threading
from pathlib import Path

import pytest
from support import share_readers
from support.forked import in_forked_child
from support.share_clients import PAGES
from support.share_readers import page
from support.waiting import await_true

from batchzip import (
    ClosedError,
    Engine,
    ForkedProcess,
    SwapStore,
    attach,
)

spawn = multiprocessing.get_context("spawn")


# How it ends


def test_a_closed_store_says_so(engine: Engine) -> None:
    with SwapStore(engine) as store:
        store.store(0, PAGES)
        view = store.share().attach()
        address = store.share().address
    for call in (lambda: view.load(0), lambda: view.counters, lambda: view.load_many([0])):
        with pytest.raises(ClosedError, match=r"store .*is closed"):
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
        with pytest.raises(ClosedError, match="owner has ended"):
            view.counters  # noqa: B018 - raises
        # The child the owner forked would live for a minute: it sees to its own end by the pipe.
    here.close()


def test_a_store_that_is_dropped_ends_its_threads(engine: Engine) -> None:
    store = SwapStore(engine)
    store.store(0, PAGES)
    view = store.share().attach()
    del store
    await_true(lambda: not [thread for thread in threading.enumerate() if "share" in thread.name])
    view.close()


@pytest.mark.slow
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
