"""An alarm in a submit or a wait reaches the caller as it is."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest
from support.store_pages import text

from batchzip import (
    CompressBatch,
    Engine,
    Request,
    SwapStore,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


# Alarms


class _Alarm(Exception):
    """What a signal handler raises."""


class _Late(TimeoutError):
    """What a signal handler raises, of a kind that waits know, too."""


@pytest.fixture
def alarm(request: pytest.FixtureRequest) -> Iterator[type[Exception]]:
    """Have the kind of exception that an alarm raises."""

    def handle(*_: object) -> None:
        raise request.param("too long")

    before = signal.signal(signal.SIGALRM, handle)
    yield request.param
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


ALARMS = pytest.mark.parametrize("alarm", [TimeoutError, _Late, _Alarm], indirect=True)


@ALARMS
@pytest.mark.parametrize("timeout_s", [None, 60])
def test_an_alarm_in_a_wait_is_not_taken_for_the_end_of_the_wait(
    alarm: type[Exception], timeout_s: float | None
) -> None:
    """ansible#53804, aioesphomeapi#565: TimeoutError of a handler was taken for another one."""
    request = Request(CompressBatch([text(1)]))

    def wait() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        request.wait(timeout_s)

    with pytest.raises(alarm, match="too long") as raised:
        wait()
    assert type(raised.value) is alarm


@ALARMS
def test_an_alarm_in_a_submit_leaves_nothing_under_way(
    alarm: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[Request[Any]] = []
    with Engine("lz4", backend="threads", workers=1) as engine:
        queue = engine.backend._queue  # type: ignore[attr-defined]
        put = queue.put

        def put_and_raise(request: Request[Any], **options: Any) -> None:
            requests.append(request)
            put(request, **options)
            raise alarm("too long")

        monkeypatch.setattr(queue, "put", put_and_raise)
        batch = CompressBatch([text(number) for number in range(256)])
        with pytest.raises(alarm, match="too long"):
            engine.submit(batch)
        assert requests[0].done()


@ALARMS
def test_an_alarm_is_not_taken_for_a_lack_of_memory(
    alarm: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def arena(*_: object) -> None:
        raise alarm("too long")

    with Engine("lz4", backend="threads", workers=1) as engine, SwapStore(engine) as store:
        monkeypatch.setattr(engine, "arena", arena)
        with pytest.raises(alarm, match="too long"):
            store.store(0, [text(number) for number in range(256)])
        store.check_invariants()
