"""A backing file whose calls raise any error or return anything: no page is lost."""

from __future__ import annotations

import contextlib
import errno
import random
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.faulty_object import CALLS, STREAM_CALLS, Answer, FaultyObject, FaultyStream
from support.storage_calls import OTHERS, Mute, causes
from support.thread_model import SIZE, Model, make_page

from batchzip import (
    BatchzipError,
    Engine,
    PageError,
    StoreRejected,
    SwapStore,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ERRNOS = sorted(errno.errorcode)

USUAL = [
    errno.EPERM,
    errno.EINTR,
    errno.EIO,
    errno.EBADF,
    errno.EAGAIN,
    errno.ENOMEM,
    errno.EFBIG,
    errno.ENOSPC,
    errno.EBADMSG,
    errno.EOPNOTSUPP,
    errno.EDQUOT,
]

TARGETS = [
    *((FaultyObject, call) for call in CALLS),
    *((FaultyStream, call) for call in STREAM_CALLS),
]

IDS = [f"{make.__name__}.{call}" for make, call in TARGETS]


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine("lz4", backend="sequential", page_size=SIZE) as engine:
        yield engine


def fill(model: Model) -> None:
    """Have pages in memory and in the file, and zones to clean."""
    for name in model.pages:
        for first in range(0, 40, 8):
            pages = [make_page(model.version + first + at) for at in range(8)]
            model.group(name).store(first, pages)
            model.note(name, range(first, first + 8), list(pages))
        model.group(name).writeback(range(12, 28))
        model.group(name).invalidate(20, 3)
        model.note(name, range(20, 23), [None] * 3)


def attempt(operation: Callable[[Model], None], model: Model) -> BaseException | None:
    """Return what an operation raises."""
    try:
        operation(model)
    except BaseException as error:  # noqa: BLE001 - the caller looks at it
        return error
    return None


OPERATIONS: list[Callable[[Model], None]] = [
    Model.store_some,
    Model.load_many,
    Model.take,
    Model.take_many,
    Model.write_back,
    Model.invalidate,
    Model.clear,
    Model.store_some,
    Model.drop,
    Model.compact,
    Model.look,
]


def told_as_it_should_be(raised: BaseException, fault: BaseException | Answer, call: str) -> bool:
    """Whether an error is one of the store's, and leads to what was wrong."""
    if call in {"pread", "read", "seek"} and isinstance(raised, AssertionError):
        return True  # of a look: it says what is unreadable
    if isinstance(fault, BaseException) and not isinstance(fault, Exception):
        if isinstance(fault, BaseExceptionGroup) and isinstance(raised, BaseExceptionGroup):
            return raised.exceptions == fault.exceptions  # suppress() of 3.12 makes another group
        return raised is fault  # an interrupt
    if not isinstance(raised, (BatchzipError, OSError)):
        return False
    return isinstance(fault, Answer) or fault in causes(raised)


def try_everything(
    engine: Engine,
    target: FaultyObject | FaultyStream,
    call: str,
    fault: BaseException | Answer,
    seed: int,
    **how: Any,
) -> int:
    """Do everything once with a fault in it; how many there were."""
    with SwapStore(engine, backing=target, shrinker_enabled=False) as store:
        model = Model(store, "model", seed)
        model.second = engine
        fill(model)
        for turn, operation in enumerate(OPERATIONS):
            store.max_pool_bytes = 0 if turn % 2 else None
            target.fail(call, fault, **how)
            raised = attempt(operation, model)
            target.mend()
            if raised is not None:
                assert told_as_it_should_be(raised, fault, call), raised
                model.resolve(raised)
            store.check_invariants()
            model.check()
        target.fail(call, fault, times=1000)
    target.mend()
    with SwapStore(engine, backing=target) as store:
        store.store(0, make_page(3))
    return target.met


@pytest.mark.slow
@pytest.mark.parametrize(
    "codes",
    [pytest.param(USUAL, id=""), pytest.param(ERRNOS, marks=pytest.mark.stress, id="stress")],
)
@pytest.mark.parametrize(("make", "call"), TARGETS, ids=IDS)
def test_no_error_raised_by_a_file_call_loses_pages(
    engine: Engine,
    make: type[FaultyObject | FaultyStream],
    call: str,
    codes: list[int],
    report: Callable[[str], None],
) -> None:
    if make is FaultyStream:  # what is done with numbers is the same
        codes = codes[::5]
    faults = [*map(make_error, codes), *(make() for make in OTHERS)]
    random.Random(call).shuffle(faults)  # which come before a call's work, and which after it
    tried = sum(
        try_everything(engine, make(), call, fault, number, at=1 + number % 2, after=number % 4 > 1)
        for number, fault in enumerate(faults)
    )
    report(f"storage: {make.__name__}.{call}, {tried} faults in all, 0 lost")
    assert tried or call == "truncate"


def make_error(code: int) -> OSError:
    return OSError(code, "made up")


@pytest.mark.slow
@pytest.mark.parametrize(("make", "call"), TARGETS, ids=IDS)
def test_a_call_that_raises_every_time_loses_nothing(
    engine: Engine, make: type[FaultyObject | FaultyStream], call: str
) -> None:
    faults = [make_error(errno.EDQUOT), *(other() for other in OTHERS)]
    for number, fault in enumerate(faults):
        try_everything(engine, make(), call, fault, number, times=10**6)


class Index:
    def __index__(self) -> int:
        raise Mute


NONSENSE: dict[str, tuple[object, ...]] = {
    "pread": (None, 7, 10**12, -1, True, "text", 0.5, object(), [1, 2], bytes(1 << 20), b"", b"x"),
    "pwrite": (None, -1, 0, 10**30, True, False, "7", 0.5, object(), b"x", Index(), np.int64(-1)),
}
NONSENSE["read"], NONSENSE["write"] = NONSENSE["pread"], NONSENSE["pwrite"]


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 10**6])
@pytest.mark.parametrize("call", NONSENSE)
def test_no_value_returned_by_a_file_call_loses_pages(
    engine: Engine, call: str, times: int
) -> None:
    make = FaultyObject if call in CALLS else FaultyStream
    for number, value in enumerate(NONSENSE[call]):
        assert try_everything(engine, make(), call, Answer(value), number, times=times)


@pytest.mark.parametrize("call", ["sync", "discard", "truncate", "flush", "seek"])
def test_return_values_of_other_file_calls_are_ignored(engine: Engine, call: str) -> None:
    make = FaultyObject if call in CALLS else FaultyStream
    with SwapStore(engine, backing=(target := make())) as store:
        for value in (None, -1, "text", object()):
            target.fail(call, Answer(value), times=10**6, after=True)
            store.store(0, [make_page(at) for at in range(9)])
            assert store.writeback(range(9)) == 7  # the others are kept as a word
            assert store.load_many(range(9)).tobytes() == b"".join(map(make_page, range(9)))
            assert store.invalidate(0, 9) == 9


@pytest.mark.parametrize(
    ("good", "call"),
    [
        (bytearray, "pread"),
        (memoryview, "pread"),
        (lambda data: np.frombuffer(data, np.uint8), "pread"),
        (lambda data: memoryview(data)[: len(data) // 2 + 1], "pread"),
        (np.int16, "pwrite"),
        (np.uint64, "pwrite"),
        (lambda count: min(count, 100), "pwrite"),
    ],
)
def test_bytes_and_counts_come_in_any_form(
    engine: Engine, good: Callable[[Any], Any], call: str
) -> None:
    class Converted(FaultyObject):
        def __getattribute__(self, name: str) -> Any:
            value = super().__getattribute__(name)
            return (lambda *arguments: good(value(*arguments))) if name == call else value

    with SwapStore(engine, backing=Converted()) as store:
        store.store(0, [make_page(at) for at in range(9)])
        assert store.writeback(9) > 5
        assert store.load_many(range(9)).tobytes() == b"".join(map(make_page, range(9)))


def test_a_file_method_that_cannot_be_looked_up_counts_as_failing(engine: Engine) -> None:
    class Lost(FaultyObject):
        lost = ""

        def __getattribute__(self, name: str) -> Any:
            if name == super().__getattribute__("lost"):
                raise RuntimeError("cannot be had")
            return super().__getattribute__(name)

    with SwapStore(engine, backing=(target := Lost()), shrinker_enabled=False) as store:
        store.store(0, [make_page(at) for at in range(9)])
        store.writeback([0])
        works: dict[str, Callable[[], object]] = {
            "pread": lambda: store.load(0),
            "pwrite": lambda: store.writeback([1]),
            "sync": lambda: store.writeback([1]),
        }
        for target.lost, work in works.items():
            with pytest.raises((OSError, PageError)):
                work()
        for target.lost in ("discard", "truncate"):
            assert store.writeback([1, 4, 5]) in (3, 0)
            store.invalidate(1)
        assert store.load(0) == make_page(0)
        store.check_invariants()


def test_errors_say_what_the_user_raised(engine: Engine) -> None:
    class Broken(Exception):
        pass

    fault = Broken("by its user")
    with SwapStore(engine, backing=(target := FaultyObject()), max_pool_bytes=0) as store:
        store.store(0, make_page(1))
        target.fail("pread", fault)
        with pytest.raises(PageError) as load:
            store.load(0)
        target.fail("sync", fault)
        with pytest.raises(
            StoreRejected, match="sync of an object of class FaultyObject raised Broken"
        ) as put:
            store.store(1, make_page(2))
        assert store.load(0) == make_page(1)
    for caught in (load, put):
        assert fault in causes(caught.value)
        assert any(
            entry.name == "_called"
            for entry in pytest.ExceptionInfo.from_exception(fault).traceback
        )


@pytest.mark.slow
def test_readers_elsewhere_are_told_and_served_again(engine: Engine) -> None:
    pages = [make_page(at) for at in range(20)]
    with SwapStore(engine, backing=(target := FaultyObject())) as store:
        store.store(0, pages)
        store.writeback(20)
        with store.share().attach() as view:
            for fault in [make_error(errno.EDQUOT), *(make() for make in OTHERS)]:
                target.fail("pread", fault)
                with pytest.raises(PageError, match="page 1:"):
                    view.load(1)
                assert view.load_many(range(20)).tobytes() == b"".join(pages)


def test_the_shrinker_survives_any_error(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    writes = threading.Semaphore(0)
    target = FaultyObject()

    def visit(call: str) -> None:
        if call == "pwrite" and threading.current_thread().name == "batchzip-shrinker":
            writes.release()

    with SwapStore(engine, backing=target) as store:
        target.visit = visit
        store.store(0, [make_page(2 + 4 * at) for at in range(1000)])
        store.max_pool_bytes = 1
        for fault in (make() for make in OTHERS):
            target.fail("pwrite", fault, times=10**6)
            with contextlib.suppress(BaseException):
                store.store(2000, make_page(3))
            assert writes.acquire(timeout=30)
        target.mend()
        store.store(2000, make_page(3))
        assert writes.acquire(timeout=30)
        store.check_invariants()
        assert store.load_many(range(1000)).tobytes() == b"".join(
            make_page(2 + 4 * at) for at in range(1000)
        )
