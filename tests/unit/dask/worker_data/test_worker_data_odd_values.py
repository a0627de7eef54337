"""A value of WorkerData whose size, pickling or restoring fails harms no other value."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from dask.sizeof import sizeof
from support.cluster.fixtures import offloading  # noqa: F401 - used by every test
from support.worker_values import MIB, an_array, some_noise

from batchzip import ClosedError
from batchzip.dask import WorkerData
from batchzip.testing.plain import in_threads

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class OwnError(Exception):
    """What a value's own code raises."""


class Unspeakable(Exception):
    """An error that raises again when it is shown."""

    def __str__(self) -> str:
        raise OwnError


class Unshowable:
    """What raises where it is shown."""

    def __repr__(self) -> str:
        raise OwnError


def _caused(error: BaseException) -> BaseException:
    error.__cause__ = OwnError("first")
    return error


class Unpicklable:
    """A value whose pickling raises, as long as there is an error for it."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        if self.error is not None:
            raise self.error
        return int, (7,)

    def __sizeof__(self) -> int:
        return 100_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OwnError("on purpose"), "test_worker_data_odd_values.OwnError: on purpose"),
        (KeyError("a"), "KeyError: 'a'"),
        (TypeError("Could not"), "TypeError: Could not"),
        (NotImplementedError("so"), "Could not serialize object of type Unpicklable"),
        (Unspeakable(), "test_worker_data_odd_values.Unspeakable: <exception str() failed>"),
        (_caused(TypeError(Unshowable())), "TypeError: <exception str() failed>"),
        (SystemExit(1), "SystemExit: 1"),
        (asyncio.CancelledError(), "CancelledError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_unpicklable_values_keep_no_other_value_live(
    data: WorkerData, caplog: pytest.LogCaptureFixture, error: BaseException, said: str
) -> None:
    bad = {f"bad {number}": Unpicklable(error) for number in range(3)}
    data.update(bad)
    with caplog.at_level(logging.WARNING, "batchzip.dask"):
        for number in range(12):
            data["chunk", number] = an_array(number)
        assert data.fast.total_weight <= data.n, "others make room"
        while data.evict() > 0:
            pass
    assert dict(data.fast) == bad, "and all of them can"
    for number in range(12):
        np.testing.assert_array_equal(data["chunk", number], an_array(number))
    (line,) = [record.getMessage() for record in caplog.records if record.name == "batchzip.dask"]
    assert line.startswith(
        "Failed to pickle 'bad 0', of type Unpicklable. It and others like it stay"
    )
    assert said in line
    assert "batchzip" not in line
    assert all(data[key] is value for key, value in bad.items())
    data["bad 0"] = 1
    assert data.evict() > 0, "a new value of that key can be"
    del data["bad 1"], data["bad 2"]


def test_a_value_that_finds_no_memory_is_tried_again(data: WorkerData) -> None:
    value = data["a"] = Unpicklable(MemoryError())
    assert data.evict() == -1
    value.error = None
    assert data.evict() > 0
    assert list(data.disk) == ["a"]


class SaysNoSize:
    """A value whose size cannot be told."""

    def __sizeof__(self) -> int:
        raise OwnError


class SaysToEnd:
    """A value that ends its thread where it is asked for its size."""

    def __sizeof__(self) -> int:
        raise SystemExit


class SaysOdd:
    """A value whose size, as its library says, is `size`."""

    def __init__(self, size: object) -> None:
        self.size = size


sizeof.register(SaysOdd, lambda value: value.size)


@pytest.mark.slow
@pytest.mark.parametrize(
    "value",
    [
        SaysNoSize(),
        SaysToEnd(),
        *map(SaysOdd, (float("nan"), float("inf"), -5, None, "many", np.int8(100), 1.5)),
    ],
    ids=lambda value: repr(getattr(value, "size", "none")),
)
def test_a_value_of_an_odd_size_harms_no_other(data: WorkerData, value: object) -> None:
    data["odd"] = value
    assert data["odd"] is value
    for number in range(12):
        data["chunk", number] = an_array(number)
    assert 0 < data.fast.total_weight <= data.n
    while data.evict() >= 0 and data.fast:
        pass
    assert data.spilled_total.memory >= 12 * (256 << 10)
    assert type(data["odd"]) is type(value)
    for number in range(12):
        np.testing.assert_array_equal(data["chunk", number], an_array(number))
        del data["chunk", number]
    del data["odd"]
    assert data.spilled_total.memory == data.fast.total_weight == len(data) == 0


class Unrestorable:
    """A value that pickles, and raises where it is unpickled."""

    def __reduce__(self) -> Any:
        return _raise, ()


def _raise() -> None:
    raise OwnError("not again")


def test_a_value_that_cannot_be_restored_harms_no_other(data: WorkerData) -> None:
    data["bad"] = Unrestorable()
    data["good"] = an_array(1)
    while data.evict() > 0:
        pass
    for _ in range(2):
        with pytest.raises(OwnError, match="not again") as raised:
            data["bad"]
        assert raised.value.__notes__ == ["raised while the value of key 'bad' was restored"]
    np.testing.assert_array_equal(data["good"], an_array(1))
    assert list(data) == ["good", "bad"]
    del data["bad"]
    assert "bad" not in data
    assert data.spilled_total.memory == 0


class Busy:
    """A value that does something with the data while it is pickled."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.work = work

    def __reduce__(self) -> Any:
        self.work()
        return int, (7,)

    def __sizeof__(self) -> int:
        return 600_000


@pytest.mark.parametrize(
    ("work", "left"),
    [
        (lambda data: data.__setitem__("new", some_noise(1, MIB // 2)), {"busy", "new", "other"}),
        (lambda data: data.__setitem__("busy", some_noise(1, MIB // 2)), {"busy", "other"}),
        (lambda data: data.__setitem__("busy", Busy(lambda: None)), {"busy", "other"}),
        (lambda data: data.__delitem__("busy"), {"other"}),
        (lambda data: data.evict(), {"busy", "other"}),
        (lambda data: data["busy"], {"busy", "other"}),
        (lambda data: data.close(), set()),
    ],
    ids=["new", "itself", "alike", "deletes", "evicts", "reads", "closes"],
)
def test_a_value_may_use_the_data_while_it_is_pickled(
    data: WorkerData, work: Callable[[WorkerData], object], left: set[str]
) -> None:
    data["busy"] = Busy(lambda: work(data))
    try:
        data["other"] = some_noise(2, MIB // 2)
    except ClosedError:
        assert not left
    data.evict()
    assert set(data) == left
    assert len(data) == len(left)


class Met:
    """A value that two threads restore at the same time."""

    meeting: threading.Barrier | None = None

    def __reduce__(self) -> Any:
        return _meet, ()


def _meet() -> list[int]:
    if Met.meeting is not None:
        Met.meeting.wait(60)
    return [1, 2, 3]


@pytest.mark.parametrize("live", [0.0, 0.25], ids=["stays compressed", "becomes live"])
def test_threads_may_restore_the_same_value_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, live: float
) -> None:
    with WorkerData(tmp_path, memory_limit=MIB, live=live) as data:
        data["met"] = Met()
        data.evict()
        monkeypatch.setattr(Met, "meeting", threading.Barrier(2))
        found: list[object] = []
        in_threads(2, lambda _: found.append(data["met"]))
        assert found == [[1, 2, 3]] * 2
        monkeypatch.setattr(Met, "meeting", None)
        assert list(data) == ["met"]
        assert len(data) == 1
        assert data["met"] == [1, 2, 3]
        del data["met"]
        assert len(data) == data.fast.total_weight == 0
