"""RequestQueue: lines of threads are served in turn, room is kept exactly, nobody overtakes."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from support.waiting import await_true

from batchzip import ClosedError, CompressBatch, DecompressBatch, EngineBusy, Request
from batchzip.lanes import queue as queue_module
from batchzip.lanes.queue import RequestQueue
from batchzip.testing.plain import SLACK_S

if TYPE_CHECKING:
    from batchzip.batch import Batch

ROOM = 10
THREADS = 3


def make_request(
    pages: int, *, compress: bool = True, deadline: float | None = None
) -> Request[Batch]:
    if compress:
        return Request(CompressBatch(np.zeros((pages, 512), np.uint8), capacity=1), deadline)
    return Request(DecompressBatch([b""] * pages, page_size=512), deadline)


class Waiter:
    """A thread that puts a request, and what came of it."""

    def __init__(self, queue: RequestQueue, pages: int, timeout_s: float | None = None) -> None:
        self.outcome: object = None
        before = len(queue._waiting)
        self.thread = threading.Thread(target=self._put, args=(queue, pages, timeout_s))
        self.thread.start()
        await_true(lambda: len(queue._waiting) > before)

    def _put(self, queue: RequestQueue, pages: int, timeout_s: float | None) -> None:
        try:
            queue.put(make_request(pages), timeout_s=timeout_s, block=True)
            self.outcome = "in"
        except (EngineBusy, ClosedError) as error:
            self.outcome = type(error)

    def is_over(self) -> object:
        self.thread.join(SLACK_S)
        return self.outcome


def full_queue() -> RequestQueue:
    queue = RequestQueue(ROOM)
    queue.put(make_request(ROOM), timeout_s=None, block=False)
    return queue


def test_waiters_get_room_first_come_first_served() -> None:
    queue = full_queue()
    first, second = Waiter(queue, 6), Waiter(queue, 1)
    queue.leave(5)  # enough for the second, who came later
    with pytest.raises(EngineBusy):
        queue.put(make_request(1), timeout_s=0.05, block=True)
    assert first.outcome is second.outcome is None
    queue.leave(1)
    assert first.is_over() == "in"
    assert second.outcome is None
    queue.leave(1)
    assert second.is_over() == "in"


@pytest.mark.slow
def test_a_waiter_that_times_out_lets_the_next_one_in() -> None:
    queue = full_queue()
    first, second = Waiter(queue, 6, timeout_s=0.3), Waiter(queue, 1)
    queue.leave(3)
    assert first.is_over() is EngineBusy
    assert second.is_over() == "in"


def test_an_interrupt_while_waiting_leaves_no_ticket(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = full_queue()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(queue._changed, "wait_for", interrupt)
        with pytest.raises(KeyboardInterrupt):
            queue.put(make_request(1), timeout_s=None, block=True)
    queue.leave(ROOM)
    queue.put(make_request(ROOM), timeout_s=None, block=False)


def test_closing_refuses_waiters_and_newcomers_and_keeps_what_is_queued() -> None:
    queue = full_queue()
    waiters = [Waiter(queue, 1), Waiter(queue, 20)]
    queue.close()
    assert [waiter.is_over() for waiter in waiters] == [ClosedError] * 2
    with pytest.raises(ClosedError):
        queue.put(make_request(1), timeout_s=None, block=True)
    with pytest.raises(ClosedError):
        queue.put_anyway(make_request(1))
    assert queue.take() is not None
    assert queue.take() is None


def test_a_request_larger_than_the_room_waits_until_it_is_alone() -> None:
    queue = RequestQueue(ROOM)
    queue.put(make_request(1), timeout_s=None, block=False)
    large = Waiter(queue, 5 * ROOM)
    queue.leave(1)
    assert large.is_over() == "in"
    with pytest.raises(EngineBusy, match="50 pages"):
        queue.put(make_request(1), timeout_s=None, block=False)


def test_take_waits_for_a_request() -> None:
    queue = RequestQueue(ROOM)
    taken: list[Request[Batch] | None] = []
    thread = threading.Thread(target=lambda: taken.append(queue.take()))
    thread.start()
    request = make_request(2)
    queue.put(request, timeout_s=None, block=True)
    thread.join(SLACK_S)
    assert taken == [request]


def test_take_does_not_wait_where_it_is_told_so() -> None:
    assert RequestQueue(ROOM).take(wait=False) is None


class QueueAgainstModel(RuleBasedStateMachine):
    """The model: who is to be served in which order, as a plain list of (thread, requests)."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = RequestQueue(ROOM)
        self.threads = [ThreadPoolExecutor(1) for _ in range(THREADS)]
        self.turns: list[tuple[int, deque[Request[Batch]]]] = []
        self.taken: list[Request[Batch]] = []
        self.now = 0.0
        self.clock, queue_module.clock = queue_module.clock, lambda: self.now

    def teardown(self) -> None:
        queue_module.clock = self.clock
        for thread in self.threads:
            thread.shutdown()

    def queued(self) -> list[Request[Batch]]:
        return [request for _, line in self.turns for request in line]

    def pages(self) -> int:
        return sum(request.pages for request in self.queued() + self.taken)

    @rule(
        thread=st.integers(0, THREADS - 1),
        pages=st.integers(1, ROOM + 3),
        compress=st.booleans(),
        deadline_s=st.none() | st.integers(0, 3),
        anyway=st.integers(0, 9).map(lambda number: number == 0),
    )
    def put(
        self, thread: int, pages: int, compress: bool, deadline_s: int | None, anyway: bool
    ) -> None:
        deadline = None if deadline_s is None else self.now + deadline_s
        request = make_request(pages, compress=compress, deadline=deadline)
        if anyway:
            self.threads[thread].submit(self.queue.put_anyway, request).result()
        else:
            putting: Any = self.threads[thread].submit(
                self.queue.put, request, timeout_s=None, block=False
            )
            if self.pages() > 0 and self.pages() + pages > ROOM:
                with pytest.raises(EngineBusy, match=f"^{self.pages()} pages"):
                    putting.result()
                return
            putting.result()
        for number, line in self.turns:
            if number == thread:
                line.append(request)
                return
        self.turns.append((thread, deque([request])))

    @precondition(lambda self: self.turns)
    @rule(wait=st.booleans())
    def take(self, wait: bool) -> None:
        thread, line = self.turns.pop(0)
        expected = line.popleft()
        if line:
            self.turns.append((thread, line))
        assert self.queue.take(wait=wait) is expected
        self.taken.append(expected)

    @precondition(lambda self: self.taken)
    @rule(number=st.integers(0, 100))
    def leave(self, number: int) -> None:
        self.queue.leave(self.taken.pop(number % len(self.taken)).pages)

    @rule(seconds=st.integers(0, 2))
    def expire(self, seconds: int) -> None:
        self.now += seconds
        late = [r for r in self.queued() if r.deadline is not None and r.deadline <= self.now]
        assert set(self.queue.take_expired()) == set(late)
        self.taken += late
        kept = [(thread, deque(r for r in line if r not in late)) for thread, line in self.turns]
        self.turns = [(thread, line) for thread, line in kept if line]

    @rule()
    def take_all(self) -> None:
        assert set(self.queue.take_all()) == set(self.queued())
        self.taken += self.queued()
        self.turns.clear()


TestQueueAgainstAModel = pytest.mark.slow(QueueAgainstModel.TestCase)
TestQueueAgainstAModel.settings = settings(
    max_examples=80,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def test_requests_put_while_expired_ones_are_taken_are_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A finalizer or a signal handler may submit at any call."""
    queue = RequestQueue(ROOM)
    late = [make_request(1, deadline=0.0) for _ in range(2)]
    early, there = make_request(1, deadline=0.0), make_request(1)
    for request in late:
        queue.put(request, timeout_s=None, block=False)
    is_late = Request.is_late
    meanwhile = [early, there]

    def interrupted(request: Request[Batch], now: float) -> bool:
        answer = is_late(request, now)
        while meanwhile:
            queue.put(meanwhile.pop(), timeout_s=None, block=False)
        return answer

    monkeypatch.setattr(Request, "is_late", interrupted)
    assert queue.take_expired() == late
    assert queue.take_expired() == [early]
    assert queue.take(wait=False) is there
    assert queue.take(wait=False) is None
