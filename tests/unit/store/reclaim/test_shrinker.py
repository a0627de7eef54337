"""The shrinker's thread: one round per wake-up, one thread, and an end whatever it is doing."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, NoReturn

import pytest

from batchzip.store.reclaim.shrinker import Shrinker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WAIT_S = 10


class Store:
    """Notes which thread shrinks it, and does then what a test says."""

    def __init__(self) -> None:
        self.rounds: SimpleQueue[threading.Thread] = SimpleQueue()
        self.then: Callable[[], object] = lambda: None

    def _shrink_quietly(self) -> None:
        self.rounds.put(threading.current_thread())
        self.then()


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def shrinker(store: Store) -> Iterator[Shrinker]:
    shrinker = Shrinker(store)
    yield shrinker
    shrinker.close(wait=True)
    assert not any(thread.name == "batchzip-shrinker" for thread in threading.enumerate())


def no_thread(_: threading.Thread) -> NoReturn:
    raise RuntimeError("can't start new thread")


def test_it_does_one_round_per_wake_up_and_waits(shrinker: Shrinker, store: Store) -> None:
    threads = set()
    for _ in range(3):
        shrinker.wake()
        threads.add(store.rounds.get(timeout=WAIT_S))
    shrinker.close(wait=True)
    assert store.rounds.empty()
    assert len(threads) == 1
    assert threading.current_thread() not in threads


def test_wake_ups_during_a_round_are_one_more_round(shrinker: Shrinker, store: Store) -> None:
    go_on = threading.Event()
    store.then = lambda: go_on.wait(WAIT_S)
    for _ in range(5):
        shrinker.wake()
        if store.rounds.empty():
            store.rounds.put(store.rounds.get(timeout=WAIT_S))
    go_on.set()
    first, second = (store.rounds.get(timeout=WAIT_S) for _ in range(2))
    assert first is second
    shrinker.close(wait=True)
    assert store.rounds.empty()


def test_threads_that_wake_it_at_the_same_time_get_one_thread(
    shrinker: Shrinker, store: Store
) -> None:
    together = threading.Barrier(8)

    def wake() -> None:
        together.wait(WAIT_S)
        shrinker.wake()

    callers = [threading.Thread(target=wake) for _ in range(8)]
    for caller in callers:
        caller.start()
    threads = {store.rounds.get(timeout=WAIT_S)}
    for caller in callers:
        caller.join()
    shrinker.wake()
    threads.add(store.rounds.get(timeout=WAIT_S))
    assert len(threads) == 1


def test_without_a_thread_the_caller_shrinks_and_the_next_wake_up_tries_again(
    shrinker: Shrinker, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        shrinker.wake()
        assert store.rounds.get_nowait() is threading.current_thread()
    shrinker.wake()
    assert store.rounds.get(timeout=WAIT_S) is not threading.current_thread()
    shrinker.close(wait=True)
    assert store.rounds.empty()


@pytest.mark.parametrize("error", [ValueError("of a file"), SystemExit(1)])
def test_an_exception_is_reported_and_the_thread_goes_on(
    shrinker: Shrinker, store: Store, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: SimpleQueue[threading.ExceptHookArgs] = SimpleQueue()
    monkeypatch.setattr(threading, "excepthook", told.put)

    def fail() -> NoReturn:
        raise error

    store.then = fail
    shrinker.wake()
    report = told.get(timeout=WAIT_S)
    thread = store.rounds.get_nowait()
    assert (report.exc_value, report.thread) == (error, thread)
    store.then = lambda: None
    shrinker.wake()
    assert store.rounds.get(timeout=WAIT_S) is thread
    del report


def test_no_round_begins_while_pause_is_held(shrinker: Shrinker, store: Store) -> None:
    with shrinker.pause:
        shrinker.wake()
        assert store.rounds.empty()
    assert store.rounds.get(timeout=WAIT_S)
    shrinker.close(wait=True)
    with shrinker.pause:  # the thread has given it back
        assert store.rounds.empty()


def test_it_tries_until_it_gets_pause(shrinker: Shrinker, store: Store) -> None:
    answers = iter([False, False, True])

    class Pause:
        def acquire(self, *, timeout: float) -> bool:
            assert timeout > 0
            return next(answers)

        def release(self) -> None:
            pass

    shrinker.pause = Pause()  # type: ignore[assignment] # of which it uses no more
    shrinker.wake()
    assert store.rounds.get(timeout=WAIT_S)


def test_it_starts_one_thread_and_none_after_close(
    shrinker: Shrinker, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    start = threading.Thread.start

    def note(thread: threading.Thread) -> None:
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", note)
    for _ in range(3):
        shrinker.wake()
        store.rounds.get(timeout=WAIT_S)
    shrinker.close(wait=True)
    shrinker.wake()
    assert len(started) == 1


def test_it_ends_although_its_closer_holds_pause(shrinker: Shrinker, store: Store) -> None:
    with shrinker.pause:
        shrinker.wake()
        shrinker.close(wait=True)
        assert store.rounds.empty()


def test_it_holds_pause_during_a_round(shrinker: Shrinker, store: Store) -> None:
    go_on = threading.Event()
    store.then = lambda: go_on.wait(WAIT_S)
    shrinker.wake()
    store.rounds.get(timeout=WAIT_S)
    assert not shrinker.pause.acquire(blocking=False)
    go_on.set()
    assert shrinker.pause.acquire(timeout=WAIT_S)
    shrinker.pause.release()


def test_it_can_be_closed_within_its_own_round(shrinker: Shrinker, store: Store) -> None:
    store.then = lambda: shrinker.close(wait=True)
    shrinker.wake()
    store.rounds.get(timeout=WAIT_S).join(WAIT_S)
    shrinker.wake()  # which has no effect any more
    assert store.rounds.empty()


@pytest.mark.parametrize("woken", [False, True])
def test_after_close_there_is_no_thread(shrinker: Shrinker, store: Store, *, woken: bool) -> None:
    if woken:
        shrinker.wake()
        store.rounds.get(timeout=WAIT_S)
    shrinker.close(wait=True)
    shrinker.wake()
    assert store.rounds.empty()
    assert not any(thread.name == "batchzip-shrinker" for thread in threading.enumerate())


def test_close_waits_for_the_round_only_if_it_is_told_to(shrinker: Shrinker, store: Store) -> None:
    go_on = threading.Event()
    store.then = lambda: go_on.wait(WAIT_S)
    shrinker.wake()
    thread = store.rounds.get(timeout=WAIT_S)
    shrinker.close(wait=False)
    assert thread.is_alive()
    go_on.set()
    shrinker.close(wait=True)
    assert not thread.is_alive()


def test_it_ends_with_its_store() -> None:
    store = Store()
    shrinker, rounds = Shrinker(store), store.rounds
    shrinker.wake()
    thread = rounds.get(timeout=WAIT_S)
    del store
    thread.join(WAIT_S)
    assert not thread.is_alive()
    shrinker.wake()
    assert rounds.empty()
