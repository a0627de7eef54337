"""Storage objects in memory whose calls raise or return something else, once or repeatedly."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from support.faulty_file import FaultyFile

if TYPE_CHECKING:
    from collections.abc import Callable

CALLS = ("pread", "pwrite", "sync", "discard", "truncate")
STREAM_CALLS = ("seek", "read", "write", "flush", "truncate")


@dataclass
class Answer:
    """What a call returns in the place of what it would."""

    value: object


class Faulty:
    """Fails from the `at`-th next call of `method` on, before or after the call's work."""

    calls_that_fail: tuple[str, ...] = ()
    fault: BaseException | Answer | None = None
    method = ""
    at = 0
    times = 0
    after = False
    met = 0
    """Faults that there were."""
    storm: Callable[[], BaseException | None] | None = None
    """Asked before and after every call for what it is to raise, if anything."""
    visit: Callable[[str], None] | None = None
    """Called with its name before and after every call."""

    def fail(
        self,
        method: str,
        fault: BaseException | Answer,
        *,
        at: int = 1,
        times: int = 1,
        after: bool = False,
    ) -> None:
        self.method, self.fault, self.at, self.times, self.after = method, fault, at, times, after

    def mend(self) -> None:
        self.fault = self.storm = None

    def _perhaps_raise(self) -> None:
        fault = None if self.storm is None else self.storm()
        if fault is not None:
            self.met += 1
            raise fault

    def _called(self, name: str, method: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if self.visit is not None:
            self.visit(name)
        self._perhaps_raise()
        fault = self.fault if name == self.method else None
        if fault is not None:
            self.at -= 1
            if self.at > 0:
                fault = None
            elif -self.at >= self.times:
                fault = self.fault = None
        if fault is None or self.after:
            result = method(*arguments)
        if isinstance(fault, BaseException):
            self.met += 1
            raise fault
        if fault is not None:
            self.met += 1
            result = fault.value
        self._perhaps_raise()
        if self.visit is not None:
            self.visit(name)
        return result

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name not in super().__getattribute__("calls_that_fail"):
            return value
        return lambda *arguments: self._called(name, value, arguments)


class FaultyObject(Faulty, FaultyFile):
    """A storage object."""

    calls_that_fail = CALLS

    def mend(self) -> None:
        super().mend()
        self.faults.clear()


class FaultyStream(Faulty, io.BytesIO):
    """A stream, which is read and written at its position."""

    calls_that_fail = STREAM_CALLS
