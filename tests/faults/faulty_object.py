"""A storage object in memory one of whose calls raises, or writes short, once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from faulty_file import FaultyFile

if TYPE_CHECKING:
    from collections.abc import Callable

CALLS = ("pread", "pwrite", "sync", "discard", "truncate")


class FaultyObject(FaultyFile):
    """Raises `fault` in the `at`-th call of `method` from now, before or after its work."""

    fault: BaseException | None = None
    method = ""
    at = 0
    after = False
    raised = 0
    storm: Callable[[], BaseException | None] | None = None
    """Asked before and after every call for what it is to raise, if anything."""

    def fail(self, method: str, at: int, fault: BaseException, *, after: bool) -> None:
        self.fault, self.method, self.at, self.after = fault, method, at, after

    def mend(self) -> None:
        self.fault = self.storm = None
        self.faults.clear()

    def _in_a_storm(self, value: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        self._perhaps_raise()
        result = value(*arguments)
        self._perhaps_raise()
        return result

    def _perhaps_raise(self) -> None:
        fault = None if self.storm is None else self.storm()
        if fault is not None:
            self.raised += 1
            raise fault

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name in CALLS and self.storm is not None:
            return lambda *arguments: self._in_a_storm(value, arguments)
        if name not in CALLS or self.fault is None or name != self.method:
            return value

        def call(*arguments: Any) -> Any:
            self.at -= 1
            fault = self.fault
            if self.at or fault is None:
                return value(*arguments)
            self.fault = None
            self.raised += 1
            if self.after:
                value(*arguments)
            raise fault

        return call
